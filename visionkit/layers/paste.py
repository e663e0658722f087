"""Mask probabilities of boxes, put into the image at full size: only the box is ever resized, encoded or kept."""

from __future__ import annotations

import math

import cv2
import numpy as np
from torch import Tensor

from visionkit.rle import RLE, encode_crops


def paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5, *, exact: bool = False
) -> list[RLE]:
    """Masks as run lengths of the full image, with the pixels of torchvision's ``paste_masks_in_image``.

    Its convention: the mask gets a border of one empty cell, the box grows by (M + 2) / M about its centre, its corners
    are cut to whole numbers, and the mask is resized to ``right - left + 1`` by ``bottom - top + 1`` pixels with linear
    interpolation (``align_corners=False``).

    With ``exact`` nothing is cut: the mask is read at the centre of each pixel, by linear interpolation between the
    centres of its cells, and is 0 outside of them (detectron2's ``paste_masks_in_image``).

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        height, width: of the image in pixels.
        threshold: the object is where the probability is greater (with ``exact``: or equal).
        exact: as said.
    """
    if not len(masks):
        return []
    if exact:
        return _paste_exactly(masks, boxes, height, width, threshold)
    size = masks.shape[-1]
    padded = np.pad(masks.detach().float().cpu().numpy(), ((0, 0), (1, 1), (1, 1)))
    crops, corners = [], []
    for mask, (left, top, right, bottom) in zip(padded, _grow(boxes, (size + 2) / size)):
        w, h = max(right - left + 1, 1), max(bottom - top + 1, 1)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right + 1, width), min(bottom + 1, height)
        if x0 >= x1 or y0 >= y1:
            crops.append(np.zeros((0, 0), bool))
            corners.append((0, 0))
            continue
        resized = cv2.resize(mask, (w, h), interpolation=cv2.INTER_LINEAR)
        crops.append(resized[y0 - top : y1 - top, x0 - left : x1 - left] > threshold)
        corners.append((x0, y0))
    return encode_crops(crops, corners, height, width)


def _paste_exactly(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> list[RLE]:
    crops, corners = [], []
    for mask, (left, top, right, bottom) in zip(masks.detach().float().cpu().numpy(), boxes.detach().cpu().tolist()):
        x0, columns = _readers(left, right, width, mask.shape[1])
        y0, rows = _readers(top, bottom, height, mask.shape[0])
        crops.append(rows @ mask @ columns.T >= threshold)
        corners.append((x0, y0))
    return encode_crops(crops, corners, height, width)


def _readers(low: float, high: float, pixels: int, cells: int) -> tuple[int, np.ndarray]:
    """The first pixel that lies on cells spread over ``low`` ... ``high``, and from it on the weights of those cells
    at each pixel's centre: (n, cells) float32."""
    cell = (high - low) / cells
    if cell <= 0:
        return 0, np.zeros((0, cells), np.float32)
    first, end = max(math.floor(low - cell / 2), 0), min(math.ceil(high + cell / 2), pixels)
    centres = (np.arange(first, max(first, end)) + 0.5 - low) / cell - 0.5
    weights = 1 - np.abs(centres[:, None] - np.arange(cells))
    return min(first, pixels), np.maximum(weights, 0).astype(np.float32)


def _grow(boxes: Tensor, scale: float) -> list[list[int]]:
    """Boxes grown about their centres, cut to whole numbers; in float32 and in this order, as torchvision has it."""
    left, top, right, bottom = boxes.detach().float().cpu().unbind(1)
    half_w, half_h = (right - left) * 0.5 * scale, (bottom - top) * 0.5 * scale
    x, y = (right + left) * 0.5, (bottom + top) * 0.5
    return [list(map(int, box)) for box in zip(*(t.tolist() for t in (x - half_w, y - half_h, x + half_w, y + half_h)))]
