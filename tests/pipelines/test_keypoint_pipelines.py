"""Keypoint pipelines: the parameters of the published networks, and a batch of each small twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate

COUNTS = {
    "keypoint_heatmap_r50_coco": 33_999_697,
    "keypoint_heatmap_r101_coco": 52_991_825,
    "keypoint_heatmap_r152_coco": 68_635_473,
    "keypoint_regression_r50_coco": 23_701_148,  # 53,784 of them are the flow's
    "hourglass2_mpii": 6_570_400,
    "hourglass8_mpii": 25_434_112,
}
OTHERS = [
    ("keypoint_regression_r50_coco", "heads.keypoints.loss=l1", 23_577_698),
    ("hourglass2_mpii", "backbone.stacks=1,heads.keypoints.levels=[maps1]", 3_426_448),
    ("hourglass2_mpii", "backbone.stacks=4,heads.keypoints.levels=[maps1, maps2, maps3, maps4]", 12_858_304),
]
TWINS = ("keypoint_heatmap_shapes", "keypoint_regression_shapes", "hourglass2_shapes")
MICE = ("mouse_heatmap", "mouse_regression", "mouse_hourglass")


def parameters(name: str, changes: list[str]) -> int:
    pipeline, plugins = load_pipeline(name, changes), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_network_has_its_parameters(name: str) -> None:
    assert parameters(name, []) == COUNTS[name]


@pytest.mark.parametrize(("name", "changes", "count"), OTHERS)
def test_its_variants_have_theirs(name: str, changes: str, count: int) -> None:
    parts = changes.replace(",heads", "\nheads").split("\n")
    assert parameters(name, parts) == count


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
