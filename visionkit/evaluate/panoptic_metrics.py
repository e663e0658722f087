"""Panoptic quality (Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4). Imports no torch.

A segmentation is a map of segment ids, 0 where there is none (void), and the class of each id. All that the metric
needs to know of two maps is how many pixels each pair of ids shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from visionkit.errors import DataError
from visionkit.layers.segments import positions, runs

Counts = np.ndarray
"""(classes, 4) float64: true positives, false positives, false negatives, sum of the IoU of the true positives."""

STRIP = 2**20  # pixels that are compared at a time, which bounds the memory


@dataclass(frozen=True)
class Segments:
    """The segments of one image.

    Attributes:
        ids: (N,) integers above 0, as they stand in the map.
        labels: (N,) integers in 0 ... classes - 1.
        crowd: (N,) bool, regions of many objects that nobody told apart; ``None``: none is. Of truth only.
    """

    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray | None = None


def match(truth_map: np.ndarray, truth: Segments, found_map: np.ndarray, found: Segments, classes: int) -> Counts:
    """What one image adds to every class.

    A prediction and a truth of one class match where their IoU is above 0.5; the union leaves out what the prediction
    covers of void. Crowds are neither matched nor missed. A prediction without match is no false positive where more
    than half of it lies on void and on crowds of its class.

    Args:
        truth_map, found_map: (H, W) ids. Pixels of an id that ``truth`` does not hold are neither void nor a segment.
        truth, found: what the ids stand for.
        classes: how many there are.

    Returns:
        :data:`Counts`.

    Raises:
        DataError: the maps differ in size, or the predicted one has an id that ``found`` does not hold.
    """
    table = shared_pixels(truth_map, truth.ids, found_map, found.ids)
    void, shared = table[0, 1:], table[2:, 1:]
    size = table[:, 1:].sum(0)
    areas = table[2:].sum(1)

    same = truth.labels[:, None] == found.labels
    crowd = np.zeros(len(truth.ids), bool) if truth.crowd is None else truth.crowd
    hit = shared / np.maximum(areas[:, None] + size - shared - void, 1)
    hit[~same | crowd[:, None] | (hit <= 0.5)] = 0
    excused = void + (shared * (same & crowd[:, None])).sum(0) > 0.5 * size

    missed = ~hit.any(1) & ~crowd
    wrong = ~hit.any(0) & ~excused & (size > 0)
    at = np.nonzero(hit)
    return np.stack(
        [
            np.bincount(truth.labels[at[0]], minlength=classes),
            np.bincount(found.labels[wrong], minlength=classes),
            np.bincount(truth.labels[missed], minlength=classes),
            np.bincount(truth.labels[at[0]], hit[at], minlength=classes),
        ],
        1,
    ).astype(np.float64)


def shared_pixels(truth_map: np.ndarray, truth: np.ndarray, found_map: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Pixels that each two ids share: (2 + T, 1 + F) float64.

    Row 0 is the void of the truth, row 1 what is in the map but not among the ids, then come the ids ``truth`` (T,);
    column 0 is the void of the prediction, then come the ids ``found`` (F,).
    """
    if truth_map.shape != found_map.shape:
        sizes = " and ".join("x".join(map(str, m.shape)) for m in (truth_map, found_map))
        raise DataError(f"the maps of truth and prediction have {sizes} pixels")
    cells = np.zeros((len(truth) + 2) * (len(found) + 1))
    strip = max(1, STRIP // max(truth_map.shape[1], 1))
    for top in range(0, len(truth_map), strip):
        pairs = truth_map[top : top + strip].ravel().astype(np.int64) << 32
        pairs |= found_map[top : top + strip].ravel()
        starts, lengths = runs(pairs)
        pairs, pair_of = np.unique(pairs[starts], return_inverse=True)
        pixels = np.bincount(pair_of, lengths, minlength=len(pairs))
        rows = positions(pairs >> 32, truth)
        columns = positions(pairs & 0xFFFFFFFF, found)
        if (columns < 0).any():
            raise DataError(
                f"segment {(pairs & 0xFFFFFFFF)[columns < 0][0]} of the predicted map is not among its segments"
            )
        rows = np.where(rows > 0, rows + 1, -rows)
        cells += np.bincount(rows * (len(found) + 1) + columns, pixels, minlength=len(cells))
    return cells.reshape(len(truth) + 2, len(found) + 1)


def summary(
    counts: Counts, things: Sequence[bool] | np.ndarray, names: Sequence[str] | None = None
) -> dict[str, float]:
    """PQ, SQ and RQ as fractions; with ``_th`` of things and with ``_st`` of stuff.

    Each is the mean over the classes that occur in the truth or, unexcused, in a prediction; NaN where none does.

    Args:
        counts: of the whole set.
        things: (classes,) whether each is countable.
        names: of the classes, for ``PQ/<class name>`` as well.
    """
    positive, extra, missed, iou = counts.T
    weight = positive + 0.5 * (extra + missed)
    there, things = weight > 0, np.asarray(things, bool)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = {"PQ": iou / weight, "SQ": np.where(positive > 0, iou / positive, 0.0), "RQ": positive / weight}
    out = {
        part + suffix: float(values[there & wanted].mean()) if (there & wanted).any() else math.nan
        for suffix, wanted in (("", np.ones_like(there)), ("_th", things), ("_st", ~things))
        for part, values in parts.items()
    }
    for name, value, occurs in zip(names or (), parts["PQ"], there):
        out[f"PQ/{name}"] = float(value) if occurs else math.nan
    return out


def total(images: Mapping[int | str, tuple[np.ndarray, Counts]], classes: int) -> Counts:
    """The counts of all images, which are kept as their classes (K,) and the counts of these (K, 4).

    The order of the images makes no difference, not even to the last bit.
    """
    out = np.zeros((classes, 4))
    for _, (labels, counts) in sorted(images.items(), key=lambda item: str(item[0])):
        out[labels] += counts
    return out


def occurring(counts: Counts) -> tuple[np.ndarray, Counts]:
    """The classes that an image has anything of, (K,), and their counts (K, 4)."""
    labels = np.flatnonzero(counts.any(1))
    return labels, counts[labels]
