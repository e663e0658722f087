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
