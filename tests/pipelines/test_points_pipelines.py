"""The shipped pipelines of objects as points are the published models."""

from __future__ import annotations

import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager

UNUSED_IN_DLA = 41_728
"""Two projections that the authors' DLA-34 has and never uses."""


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("centernet_r18_coco", 15_820_372),
        ("centernet_r101_coco", 53_435_476),
        ("centernet_dla34_coco", 19_675_892 - UNUSED_IN_DLA),
        ("centernet_hg104_coco", 191_284_008),
        ("centernet_pose_dla34_coco", 20_112_346 - UNUSED_IN_DLA),
        ("cornernet_hg104_coco", 201_035_212),
        ("centernet_triplet_hg52_coco", 104_844_152),
        ("centernet_triplet_hg104_coco", 210_062_960),
    ],
)
def test_parameters_of_a_shipped_pipeline(name: str, count: int) -> None:
    pipeline, plugins = load_pipeline(name), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_papers_resnet_is_one_option_away() -> None:
    changes = ["neck.deformable=true", "neck.channels=[256, 128, 64]"]
    pipeline, plugins = load_pipeline("centernet_r18_coco", changes), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    assert sum(p.numel() for p in model.parameters()) == 14_437_349
