"""CornerNet (Law & Deng, ECCV 2018): an object is a pair of corners whose embeddings agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.layers.heatmaps import RadiusFormula
from visionkit.numbers import NonNegative, OddPositive, OpenFraction, Positive, PositiveFloat, PositiveFraction
from visionkit.types import Batch, BoxPrediction, Detections, Features, FeatureSpec, InstanceTarget, LabelSet, Mean
from visionkit_points.centernet import stack_mean
from visionkit_points.corners import CORNERS, Pairs, PointMaps, decode_pairs, point_losses, points_of, thin_out
from visionkit_points.maps import stride_of
from visionkit_points.output import PointOutput, within


class CornerNet(Head):
    """Heatmaps, embeddings and offsets of top left and bottom right corners, after corner pooling.

    Losses and decoding are those of the paper and the authors' code, in one pass, without the mirrored image that they
    add in their test. The heatmap's loss is divided by the objects, as in the paper.

    Args:
        levels: the output of each stack of an hourglass, or one level; all are supervised, the last one predicts.
        hidden: width of what is pooled.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        weights: of the losses of heatmap, pull, push and offset.
        corners: the best so many of each kind are paired.
        peak: side of the neighbourhood that a corner is the largest of.
        distance: the most by which embeddings of a pair differ.
        pairs: the best so many go into soft-NMS.
        nms: width of its Gaussian; 0 for none.
        detections: the most an image.
        region_iou: IoU with an object from which a detection is one, for branches that learn from it.
    """

    task = "boxes"
    check_args = {"hidden": 8}
    makes = BoxPrediction
    output = PointOutput
    loss_names = ("heat", "pull", "push", "offset")
    evaluators = ("coco_bbox",)
    cascade: ClassVar[bool] = False
    """Whether corners look inwards too."""
    spread: ClassVar[Mapping[str, float]] = {"tl": 6.0, "br": 6.0}
    """Kinds of points, and how many standard deviations the diameter of their Gaussians has."""
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("stack1", "stack2"),
        hidden: Positive = 128,
        overlap: OpenFraction = 0.3,
        radius: RadiusFormula = "corrected",
        weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 0.1, 0.1, 1.0),
        corners: Positive = 100,
        peak: OddPositive = 3,
        distance: PositiveFloat = 0.5,
        pairs: Positive = 1000,
        nms: NonNegative = 0.5,
        detections: Positive = 100,
        region_iou: PositiveFraction = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        self.levels, self.stride = tuple(levels), stride_of(spec, levels)
        widths, classes = [spec[level].channels for level in levels], len(labels)
        self.top_left, self.bottom_right = (
            nn.ModuleList(PointMaps(width, hidden, classes, at, cascade=self.cascade) for width in widths)
            for at in CORNERS
        )
        self.overlap, self.radius = overlap, radius
        self.weights = dict(zip(self.loss_names, weights))
        self.corners, self.peak, self.distance, self.pairs = corners, peak, distance, pairs
        self.nms, self.max_detections, self.region_iou = nms, detections, region_iou

    def branches(self) -> list[nn.ModuleList]:
        """The maps of each kind of points, level by level."""
        return [self.top_left, self.bottom_right]

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PointOutput:
        stacks = []
        for level, *kinds in zip(self.levels, *self.branches()):
            stacks.append({name: values for maps in kinds for name, values in maps(features[level]).items()})
        return PointOutput.of(self, stacks, batch)

    def losses(self, output: PointOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        shape = tuple(output.stacks[0]["tl_heat"].shape[1:])
        aim = points_of(batch.targets, self.stride, shape, self.overlap, self.radius, self.spread)
        return stack_mean([point_losses(maps, aim) for maps in output.stacks], self.weights)

    @torch.no_grad()
    def predict(self, output: PointOutput, batch: Batch) -> list[BoxPrediction]:
        return [
            BoxPrediction(info.boxes_to_original(found.boxes), found.scores, found.labels)
            for info, found in zip(batch.info, output.detections())
        ]

    @torch.no_grad()
    def detect(self, output: PointOutput) -> list[Detections]:
        """Pairs of corners of the last stack, within the image, after soft-NMS."""
        maps = output.stacks[-1]
        found = decode_pairs(maps, self.corners, peak=self.peak, distance=self.distance, most=self.pairs)
        boxes = found.boxes * self.stride
        inside = within(boxes, self.scores(maps, found), found.labels, output.info)
        return [thin_out(own, self.nms, self.max_detections) for own in inside]

    def scores(self, maps: Mapping[str, Tensor], found: Pairs) -> Tensor:
        """(B, n) of pairs; 0 or less for those that are none."""
        return found.scores
