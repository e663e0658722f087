"""The shipped panoptic pipelines are the published models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visionkit.cli import main


@pytest.mark.parametrize(
    ("name", "parameters", "semantic"),
    [
        ("panoptic_fpn_r50_coco", 45_973_990, None),  # detectron2's own count
        ("upsnet_r50_coco", 46_076_784, 1_204_667),
    ],
)
def test_profile_counts_the_parameters(name: str, parameters: int, semantic: int | None, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                "profile",
                name,
                "--size",
                "32x32",
                "--boxes",
                "1",
                "--repeats",
                "1",
                "--json",
                str(tmp_path / "cost.json"),
            ]
        )
    cost = json.loads((tmp_path / "cost.json").read_text())
    assert cost["total"]["parameters"] == parameters
    assert cost["parts"]["heads/panoptic"]["parameters"] == 0
    assert semantic in (None, cost["parts"]["heads/semantic"]["parameters"])
