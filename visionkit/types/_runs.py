"""Run-length encodings of single masks: from a crop to runs and back, without a bitmap of the whole image.

The runs go down the columns of the image and alternate between background and object, beginning with background. In the
compressed form each run is a group of characters that hold five bits each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

_MAX_CHARACTERS = 12  # of one run: 60 bits


def crop_to_runs(mask: np.ndarray, left: int, top: int, height: int, width: int) -> np.ndarray:
    """Run lengths of an image that is zero except for one crop.

    Args:
        mask: (h, w) bool or uint8 of 0 and 1.
        left, top: position of the crop's first pixel in the image.
        height, width: size of the image in pixels.

    Raises:
        ValueError: the crop does not lie inside the image.
    """
    h, w = mask.shape
    if left < 0 or top < 0 or left + w > width or top + h > height:
        raise ValueError(f"a crop of {w}x{h} pixels at ({left}, {top}) does not lie in an image of {width}x{height}")
    # A crop that is lower than the image gets one empty row, so that no run passes from one column into the next.
    step = h if h == height else h + 1
    columns = np.zeros(w * step + 2, dtype=bool)  # and a zero at either end, so that every run has a start and an end
    columns[1:-1].reshape(w, step)[:, :h] = mask.T
    edges = np.flatnonzero(columns[1:] != columns[:-1])
    if h != height:
        column, row = np.divmod(edges, step)
        edges = (column + left) * height + row + top
    else:
        edges += left * height
    bounds = np.concatenate(([0], edges, [height * width]))
    runs = bounds[1:] - bounds[:-1]
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def crop_of_rle(rle: Mapping[str, Any]) -> tuple[int, int, np.ndarray]:
    """Left and top of the smallest window that holds the object, and its pixels (h, w) uint8 of 0 and 1.

    Only the columns that the object covers are decoded. An empty mask has a window of 0 x 0 pixels.

    Args:
        rle: ``size`` (height, width), and ``counts`` as run lengths or in the compressed form (string or bytes).

    Raises:
        ValueError: the runs are negative or do not add up to the size, or the compressed form is damaged.
    """
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    runs = np.array(counts, np.int64) if isinstance(counts, list | np.ndarray) else _decompress(counts)
    ends = np.cumsum(runs)
    total = int(ends[-1]) if len(runs) else 0
    if total != height * width or bool((runs < 0).any()):
        raise ValueError(f"run lengths add up to {total}, not to {height} x {width} = {height * width}")
    first, last = ends[: len(runs) - 1 : 2], ends[1::2]  # of the object's runs
    covered = last > first
    first, last = first[covered], last[covered]
    if not len(first):
        return 0, 0, np.zeros((0, 0), np.uint8)
    left, right = int(first[0]) // height, (int(last[-1]) - 1) // height + 1
    steps = np.zeros((right - left) * height + 1, np.int8)
    steps[first - left * height] += 1
    steps[last - left * height] -= 1
    columns = np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8).reshape(right - left, height)
    top, _, h, _ = cv2.boundingRect(columns)
    return left, top, columns[:, top : top + h].T


def _decompress(counts: str | bytes) -> np.ndarray:
    """Run lengths (n,) int64. From the fourth on, a run is stored as the difference from the one two places before."""
    text = counts.encode() if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 0x20) == 0)
    starts = np.concatenate(([0], ends + 1))[: len(ends)]
    lengths = ends - starts + 1
    if lengths.sum() != len(codes) or bool((codes < 0).any()) or bool((lengths > _MAX_CHARACTERS).any()):
        raise ValueError(f"compressed run lengths are damaged: {text[:40]!r}")
    if not len(ends):
        return np.zeros(0, np.int64)
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 0x1F) << shifts, starts)
    runs -= np.where(codes[ends] & 0x10, np.int64(1) << 5 * lengths, 0)  # the last character holds the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
