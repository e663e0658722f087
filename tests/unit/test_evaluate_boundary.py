"""Boundary IoU and boundary F against their definitions, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from visionkit.data import Source
from visionkit.errors import DataError
from visionkit.evaluate.boundary import BoundaryEvaluator
from visionkit.types import ImageInfo, LabelSet, SemanticPrediction, SemanticTarget

LABELS = LabelSet(("a", "b", "c", "never"))


class Nothing(Source):
    labels = {"semantic": LABELS}

    def __len__(self) -> int:
        return 0

    def load(self, index, tasks):
        raise IndexError


def blobs(seed: int, height: int = 19, width: int = 24) -> np.ndarray:
    coarse = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return fine[0].argmax(0).numpy().astype(np.uint8)


def evaluated(pairs: list[tuple[np.ndarray, np.ndarray]], **options: float) -> BoundaryEvaluator:
    evaluator = BoundaryEvaluator(Nothing(), LABELS, per_class=True, **options)  # type: ignore[arg-type]
    for number, (seen, truth) in enumerate(pairs):
        info = ImageInfo(number, "", truth.shape, truth.shape)  # type: ignore[arg-type]
        target = SemanticTarget(torch.from_numpy(truth))
        evaluator.add([SemanticPrediction(torch.from_numpy(seen))], [target], [info])
    return evaluator


def slow_bands(labels: np.ndarray, label: int, unknown: np.ndarray, distance: int) -> set[tuple[int, int]]:
    """Pixels of the class near a known pixel of another one, or near the edge of the image."""
    height, width = labels.shape
    out = set()
    for y, x in np.argwhere((labels == label) & ~unknown):
        around = [(y + i, x + j) for i in range(-distance, distance + 1) for j in range(-distance, distance + 1)]
        beyond = any(not (0 <= v < height and 0 <= u < width) for v, u in around)
        if beyond or any(labels[p] != label and not unknown[p] for p in around):
            out.add((y, x))
    return out


def slow_contour(labels: np.ndarray, label: int, unknown: np.ndarray) -> list[tuple[int, int]]:
    height, width = labels.shape
    out = []
    for y, x in np.argwhere((labels == label) & ~unknown):
        beside = [
            (v, u) for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)) if 0 <= v < height and 0 <= u < width
        ]
        if any(labels[p] != label and not unknown[p] for p in beside):
            out.append((y, x))
    return out


def slow_share(of: list[tuple[int, int]], near: list[tuple[int, int]], tolerance: float) -> float:
    return sum(any(math.dist(p, q) <= tolerance for q in near) for p in of) / len(of)


@pytest.mark.parametrize(("width", "tolerance"), [(0.02, 0.0075), (0.1, 0.05)])
def test_both_are_their_definitions(width: float, tolerance: float) -> None:
    pairs = [(blobs(seed), blobs(seed + 20)) for seed in range(3)]
    for seen, truth in pairs[:2]:  # nearly right, so that contours meet
        seen[3:, 2:] = truth[:-3, :-2]
    pairs[1][1][5:9, 3:20] = 255
    diagonal = math.hypot(19, 24)
    distance = max(1, round(width * diagonal))
    got = evaluated(pairs, width=width, tolerance=tolerance).result()
    for label, name in enumerate("abc"):
        both = either = 0
        scores = []
        for seen, truth in pairs:
            unknown = truth == 255
            bands = [slow_bands(labels, label, unknown, distance) for labels in (seen, truth)]
            both, either = both + len(bands[0] & bands[1]), either + len(bands[0] | bands[1])
            if not ((seen == label) & ~unknown).any() and not (truth == label).any():
                continue
            found, real = (slow_contour(labels, label, unknown) for labels in (seen, truth))
            if not found or not real:
                scores.append(float(found == real))
                continue
            p, r = slow_share(found, real, tolerance * diagonal), slow_share(real, found, tolerance * diagonal)
            scores.append(2 * p * r / (p + r) if p + r else 0.0)
        assert got[f"boundary_IoU/{name}"] == pytest.approx(both / either)
        assert got[f"boundary_F/{name}"] == pytest.approx(sum(scores) / len(scores))
    assert got["boundary_mIoU"] == pytest.approx(sum(got[f"boundary_IoU/{name}"] for name in "abc") / 3)
    assert got["boundary_F"] == pytest.approx(sum(got[f"boundary_F/{name}"] for name in "abc") / 3)
    assert math.isnan(got["boundary_IoU/never"])
    assert math.isnan(got["boundary_F/never"])


@pytest.mark.parametrize(("shift", "f"), [(1, 1.0), (2, 80 / 156)])
def test_a_shifted_square_in_closed_form(shift: int, f: float) -> None:
    """Of 40x40 in 100x100, whose diagonal is 141: bands are 3 wide, and contours may lie 1.06 apart."""
    truth = np.zeros((100, 100), dtype=np.uint8)
    truth[30:70, 30:70] = 1
    got = evaluated([(np.roll(truth, shift, 1), truth)]).result()
    ring = 40 * 40 - 34 * 34
    both = (40 - shift) * 40 - (34 + shift) * 34  # of both squares, less the insides of either
    assert got["boundary_IoU/b"] == pytest.approx(both / (2 * ring - both))
    assert got["boundary_F/b"] == pytest.approx(f)


def test_what_is_wrong_inside_counts_less_than_at_the_contour() -> None:
    truth = np.zeros((60, 60), dtype=np.uint8)
    truth[10:50, 10:50] = 1
    seen = truth.copy()
    seen[10:50, 10:12] = 0
    assert (
        evaluated([(seen, truth)]).result()["boundary_IoU/b"] < ((seen == 1) & (truth == 1)).sum() / (truth == 1).sum()
    )


def test_perfect_is_one_and_nothing_is_minus_one() -> None:
    pairs = [(blobs(seed), blobs(seed)) for seed in range(2)]
    pairs[0][1][:4] = 255
    got = evaluated(pairs).result()
    assert got["boundary_mIoU"] == got["boundary_F"] == 1.0
    empty = np.full((5, 5), 255, dtype=np.uint8)
    assert math.isnan(evaluated([(np.zeros((5, 5), dtype=np.uint8), empty)]).result()["boundary_mIoU"])
    assert math.isnan(evaluated([]).result()["boundary_F"])


def test_a_class_that_fills_the_image_has_no_contour() -> None:
    full = np.zeros((9, 9), dtype=np.uint8)
    half = full.copy()
    half[:, 5:] = 1
    assert evaluated([(full, full)]).result()["boundary_F/a"] == 1.0
    assert evaluated([(half, full)]).result()["boundary_F/a"] == 0.0


def test_merged_states_count_an_image_once() -> None:
    pairs = [(blobs(seed), blobs(seed + 9)) for seed in range(3)]
    whole = evaluated(pairs)
    part, other = evaluated(pairs[:2]), evaluated(pairs)
    part.merge([other.state()])
    assert part.result() == whole.result()


def test_another_size_is_told() -> None:
    with pytest.raises(DataError, match=r"image 0: a prediction of \(4, 4\) pixels for a label map of \(5, 5\)"):
        evaluated([(np.zeros((4, 4), dtype=np.uint8), np.zeros((5, 5), dtype=np.uint8))])
