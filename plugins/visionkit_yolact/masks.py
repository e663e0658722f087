"""Masks from prototypes: assembled on the prototypes' grid, cropped to a box, put into the original image."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.layers.rle import RLE, encode_crops
from visionkit.layers.semantic import resample
from visionkit.types import ImageInfo


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


def on_grid(masks: Tensor, grid: tuple[int, int], cell: tuple[float, float]) -> Tensor:
    """Masks (N, H, W) of 0 and 1 on a coarser grid, (N, rows, columns) bool: interpolated, and set above one half.

    Args:
        grid: rows and columns.
        cell: height and width of a cell in pixels.
    """
    if not len(masks):
        return masks.new_zeros(0, *grid, dtype=torch.bool)
    return resample(masks[:, None].float(), grid, (1 / cell[0], 1 / cell[1]))[:, 0] > 0.5


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
    height, width = info.original_size
    rim = boxes.new_tensor((-2 * cell[1], -2 * cell[0], 2 * cell[1], 2 * cell[0]))
    windows = info.boxes_to_original(boxes + rim).tolist()
    crops, corners = [], []
    for mask, (left, top, right, bottom) in zip(masks.detach().float().cpu(), windows):
        x, y = (math.floor(left), math.ceil(right)), (math.floor(top), math.ceil(bottom))
        crops.append(_crop(mask, x, y, cell, info) if x[0] < x[1] and y[0] < y[1] else np.zeros((0, 0), bool))
        corners.append((x[0], y[0]) if crops[-1].size else (0, 0))
    return encode_crops(crops, corners, height, width)


def _crop(
    mask: Tensor, x: tuple[int, int], y: tuple[int, int], cell: tuple[float, float], info: ImageInfo
) -> np.ndarray:
    """The mask (h, w) over the original pixels x[0] ... x[1] - 1 and y[0] ... y[1] - 1, as bool."""
    a, b, tx, c, d, ty = info.affine
    columns, rows = torch.arange(*x) + 0.5, torch.arange(*y) + 0.5
    if b == c == 0:
        part = _lerp(mask, (rows * d + ty) / cell[0])
        part = _lerp(part.T, (columns * a + tx) / cell[1]).T
    else:  # turned or sheared
        rows = rows[:, None]
        u = (columns * a + rows * b + tx) / (cell[1] * mask.shape[1])
        v = (columns * c + rows * d + ty) / (cell[0] * mask.shape[0])
        places = torch.stack((u, v), -1)[None] * 2 - 1
        part = F.grid_sample(mask[None, None], places, padding_mode="border", align_corners=False)[0, 0]
    return (part > 0.5).numpy()


def _lerp(values: Tensor, places: Tensor) -> Tensor:
    """``values`` (n, ...) between their rows, at ``places`` (m,), where row i has its centre at i + 0.5: (m, ...)."""
    places = (places - 0.5).clamp(0, len(values) - 1)
    low = places.long()
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], (places - low)[:, None])
