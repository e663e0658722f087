"""CenterNet of triplets (Duan et al., ICCV 2019): a pair of corners counts if there is a centre in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from visionkit.layers.heatmaps import RadiusFormula
from visionkit.numbers import NonNegative, OddPositive, OpenFraction, Positive, PositiveFloat, PositiveFraction
from visionkit.types import FeatureSpec, LabelSet
from visionkit_points.cornernet import CornerNet
from visionkit_points.corners import Pairs, PointMaps, decode_points


class CenterNetTriplet(CornerNet):
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

    cascade = True
    spread: ClassVar[Mapping[str, float]] = {"tl": 6.0, "br": 6.0, "ct": 5.0}  # the authors' centres are a little wider

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("stack1", "stack2"),
        hidden: Positive = 128,
        overlap: OpenFraction = 0.7,
        radius: RadiusFormula = "original",
        weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 0.1, 0.1, 1.0),
        points: Positive = 70,
        peak: OddPositive = 3,
        distance: PositiveFloat = 0.5,
        pairs: Positive = 1000,
        large: PositiveFloat = 150.0,
        nms: NonNegative = 0.5,
        detections: Positive = 100,
        region_iou: PositiveFraction = 0.5,
    ) -> None:
        super().__init__(
            spec,
            labels,
            levels=levels,
            hidden=hidden,
            overlap=overlap,
            radius=radius,
            weights=weights,
            corners=points,
            peak=peak,
            distance=distance,
            pairs=pairs,
            nms=nms,
            detections=detections,
            region_iou=region_iou,
        )
        widths = [spec[level].channels for level in levels]
        self.centre = nn.ModuleList(PointMaps(width, hidden, len(labels), "ct") for width in widths)
        self.large = large

    def branches(self) -> list[nn.ModuleList]:
        return [*super().branches(), self.centre]

    def scores(self, maps: Mapping[str, Tensor], found: Pairs) -> Tensor:
        """Those of :func:`confirm`."""
        centres, scores, labels, _ = decode_points(maps, "ct", self.corners, self.peak)
        boxes, centres = found.boxes * self.stride, centres * self.stride
        return confirm(boxes, found.scores, found.labels, centres, scores, labels, self.large)


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
