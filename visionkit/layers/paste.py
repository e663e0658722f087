"""Mask probabilities of boxes, put into the image at full size: only the box is ever resized, encoded or kept."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from visionkit.layers.rle import RLE, encode_crops


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> list[RLE]:
    """Masks as run lengths of the full image, with the pixels of torchvision's ``paste_masks_in_image``.

    Its convention: the mask gets a border of one empty cell, the box grows by (M + 2) / M about its centre, its corners
    are cut to whole numbers, and the mask is resized to ``right - left + 1`` by ``bottom - top + 1`` pixels with linear
    interpolation (``align_corners=False``).

    Args:
        masks: (N, M, M) probabilities.
        boxes: (N, 4) left, top, right, bottom in pixels of the image.
        height, width: of the image in pixels.
        threshold: the object is where the probability is greater.
    """
    if not len(masks):
        return []
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


def _grow(boxes: Tensor, scale: float) -> list[list[int]]:
    """Boxes grown about their centres, cut to whole numbers; in float32 and in this order, as torchvision has it."""
    left, top, right, bottom = boxes.detach().float().cpu().unbind(1)
    half_w, half_h = (right - left) * 0.5 * scale, (bottom - top) * 0.5 * scale
    x, y = (right + left) * 0.5, (bottom + top) * 0.5
    return [list(map(int, box)) for box in zip(*(t.tolist() for t in (x - half_w, y - half_h, x + half_w, y + half_h)))]
