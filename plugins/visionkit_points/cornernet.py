"""CornerNet (Law & Deng, ECCV 2018): an object is a pair of corners whose embeddings agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.layers.heatmaps import RadiusFormula
from visionkit.types import Batch, BoxPrediction, Detections, Features, FeatureSpec, InstanceTarget, LabelSet, Mean
from visionkit_points.centernet import stack_mean
from visionkit_points.corners import PointMaps, decode_pairs, point_losses, points_of, thin_out
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
    makes = BoxPrediction
    output = PointOutput
    loss_names = ("heat", "pull", "push", "offset")
    evaluators = ("coco_bbox",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("stack1", "stack2"),
        hidden: int = 128,
        overlap: float = 0.3,
        radius: RadiusFormula = "corrected",
        weights: tuple[float, float, float, float] = (1.0, 0.1, 0.1, 1.0),
        corners: int = 100,
        peak: int = 3,
        distance: float = 0.5,
        pairs: int = 1000,
        nms: float = 0.5,
        detections: int = 100,
        region_iou: float = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        self.levels, self.stride = tuple(levels), stride_of(spec, levels)
        widths = [spec[level].channels for level in levels]
        self.top_left = nn.ModuleList(PointMaps(width, hidden, len(labels), "tl") for width in widths)
        self.bottom_right = nn.ModuleList(PointMaps(width, hidden, len(labels), "br") for width in widths)
        self.overlap, self.radius = overlap, radius
        self.weights = dict(zip(self.loss_names, weights))
        self.corners, self.peak, self.distance, self.pairs = corners, peak, distance, pairs
        self.nms, self.max_detections, self.region_iou = nms, detections, region_iou

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PointOutput:
        stacks = [
            {**first(features[level]), **second(features[level])}
            for level, first, second in zip(self.levels, self.top_left, self.bottom_right)
        ]
        return PointOutput.of(self, stacks, batch)

    def losses(self, output: PointOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        shape = tuple(output.stacks[0]["tl_heat"].shape[1:])
        aim = points_of(batch.targets, self.stride, shape, self.overlap, self.radius, {"tl": 6.0, "br": 6.0})
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
        found = decode_pairs(output.stacks[-1], self.corners, peak=self.peak, distance=self.distance, most=self.pairs)
        inside = within(found.boxes * self.stride, found.scores, found.labels, output.info)
        return [thin_out(boxes, self.nms, self.max_detections) for boxes in inside]
