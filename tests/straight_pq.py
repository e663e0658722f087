"""Panoptic quality from sets of pixels: slow, and easy to see through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

Counts = dict[int, list[float]]
"""By class: true positives, false positives, false negatives, sum of the IoU of the true positives."""


def count(
    truth_map: np.ndarray, truth: Mapping[int, tuple[int, bool]], found_map: np.ndarray, found: Mapping[int, int]
) -> Counts:
    """The counts of one image; ``truth`` is id -> (class, crowd), ``found`` id -> class, and 0 is void."""
    pixels: dict[tuple[str, int], set] = {}
    for side, segments in (("truth", truth_map), ("found", found_map)):
        for at, number in np.ndenumerate(segments):
            pixels.setdefault((side, int(number)), set()).add(at)
    void = pixels.get(("truth", 0), set())
    counts: Counts = {}

    def add(label: int, column: int, value: float = 1.0) -> None:
        counts.setdefault(label, [0.0, 0.0, 0.0, 0.0])[column] += value

    taken = set()
    for number, (label, crowd) in truth.items():
        if crowd:
            continue
        own = pixels.get(("truth", number), set())
        for other, kind in found.items():
            seen = pixels["found", other]
            iou = len(own & seen) / len((own | seen) - (seen & void))
            if kind == label and iou > 0.5:
                add(label, 0)
                add(label, 3, iou)
                taken.add(other)
                break
        else:
            add(label, 2)
    for other, kind in found.items():
        crowds = [pixels.get(("truth", n), set()) for n, (label, crowd) in truth.items() if crowd and label == kind]
        seen = pixels["found", other]
        if other not in taken and len(seen & void.union(*crowds)) <= 0.5 * len(seen):
            add(kind, 1)
    return counts


def total(images: Iterable[Counts]) -> Counts:
    sums: Counts = {}
    for counts in images:
        for label, row in counts.items():
            sums[label] = [a + b for a, b in zip(sums.get(label, [0.0] * 4), row)]
    return sums


def averages(counts: Counts, classes: Iterable[int]) -> list[float]:
    """PQ, SQ, RQ of these classes; NaN where none of them occurs."""
    rows = [counts[c] for c in classes if c in counts and sum(counts[c][:3])]
    weights = [tp + (fp + fn) / 2 for tp, fp, fn, _ in rows]
    pq = [row[3] / weight for row, weight in zip(rows, weights)]
    sq = [iou / tp if tp else 0 for tp, _, _, iou in rows]
    rq = [row[0] / weight for row, weight in zip(rows, weights)]
    return [sum(values) / len(rows) if rows else np.nan for values in (pq, sq, rq)]
