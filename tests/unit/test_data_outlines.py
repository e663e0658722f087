"""Instances as label maps of background, objects and borders."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from visionkit.data.base import Sample, Source
from visionkit.data.outlines import BACKGROUND, BORDER, OBJECT, OutlinesSource
from visionkit.data.transforms import HorizontalFlip
from visionkit.errors import UserError
from visionkit.types import IGNORE, ImageInfo, InstanceTarget, LabelSet, SemanticTarget


class Drawn(Source):
    """One image with the masks it is given."""

    labels = {"boxes": LabelSet(("cell",)), "masks": LabelSet(("cell",))}

    def __init__(self, masks: list[np.ndarray], crowd: list[bool] | None = None) -> None:
        self.masks, self.crowd = masks, crowd or [False] * len(masks)

    def __len__(self) -> int:
        return 1

    def load(self, index, tasks):  # type: ignore[no-untyped-def]
        count = len(self.masks)
        target = InstanceTarget(
            boxes=torch.zeros(count, 4),
            labels=torch.zeros(count, dtype=torch.int64),
            crowd=torch.tensor(self.crowd, dtype=torch.bool),
            areas=torch.zeros(count),
            ids=torch.arange(count),
            masks=torch.from_numpy(np.stack(self.masks)),
        )
        sample = Sample(torch.zeros(3, 12, 16, dtype=torch.uint8), ImageInfo("0", "", (12, 16), (12, 16)))
        sample.targets = dict.fromkeys(tasks, target)
        return sample


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((12, 16), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def map_of(source: Source) -> np.ndarray:
    target = source.load(0, {"semantic"}).targets["semantic"]
    assert isinstance(target, SemanticTarget)
    return target.labels.numpy()


def outlines(monkeypatch: pytest.MonkeyPatch, drawn: Source, **options) -> OutlinesSource:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("visionkit.data.outlines.built_source", lambda whose, config: drawn)
    return OutlinesSource(**options)


def test_two_objects_that_touch_are_kept_apart_by_their_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    found = map_of(outlines(monkeypatch, Drawn([rectangle(2, 2, 8, 7), rectangle(2, 7, 8, 12)]), width=1))
    wanted = np.full((12, 16), BACKGROUND)
    wanted[2:8, 2:12] = BORDER
    wanted[3:7, 3:6] = wanted[3:7, 8:11] = OBJECT
    np.testing.assert_array_equal(found, wanted)
    assert cv2.connectedComponents((found == OBJECT).astype(np.uint8))[0] == 3  # two, and what is around them


def test_a_border_is_as_wide_as_is_said_and_not_at_the_edge_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    found = map_of(outlines(monkeypatch, Drawn([rectangle(0, 0, 9, 10)]), width=3))
    assert (found[:6, :7] == OBJECT).all()
    assert (found[6:9, :10] == BORDER).all()
    assert (found[:9, 7:10] == BORDER).all()
    assert (found == BACKGROUND).sum() == 12 * 16 - 90


def test_the_later_object_is_on_top_and_a_crowd_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = [rectangle(9, 0, 12, 16), rectangle(1, 1, 7, 9), rectangle(3, 5, 9, 13)]
    found = map_of(outlines(monkeypatch, Drawn(masks, [True, False, False]), width=1))
    assert (found[9:] == IGNORE).all()
    assert (found[3:7, 5:9] == np.where(rectangle(4, 6, 8, 12)[3:7, 5:9], OBJECT, BORDER)).all()


def test_an_image_without_objects_is_all_background(monkeypatch: pytest.MonkeyPatch) -> None:
    source = outlines(monkeypatch, Drawn([rectangle(0, 0, 0, 0)]))
    assert (map_of(source) == BACKGROUND).all()


def test_the_other_tasks_are_those_of_the_source(tmp_path: Path) -> None:
    shapes = {"name": "shapes", "root": str(tmp_path / "shapes"), "images": 2, "size": 64}
    source = OutlinesSource(source=shapes, classes=("ground", "thing", "edge"))
    assert source.labels["semantic"].names == ("ground", "thing", "edge")
    sample = source.load(0, {"semantic", "boxes"})
    assert set(sample.targets) == {"semantic", "boxes"}
    assert source.load(0, {"boxes"}).targets.keys() == {"boxes"}
    assert source.coco_ground_truth() is not None
    assert source.describe(0) == source._source.describe(0)
    mirrored = HorizontalFlip(probability=1.0)(sample).targets["semantic"]
    assert isinstance(mirrored, SemanticTarget)
    assert torch.equal(mirrored.labels, sample.targets["semantic"].labels.flip(1))  # type: ignore[attr-defined]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="width of 0"):
        OutlinesSource(width=0)
    with pytest.raises(UserError, match="three names, not a, b, a"):
        OutlinesSource(classes=("a", "b", "a"))
    with pytest.raises(UserError, match="outlines: 'source' must say which one"):
        OutlinesSource(source={"images": "x"})
    (tmp_path / "cat").mkdir()
    cv2.imwrite(str(tmp_path / "cat" / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match=r"no masks .*labelled for: class"):
        OutlinesSource(source={"name": "class_folder", "images": str(tmp_path)})
