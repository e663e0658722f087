"""Where the object lies whose keypoints are looked for: in a crop that shows it, or in a box of another head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visionkit.types import Batch, Detections, ImageInfo, InstanceTarget, KeypointPrediction, LabelSet, RegionOutput
from visionkit.types.device import constant, true_rows
from visionkit.types.outputs import samples_on


@dataclass(frozen=True)
class Learnt:
    """What keypoints are learnt from, one row an object.

    Attributes:
        rows: (n,) int64, the image of each.
        boxes: (n, 4) in input pixels, what is looked at.
        keypoints: (n, K, 3), x and y as shares of the box, 0 ... 1 inside it, and the visibility.
    """

    rows: Tensor
    boxes: Tensor
    keypoints: Tensor


@dataclass
class RatedKeypoints(KeypointPrediction):
    """Objects whose score is the product of two, and so is low where either is: half sure of both is 0.25."""

    drawn_from: ClassVar[float] = 0.2


def whole_images(info: Sequence[ImageInfo], like: Tensor) -> Tensor:
    """Boxes (B, 4) around all that is image, without the padding."""
    return constant([(0.0, 0.0, i.size[1], i.size[0]) for i in info], like, torch.float32)


def in_whole_images(batch: Batch[InstanceTarget], keypoints: int) -> Learnt:
    """The object that each image shows: of several with labelled keypoints, the largest."""
    candidates = [(row, t, t.keypoints) for row, t in enumerate(batch.targets) if t.keypoints is not None]
    labelled = [~t.crowd & (points[..., 2] > 0).any(1) for _, t, points in candidates]
    rows, found = [], []
    for (row, target, points), own, index in zip(candidates, labelled, true_rows(labelled)):
        if len(index):
            rows.append(row)
            found.append(points[torch.where(own, target.areas, -1.0).argmax()[None]])
    boxes = whole_images([batch.info[row] for row in rows], batch.images).reshape(-1, 4)
    points = torch.cat(found) if found else batch.images.new_zeros(0, keypoints, 3)
    return Learnt(constant(rows, boxes, torch.int64), boxes, shares(points.float(), boxes))


def in_regions(regions: RegionOutput, batch: Batch[InstanceTarget], keypoints: int, padding: float) -> Learnt:
    """The regions to learn from that lie on an object of which any keypoint is labelled."""
    rows, boxes, found = [], [], []
    labelled = [
        torch.zeros_like(t.crowd) if t.keypoints is None else (t.keypoints[..., 2] > 0).any(1) for t in batch.targets
    ]
    samples = samples_on(regions.samples(batch.targets), labelled)
    for row, (mine, target) in enumerate(zip(samples, batch.targets)):
        if target.keypoints is None:
            continue
        rows.append(torch.full_like(mine.matched, row))
        boxes.append(padded(mine.boxes, padding))
        found.append(target.keypoints[mine.matched])
    if not rows:
        none = batch.images.new_zeros(0, 4)
        return Learnt(none[:, 0].long(), none, batch.images.new_zeros(0, keypoints, 3))
    return Learnt(torch.cat(rows), torch.cat(boxes), shares(torch.cat(found), torch.cat(boxes)))


def padded(boxes: Tensor, factor: float) -> Tensor:
    """Boxes (n, 4) of the same middle and so many times the size."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (factor / 2)
    return torch.cat((middle - half, middle + half), 1)


def shares(keypoints: Tensor, boxes: Tensor) -> Tensor:
    """Keypoints (n, K, 3) in pixels as shares of their boxes (n, 4); the visibility stays."""
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)[:, None]
    return torch.cat(((keypoints[..., :2] - boxes[:, None, :2]) / sides, keypoints[..., 2:]), -1)


def pixels(points: Tensor, boxes: Tensor) -> Tensor:
    """Shares (n, K, 2) of boxes (n, 4) as pixels."""
    return points * (boxes[:, 2:] - boxes[:, :2])[:, None] + boxes[:, None, :2]


def mirrored_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes (n, 4) in the mirror image of an image so wide."""
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)


def of_crops(batch: Batch, points: Tensor, scores: Tensor, labels: LabelSet, floor: float) -> list[KeypointPrediction]:
    """One object an image: that of its crop, or what the whole image shows.

    Args:
        points: (B, K, 2) in input pixels.
        scores: (B, K) of the keypoints.
        labels: of the head.
        floor: keypoints that score no more do not count for the score of the object.
    """
    whole = whole_images(batch.info, points)
    made: list[KeypointPrediction] = []
    for row, info in enumerate(batch.info):
        box, label, score = info.boxes_to_original(whole[row : row + 1]), 0, 1.0
        if info.crop is not None:
            box, score = constant([info.crop.box], box), info.crop.score
            label = labels.names.index(info.crop.name) if info.crop.name in labels.names else 0
        found = Detections(box, box.new_full((1,), score), torch.full((1,), label, device=box.device))
        made.append(prediction(info, found, box, points[row : row + 1], scores[row : row + 1], floor))
    return made


def prediction(
    info: ImageInfo, found: Detections, boxes: Tensor, points: Tensor, scores: Tensor, floor: float
) -> RatedKeypoints:
    """Objects of one image, best first: the score of a box times the mean score of its keypoints (Xiao et al., ECCV
    2018, section 3.2).

    Args:
        found: their scores and labels.
        boxes: (n, 4) in the original image.
        points, scores: (n, K, 2) in input pixels and (n, K).
        floor: as in :func:`of_crops`.
    """
    counted = scores > floor
    mean = (scores * counted).sum(1) / counted.sum(1).clamp(min=1)
    total = (found.scores * mean).clamp(0, 1)
    order = total.argsort(descending=True, stable=True)
    keypoints = torch.cat((info.points_to_original(points), scores[..., None]), -1)
    return RatedKeypoints(boxes[order], total[order], found.labels[order], keypoints[order])
