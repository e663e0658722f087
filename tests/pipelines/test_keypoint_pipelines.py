"""Keypoint pipelines: a batch of each small twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionkit.config import load_pipeline
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate

TWINS = ("keypoint_heatmap_shapes", "keypoint_regression_shapes", "hourglass2_shapes")
MICE = ("mouse_heatmap", "mouse_regression", "mouse_hourglass")


@pytest.mark.parametrize("name", TWINS)
def test_a_small_twin_reads_its_data_and_takes_a_step(name: str, tmp_path: Path) -> None:
    changes = [
        f"sources.shapes.{split}.source={{name: shapes, root: {tmp_path}/{split}, images: 8, seed: {seed}, size: 96}}"
        for seed, split in enumerate(("train", "val"))
    ]
    checks = list(validate(load_pipeline(name, [*changes, "train.batch_size=4"]), PluginManager()))
    assert [check.detail for check in checks if not check.ok] == []


def test_boxes_keypoints_and_regions_share_one_backbone(tmp_path: Path) -> None:
    changes = [
        f"sources.shapes.{split}={{root: {tmp_path}/{split}, images: 8, seed: {seed}, size: 96}}"
        for seed, split in enumerate(("train", "val"))
    ]
    checks = list(validate(load_pipeline("points_shapes", changes), PluginManager()))
    assert [check.detail for check in checks if not check.ok] == []


@pytest.mark.real_data
@pytest.mark.parametrize("name", MICE)
def test_mice_are_read_and_learnt_from(name: str, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONKIT_REAL_DATA", str(real_data))
    checks = list(validate(load_pipeline(name, ["train.batch_size=2"]), PluginManager()))
    assert [check.detail for check in checks if not check.ok] == []
