"""Run-length encodings of masks: ``{"size": [height, width], "counts": bytes}``, the form that COCO's tools read.

The runs go down the columns, beginning with zeros. The codec is pycocotools' own C code; what is added here is the way
from a crop to the encoding of the full image without a bitmap of that size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as codec

from visionkit.types._runs import crop_to_runs

RLE = dict[str, Any]


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
