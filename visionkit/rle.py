"""Run-length encodings of masks: ``{"size": [height, width], "counts": bytes}``, the form that COCO's tools read.

The runs go down the columns, beginning with zeros. The codec is pycocotools' own C code; what is added here is the way
from a crop to the encoding of the full image without a bitmap of that size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as codec

RLE = dict[str, Any]
_MAX_CHARACTERS = 12  # of one run in the compressed form: 60 bits


def encode(mask: np.ndarray) -> RLE:
    """The encoding of a whole bitmap (H, W); anything but 0 is the object."""
    return codec.encode(np.asfortranarray(mask, dtype=bool).view(np.uint8))


def encode_crop(mask: np.ndarray, left: int, top: int, height: int, width: int) -> RLE:
    """The encoding of an image that is zero but for one crop: equal to :func:`encode` of the pasted bitmap.

    Args:
        mask: (h, w) bool or uint8 of 0 and 1.
        left, top: where the crop's first pixel lies in the image.
        height, width: size of the image in pixels.

    Raises:
        ValueError: the crop does not lie inside the image.
    """
    return encode_crops([mask], [(left, top)], height, width)[0]


def encode_crops(masks: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], height: int, width: int) -> list[RLE]:
    """:func:`encode_crop` of many crops of one image; ``corners`` holds (left, top) of each."""
    runs = [crop_to_runs(m, left, top, height, width) for m, (left, top) in zip(masks, corners, strict=True)]
    return codec.frPyObjects([{"size": [height, width], "counts": r} for r in runs], height, width) if runs else []


def empty(height: int, width: int) -> RLE:
    """The encoding of an image without the object."""
    return codec.frPyObjects([{"size": [height, width], "counts": [height * width]}], height, width)[0]


def box_mask(box: Sequence[float], height: int, width: int) -> RLE:
    """The encoding of a box ``[left, top, width, height]`` in pixels, as COCO rasterizes it."""
    left, top, w, h = box
    right, bottom = min(max(left + w, 0), width), min(max(top + h, 0), height)
    left, top = min(max(left, 0), width), min(max(top, 0), height)
    return from_polygons([[left, top, right, top, right, bottom, left, bottom]], height, width)


def decode(rle: Mapping[str, Any]) -> np.ndarray:
    """(H, W) uint8 of 0 and 1; ``counts`` may be bytes, a string, or a list of run lengths."""
    return codec.decode([from_uncompressed(rle) if isinstance(rle["counts"], list) else rle])[:, :, 0]


def from_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> RLE:
    """The union of polygons ``[x0, y0, x1, y1, ...]`` in pixels, rasterised as COCO does (not as OpenCV does).

    Raises:
        ValueError: a polygon has fewer than three points or an odd number of coordinates.
    """
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:  # four numbers would silently be read as a box
            raise ValueError(f"a polygon needs three or more x, y pairs, not {len(polygon)} numbers")
    return (
        codec.merge(codec.frPyObjects(list(map(list, polygons)), height, width)) if polygons else empty(height, width)
    )


def from_uncompressed(rle: Mapping[str, Any]) -> RLE:
    """The compressed form of an encoding whose ``counts`` are a list of run lengths.

    Raises:
        ValueError: the runs do not add up to the size.
    """
    height, width = rle["size"]
    if (total := int(sum(rle["counts"]))) != height * width:
        raise ValueError(f"run lengths add up to {total}, not to {height} x {width} = {height * width}")
    return codec.frPyObjects([dict(rle)], height, width)[0]


def from_segmentation(segmentation: Any, height: int, width: int) -> RLE:
    """Whatever COCO's ``segmentation`` holds: polygons, run lengths, or the compressed form (string or bytes)."""
    if isinstance(segmentation, list):
        return from_polygons(segmentation, height, width)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return from_uncompressed(segmentation)
    return {"size": list(segmentation["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}


def area(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N,) uint32 pixels of each mask."""
    # One at a time: pycocotools 2.0.11 overflows on more than 255 at once.
    return np.array([codec.area([rle])[0] for rle in rles], np.uint32)


def to_boxes(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(N, 4) float64 left, top, right, bottom in pixels of each mask; zeros where it is empty."""
    boxes = codec.toBbox(list(rles)) if rles else np.zeros((0, 4))
    boxes[:, 2:] += boxes[:, :2]
    return boxes


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
    rows = np.flatnonzero(columns.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return left, top, columns[:, top:bottom].T


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
