"""The port of heads that find objects as points: boxes that further branches may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from visionkit.layers.boxes import labels_of, match
from visionkit.types import Batch, Detections, ImageInfo, InstanceTarget, LabelSet, RegionOutput, RegionSamples
from visionkit.types.device import constant, true_rows


class Detector(Protocol):
    """The head that an output asks for its boxes."""

    labels: LabelSet
    region_iou: float

    def detect(self, output: Any) -> list[Detections]:
        """Final boxes of each image."""


@dataclass
class PointOutput(RegionOutput):
    """Maps by name, for each stack.

    Attributes:
        head: works out the boxes.
        stacks: name -> (B, channels, h, w) float32, first stack first.
        info: one an image.
        found: boxes that were already worked out, one list an image; shared by every selection of rows.
    """

    head: Detector
    stacks: tuple[Mapping[str, Tensor], ...]
    info: list[ImageInfo]
    found: list[list[Detections]] = field(default_factory=list)

    @classmethod
    def of(cls, head: Detector, stacks: Sequence[Mapping[str, Tensor]], batch: Batch) -> Self:
        """The output of ``head`` for this batch."""
        return cls(head.labels, head, tuple(stacks), list(batch.info), [[] for _ in batch.info])

    def detections(self) -> list[Detections]:
        todo = [row for row, found in enumerate(self.found) if not found]
        if todo:
            part: PointOutput = self.rows(todo, len(self.found))
            for found, boxes in zip(part.found, self.head.detect(part)):
                found.append(boxes)
        return [found[0] for found in self.found]

    @torch.no_grad()
    def samples(self, targets: Sequence[InstanceTarget]) -> list[RegionSamples]:
        """The objects themselves and what was detected, each with the object that it lies on."""
        return [self._sample(found.boxes, target) for found, target in zip(self.detections(), targets)]

    def _sample(self, boxes: Tensor, target: InstanceTarget) -> RegionSamples:
        boxes = torch.cat((target.boxes[~target.crowd], boxes))
        iou = self.head.region_iou
        matched = match(boxes, target.boxes, target.crowd, low=iou, high=iou).clamp(min=-1)
        return RegionSamples(boxes, matched, labels_of(matched, target.labels))


def within(
    boxes: Tensor, scores: Tensor, labels: Tensor, info: Sequence[ImageInfo], floor: float = 0.0
) -> list[Detections]:
    """Detections of each image from boxes (B, n, 4) in input pixels, scores and labels (B, n).

    Boxes end at the image's edge; those of which nothing is left and those that score ``floor`` or less are dropped.
    """
    boxes = clipped(boxes, info)
    kept = (boxes[..., 2:] > boxes[..., :2]).all(2) & (scores > floor)
    return [Detections(boxes[i, k], scores[i, k], labels[i, k]) for i, k in enumerate(true_rows(kept.unbind()))]


def clipped(boxes: Tensor, info: Sequence[ImageInfo]) -> Tensor:
    """Boxes (B, n, 4) in input pixels that end at the true edge of their image."""
    edges = constant([(i.size[1], i.size[0]) * 2 for i in info], boxes)
    return torch.minimum(boxes.clamp(min=0), edges[:, None])
