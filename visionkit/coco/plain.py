"""Results files that hold exactly what other tools expect, told without keeping what is in them.

Such files can be handed to an evaluator that reads them itself, and faster. For all others,
:mod:`visionkit.coco.results` says what is wrong, or makes columns of what is unusual.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from visionkit.coco.annotations import CocoAnnotations
from visionkit.coco.results import ResultType
from visionkit.coco.run_lengths import measure
from visionkit.coco.segmentation import RLE
from visionkit.coco.values import no_garbage_collection, read_bytes, same_id

_NUMBERS = b"0123456789+-.eE, \t\r\n"


class _Box(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    image_id: int
    category_id: int
    score: float
    bbox: tuple[float, float, float, float]


class _Mask(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    image_id: int
    category_id: int
    score: float
    segmentation: RLE


class _Keypoints(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    image_id: int
    category_id: int
    score: float
    keypoints: msgspec.Raw


_DECODERS: dict[str, msgspec.json.Decoder] = {
    "bbox": msgspec.json.Decoder(list[_Box]),
    "segm": msgspec.json.Decoder(list[_Mask]),
    "keypoints": msgspec.json.Decoder(list[_Keypoints]),
}


def is_plain(path: str | Path, truth: CocoAnnotations, type: ResultType) -> bool:
    """Whether a results file is well typed, has no other fields, and fits the ground truth.

    Raises:
        DataError: the file cannot be read.
    """
    data = read_bytes(path)
    with no_garbage_collection():
        try:
            entries = _DECODERS[type].decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return False
        images = {entry.image_id for entry in entries}
        categories = {entry.category_id for entry in entries}
        known = {same_id(category.id) for category in truth.categories}
        if not entries or not images <= truth.images.row.keys() or not categories <= known:
            return False
        if type == "segm":
            return _masks_fit(entries, truth)
        return type == "bbox" or _keypoints_fit(entries, truth)


def _masks_fit(entries: Sequence[_Mask], truth: CocoAnnotations) -> bool:
    """Whether all masks are compressed, and have the size of their image."""
    masks = [entry.segmentation for entry in entries]
    expected = truth.images.sizes
    if len(np.unique(expected, axis=0)) > 1:
        expected = expected[[truth.images.row[entry.image_id] for entry in entries]]
    else:
        expected = expected[:1]
    sizes = np.fromiter(chain.from_iterable([mask.size for mask in masks]), np.int64, 2 * len(masks)).reshape(-1, 2)
    if (sizes != expected).any():
        return False
    try:
        totals, _ = measure([mask.counts.encode("ascii") for mask in masks])  # type: ignore[union-attr]
    except (AttributeError, UnicodeEncodeError):  # a list of run lengths, or no run lengths
        return False
    return bool((totals == expected.prod(1)).all())


def _keypoints_fit(entries: Sequence[_Keypoints], truth: CocoAnnotations) -> bool:
    """Whether all lists consist of three numbers per keypoint; told from their text, as numbers take long to make."""
    if any(len(category.keypoints) not in (0, len(truth.keypoint_names)) for category in truth.categories):
        return False
    texts: list[Any] = [bytes(entry.keypoints) for entry in entries]
    commas = 3 * len(truth.keypoint_names) - 1
    return {text.count(b",") for text in texts} == {commas} and b"".join(texts).translate(
        None, _NUMBERS
    ) == b"[]" * len(texts)
