"""Masks from prototypes: assembled on the prototypes' grid, cropped to a box, put into the original image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.layers.semantic import resample
from visionkit.rle import RLE, encode_crops
from visionkit.types import ImageInfo, InstanceMasks
from visionkit.types.device import on_host


def assemble(prototypes: Tensor, coefficients: Tensor) -> Tensor:
    """Mask logits (n, h, w): prototypes (K, h, w) in the proportions of coefficients (n, K); equation 1."""
    return (coefficients @ prototypes.flatten(1)).view(-1, *prototypes.shape[1:])


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, height, width) bool: the cells of each box (n, 4), in cells, and of a rim of one cell around it."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= left - 1) & (x < right + 1)
    rows = (y >= top - 1) & (y < bottom + 1)
    return rows[:, :, None] & columns[:, None]


def on_grid(masks: InstanceMasks, grid: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """Masks on a coarser grid, (N, rows, columns) bool: interpolated bilinearly, and set above one half.

    Args:
        grid: rows and columns.
        cell: height and width of a cell in pixels.
    """
    out = torch.zeros(len(masks), *grid, dtype=torch.bool, device=masks.data.device)
    for part, pixels in masks.dense_chunks(torch.float32):
        out[part] = resample(pixels[:, None], grid, (1 / cell[0], 1 / cell[1]))[:, 0] > 0.5
    return out


def to_original(masks: Tensor, boxes: Tensor, cell: tuple[float, float], info: ImageInfo) -> list[RLE]:
    """Cropped masks as run lengths of the original image.

    Resampled bilinearly (``align_corners=False``), and set where they are above one half. Only the region of the box is
    ever looked at.

    Args:
        masks: (n, h, w) probabilities of just the image, without padding; 0 beyond their box.
        boxes: (n, 4) in input pixels.
        cell: height and width of a mask's cell in input pixels.
        info: of the image.
    """
    a, b, tx, c, d, ty = info.affine
    height, width = info.original_size
    masks, boxes = on_host((masks.detach().float(), boxes))
    values = masks.numpy()
    rows, columns = _axis(height, d, ty, cell[0], values.shape[1]), _axis(width, a, tx, cell[1], values.shape[2])
    rim = boxes.new_tensor((-2 * cell[1], -2 * cell[0], 2 * cell[1], 2 * cell[0]))
    crops, corners = [], []
    for mask, (left, top, right, bottom) in zip(values, info.boxes_to_original(boxes + rim).tolist()):
        x, y = slice(math.floor(left), math.ceil(right)), slice(math.floor(top), math.ceil(bottom))
        if not (x.start < x.stop and y.start < y.stop):
            crops.append(np.zeros((0, 0), bool))
            corners.append((0, 0))
            continue
        if b == c == 0:
            part = _between(_between(mask, rows, y).T, columns, x).T
        else:
            part = _turned(mask, x, y, cell, info)
        crops.append(part > 0.5)
        corners.append((x.start, y.start))
    return encode_crops(crops, corners, height, width)


@dataclass(frozen=True)
class _Axis:
    """For every original row (or column): the cells on either side of its centre, and the share of the second."""

    low: np.ndarray
    high: np.ndarray
    share: np.ndarray


def _axis(length: int, scale: float, shift: float, cell: float, cells: int) -> _Axis:
    """Original places p lie at ``(scale p + shift) / cell``, where cell i has its centre at i + 0.5."""
    places = (((np.arange(length) + 0.5) * scale + shift) / cell - 0.5).clip(0, cells - 1)
    low = places.astype(np.int64)
    return _Axis(low, np.minimum(low + 1, cells - 1), (places - low).astype(np.float32)[:, None])


def _between(values: np.ndarray, axis: _Axis, part: slice) -> np.ndarray:
    """``values`` (cells, k) interpolated at one part of an axis: (length of the part, k)."""
    low = values[axis.low[part]]
    return low + (values[axis.high[part]] - low) * axis.share[part]


def _turned(mask: np.ndarray, x: slice, y: slice, cell: tuple[float, float], info: ImageInfo) -> np.ndarray:
    """A part of the original image where it was turned or sheared on its way into the batch."""
    a, b, tx, c, d, ty = info.affine
    columns, rows = torch.arange(x.start, x.stop) + 0.5, torch.arange(y.start, y.stop)[:, None] + 0.5
    u = (columns * a + rows * b + tx) / (cell[1] * mask.shape[1])
    v = (columns * c + rows * d + ty) / (cell[0] * mask.shape[0])
    places = torch.stack((u, v), -1)[None] * 2 - 1
    values = torch.from_numpy(mask)[None, None]
    return F.grid_sample(values, places, padding_mode="border", align_corners=False)[0, 0].numpy()
