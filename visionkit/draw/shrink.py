"""Predictions and targets of large images, scaled down to the size that they are drawn at."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.rle import crop_of_rle
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
Crop = tuple[int, int, np.ndarray]


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
                corners = out.masks.windows[:, :2].tolist()
                crops = ((*corner, crop.cpu().numpy()) for corner, crop in zip(corners, out.masks.crops()))
                out.masks = _smaller(crops, after, x, y)
        if isinstance(out, MaskPrediction):
            out.rles = [rle for rle in _smaller(map(crop_of_rle, out.rles), after, x, y).to_rles() if rle is not None]
        if isinstance(out, InstanceTarget | KeypointPrediction) and out.keypoints is not None:
            out.keypoints = out.keypoints * out.keypoints.new_tensor((x, y, 1))
    return out


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (((torch.arange(n) + 0.5) * (m / n)).long() for n, m in zip(size, values.shape))
    return values.cpu()[rows][:, columns]


def _smaller(crops: Iterable[Crop], size: tuple[int, int], x: float, y: float) -> InstanceMasks:
    """Masks as left, top and pixels of each, only one of which is needed at full size at a time."""
    return InstanceMasks.from_crops((_smaller_crop(*crop, size, x, y) for crop in crops), size)


def _smaller_crop(left: int, top: int, crop: np.ndarray, size: tuple[int, int], x: float, y: float) -> Crop:
    height, width = crop.shape
    if not crop.size:
        return 0, 0, crop
    new = max(1, round(width * x)), max(1, round(height * y))
    # Two pixels for one of the drawing are enough to average over.
    few = crop[:: max(1, int(0.5 / y)), :: max(1, int(0.5 / x))] * np.uint8(255)
    bitmap = cv2.resize(np.ascontiguousarray(few), new, interpolation=cv2.INTER_AREA) >= 96
    left, top = min(round(left * x), size[1] - 1), min(round(top * y), size[0] - 1)
    return left, top, bitmap[: size[0] - top, : size[1] - left].astype(np.uint8)
