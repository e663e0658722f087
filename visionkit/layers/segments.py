"""Maps of segment ids, as COCO's panoptic PNGs hold them. Imports no torch.

Such maps are runs of equal pixels, a hundred times fewer than pixels; what is looked up or counted is so for each run.
"""

from __future__ import annotations

import cv2
import numpy as np


def from_rgb(pixels: np.ndarray) -> np.ndarray:
    """(H, W) int32 ids, ``R + 256 G + 65536 B``, of pixels (H, W, 3) uint8 RGB."""
    if not pixels.size:
        return np.zeros(pixels.shape[:2], np.int32)
    four = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA)
    four[..., 3] = 0
    return four.view("<i4")[..., 0].astype(np.int32, copy=False)


def to_rgb(ids: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB pixels of ids (H, W) in 0 ... 2^24 - 1."""
    four = np.ascontiguousarray(ids, "<i4")[..., None].view(np.uint8)
    return np.ascontiguousarray(four[..., :3])


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of equal values (N,) begins, and how long it is: (R,) and (R,)."""
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))[: len(values)]
    return starts, np.diff(starts, append=len(values))


def positions(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """0 where a value is 0, ``i + 1`` where it is ``ids[i]``, -1 where it is anything else; of the shape of values."""
    known = np.concatenate(([0], ids))
    order = np.argsort(known, kind="stable")
    at = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
    return np.where(known[at] == values, at, -1)


def renumber(segments: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """A map (H, W) in which ``ids[i]`` became ``i + 1`` and any other id -1; 0 stays. int32."""
    flat = segments.ravel()
    starts, lengths = runs(flat)
    return np.repeat(positions(flat[starts], ids).astype(np.int32), lengths).reshape(segments.shape)


def count_pixels(segments: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(N,) int64 pixels of each of the ids (N,) in a map (H, W)."""
    flat = segments.ravel()
    starts, lengths = runs(flat)
    row = positions(flat[starts], ids)
    return np.bincount(row[row > 0], lengths[row > 0], minlength=len(ids) + 1)[1:].astype(np.int64)


def extents(segments: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Areas (N,) and boxes (N, 4) int64 of the segments 1 ... N of a map (H, W).

    A box is left, top, width and height in pixels; it is all zeros where a segment has no pixel.
    """
    height, width = segments.shape
    padded = np.zeros((height, width + 1), segments.dtype)  # so that no run passes from one row into the next
    padded[:, :width] = segments
    starts, lengths = runs(padded.ravel())
    label = padded.ravel()[starts]
    starts, lengths, label = starts[label > 0], lengths[label > 0], label[label > 0] - 1
    y, x = np.divmod(starts, width + 1)
    low = np.full((count, 2), max(height, width), np.int64)
    high = np.zeros((count, 2), np.int64)
    for axis, first, last in ((0, x, x + lengths), (1, y, y + 1)):
        np.minimum.at(low[:, axis], label, first)
        np.maximum.at(high[:, axis], label, last)
    areas = np.bincount(label, lengths, minlength=count).astype(np.int64)
    return areas, np.concatenate((low, high - low), 1) * (areas > 0)[:, None]
