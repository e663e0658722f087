"""CenterNet of triplets (Duan et al., ICCV 2019): a pair of corners counts if there is a centre in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.layers.heatmaps import RadiusFormula
from visionkit.types import Batch, BoxPrediction, Detections, Features, FeatureSpec, InstanceTarget, LabelSet, Mean
from visionkit_points.centernet import stack_mean
from visionkit_points.corners import PointMaps, decode_pairs, decode_points, point_losses, points_of, thin_out
from visionkit_points.maps import stride_of
from visionkit_points.output import PointOutput, within


class CenterNetTriplet(Head):
    """Corners that look inwards (cascade corner pooling), and centres (centre pooling) that confirm them.

    Losses and decoding are those of the paper and the authors' code, in one pass, without the mirrored image that they
    add in their test. The heatmap's loss is divided by the objects, as in the paper.

    Args:
        levels: the output of each stack of an hourglass, or one level; all are supervised, the last one predicts.
        hidden: width of what is pooled.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        weights: of the losses of heatmap, pull, push and offset.
        points: the best so many of each kind are looked at.
        peak: side of the neighbourhood that a point is the largest of.
        distance: the most by which embeddings of a pair differ.
        pairs: the best so many are looked at.
        large: side in input pixels of a square; a box of a larger area has the narrower central region.
        nms: width of the Gaussian of soft-NMS; 0 for none.
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
        overlap: float = 0.7,
        radius: RadiusFormula = "original",
        weights: tuple[float, float, float, float] = (1.0, 0.1, 0.1, 1.0),
        points: int = 70,
        peak: int = 3,
        distance: float = 0.5,
        pairs: int = 1000,
        large: float = 150.0,
        nms: float = 0.5,
        detections: int = 100,
        region_iou: float = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        self.levels, self.stride = tuple(levels), stride_of(spec, levels)
        widths, classes = [spec[level].channels for level in levels], len(labels)
        self.top_left = nn.ModuleList(PointMaps(width, hidden, classes, "tl", cascade=True) for width in widths)
        self.bottom_right = nn.ModuleList(PointMaps(width, hidden, classes, "br", cascade=True) for width in widths)
        self.centre = nn.ModuleList(PointMaps(width, hidden, classes, "ct") for width in widths)
        self.overlap, self.radius = overlap, radius
        self.weights = dict(zip(self.loss_names, weights))
        self.points, self.peak, self.distance, self.pairs, self.large = points, peak, distance, pairs, large
        self.nms, self.max_detections, self.region_iou = nms, detections, region_iou

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PointOutput:
        stacks = []
        for level, *kinds in zip(self.levels, self.top_left, self.bottom_right, self.centre):
            stacks.append({name: values for maps in kinds for name, values in maps(features[level]).items()})
        return PointOutput.of(self, stacks, batch)

    def losses(self, output: PointOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        shape = tuple(output.stacks[0]["tl_heat"].shape[1:])
        sigmas = {"tl": 6.0, "br": 6.0, "ct": 5.0}  # the authors' centres are a little wider
        aim = points_of(batch.targets, self.stride, shape, self.overlap, self.radius, sigmas)
        return stack_mean([point_losses(maps, aim) for maps in output.stacks], self.weights)

    @torch.no_grad()
    def predict(self, output: PointOutput, batch: Batch) -> list[BoxPrediction]:
        return [
            BoxPrediction(info.boxes_to_original(found.boxes), found.scores, found.labels)
            for info, found in zip(batch.info, output.detections())
        ]

    @torch.no_grad()
    def detect(self, output: PointOutput) -> list[Detections]:
        """Pairs of corners of the last stack that a centre confirms, within the image, after soft-NMS."""
        maps = output.stacks[-1]
        found = decode_pairs(maps, self.points, peak=self.peak, distance=self.distance, most=self.pairs)
        centres, scores, labels, _ = decode_points(maps, "ct", self.points, self.peak)
        boxes = found.boxes * self.stride
        confirmed = confirm(boxes, found.scores, found.labels, centres * self.stride, scores, labels, self.large)
        inside = within(boxes, confirmed, found.labels, output.info)
        return [thin_out(own, self.nms, self.max_detections) for own in inside]


def confirm(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    centres: Tensor,
    centre_scores: Tensor,
    centre_labels: Tensor,
    large: float = 150.0,
) -> Tensor:
    """New scores (B, n) of boxes: two thirds of their own and one of the best centre of their class in their middle.

    The middle is the inner third of a box, or the inner fifth of one whose area is above ``large`` squared (section
    3.2); what lies on its edge is outside. Where there is no centre, the score is -1.

    Args:
        boxes, scores, labels: (B, n, 4), (B, n), (B, n), in pixels.
        centres, centre_scores, centre_labels: (B, m, 2), (B, m), (B, m), best first.
        large: see above.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low
    parts = torch.where(size.prod(2) > large**2, 5.0, 3.0)[..., None]
    inset = size * ((parts - 1) / 2) / parts
    inner = (centres[:, None] > (low + inset)[:, :, None]) & (centres[:, None] < (high - inset)[:, :, None])
    hit = inner.all(3) & (labels[:, :, None] == centre_labels[:, None])
    best = centre_scores.gather(1, hit.int().argmax(2))  # the first one that hits
    return torch.where(hit.any(2) & (scores >= 0), (2 * scores + best) / 3, -1.0)
