"""The merge of things and stuff, against detectron2's on the same masks and against the rule, one pixel at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from visionkit.types import InstanceMasks
from visionkit_panoptic.panoptic_fusion import fuse

DATA = Path(__file__).parents[1] / "data" / "detectron2_ops"


def crops(masks: Sequence[np.ndarray]) -> InstanceMasks:
    return InstanceMasks.from_dense(torch.from_numpy(np.stack(masks)))


@pytest.mark.parametrize("case", ["pan_map_5", "pan_map_8"])
def test_it_merges_as_detectron2_does(case: str) -> None:
    facts = np.load(DATA / "io.npz")
    said = json.loads((DATA / "segments.json").read_text())[case]
    keep = np.flatnonzero(facts["pan_scores"] >= said["instance_score"])

    segments, things, classes = fuse(
        crops(facts["pan_masks"][keep]), facts["pan_scores"][keep], facts["pan_semantic"],
        np.arange(6) > 0, overlap=said["overlap"], stuff_area=said["stuff_area"],
    )  # fmt: skip

    np.testing.assert_array_equal(segments, facts[case])
    assert [int(keep[i]) for i in things] == [s["instance_id"] for s in said["segments"] if s["isthing"]]
    assert classes == [s["category_id"] for s in said["segments"] if not s["isthing"]]


def plainly(masks, scores, semantic, stuff, overlap, stuff_area):  # type: ignore[no-untyped-def]
    """The rule as it is written, pixel by pixel."""
    owner = {}
    number = 0
    for i in sorted(range(len(masks)), key=lambda i: -scores[i]):
        pixels = {(y, x) for y, x in zip(*np.nonzero(masks[i]))}
        if pixels and len(pixels & owner.keys()) / len(pixels) <= overlap:
            number += 1
            owner |= dict.fromkeys(pixels - owner.keys(), number)
    left: dict[int, list[tuple[int, int]]] = {}
    for y in range(semantic.shape[0]):
        for x in range(semantic.shape[1]):
            if (y, x) not in owner and stuff[semantic[y, x]]:
                left.setdefault(int(semantic[y, x]), []).append((y, x))
    for cls in sorted(left):
        if len(left[cls]) >= stuff_area:
            number += 1
            owner |= dict.fromkeys(left[cls], number)
    return np.array([[owner.get((y, x), 0) for x in range(semantic.shape[1])] for y in range(semantic.shape[0])])


@pytest.mark.parametrize("seed", range(6))
def test_it_keeps_the_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 24, (8, 2))
    masks = [np.zeros((32, 40), bool) for _ in corners]
    for mask, (y, x) in zip(masks, corners):
        mask[y : y + rng.integers(2, 16), x : x + rng.integers(2, 16)] = True
    masks[3][:] = False
    scores, semantic = rng.random(8), np.repeat(rng.integers(0, 5, (32, 5)), 8, 1).astype(np.uint8)
    stuff = np.array([True, True, False, True, False])

    segments, _, _ = fuse(crops(masks), scores, semantic, stuff, overlap=0.4, stuff_area=100)

    np.testing.assert_array_equal(segments, plainly(masks, scores, semantic, stuff, 0.4, 100))


def test_with_nothing_found_there_is_stuff_alone() -> None:
    semantic = np.array([[0, 0, 1], [0, 2, 2]], np.uint8)
    nothing = InstanceMasks.from_crops([], (2, 3))
    segments, things, classes = fuse(
        nothing, np.zeros(0), semantic, np.array([True, True, True]), overlap=0.5, stuff_area=2
    )
    np.testing.assert_array_equal(segments, [[1, 1, 0], [1, 2, 2]])  # one pixel of class 1 is too small an area
    assert (things, classes) == ([], [0, 2])
