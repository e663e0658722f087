"""Predictions and targets of large images, scaled down to the size that they are drawn at."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.types import (
    BoxPrediction,
    InstanceMasks,
    InstanceTarget,
    KeypointPrediction,
    MaskPrediction,
    PanopticPrediction,
    PanopticTarget,
    SemanticPrediction,
    SemanticTarget,
)

Item = TypeVar("Item")


def shrink(item: Item, before: tuple[int, int], after: tuple[int, int]) -> Item:
    """A copy of a prediction or target for an image that is drawn smaller.

    Args:
        item: of a type of the core, in pixels of the original image; not changed.
        before, after: (height, width) of the original image and of the smaller one.
    """
    if before == after:
        return item
    out = copy.copy(item)
    x, y = after[1] / before[1], after[0] / before[0]
    if isinstance(out, SemanticPrediction | SemanticTarget):
        out.labels = _nearest(out.labels, after)
    elif isinstance(out, PanopticPrediction | PanopticTarget):
        out.segments = _nearest(out.segments, after)
    elif isinstance(out, BoxPrediction | InstanceTarget):
        out.boxes = out.boxes * out.boxes.new_tensor((x, y, x, y))
        if isinstance(out, InstanceTarget):
            out.areas = out.areas * (x * y)
            if out.masks is not None:
                out.masks = _smaller((out.masks.select(torch.tensor([i])) for i in range(len(out))), after, x, y)
        if isinstance(out, MaskPrediction):
            one_by_one = (InstanceMasks.from_rles([rle], rle["size"]) for rle in out.rles)
            out.rles = [rle for rle in _smaller(one_by_one, after, x, y).to_rles() if rle is not None]
        if isinstance(out, InstanceTarget | KeypointPrediction) and out.keypoints is not None:
            out.keypoints = out.keypoints * out.keypoints.new_tensor((x, y, 1))
    return out


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip(size, values.shape))
    return values.cpu()[rows][:, columns]


def _smaller(masks: Iterator[InstanceMasks], size: tuple[int, int], x: float, y: float) -> InstanceMasks:
    """Masks, each of which comes alone, so that only one exists at full size."""
    return InstanceMasks.from_crops((_smaller_crop(mask, size, x, y) for mask in masks), size)


def _smaller_crop(mask: InstanceMasks, size: tuple[int, int], x: float, y: float) -> tuple[int, int, np.ndarray]:
    left, top, width, height = mask.windows[0].tolist()
    if not width:
        return 0, 0, np.zeros((0, 0), np.uint8)
    crop = next(iter(mask.crops())).cpu().numpy()
    new = max(1, round(width * x)), max(1, round(height * y))
    bitmap = cv2.resize(crop * np.uint8(255), new, interpolation=cv2.INTER_AREA) >= 96
    left, top = min(round(left * x), size[1] - 1), min(round(top * y), size[0] - 1)
    return left, top, bitmap[: size[0] - top, : size[1] - left].astype(np.uint8)
