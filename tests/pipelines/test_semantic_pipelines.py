"""Shipped pipelines of semantic segmentation: the sizes of their papers, and that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate

PARAMETERS = {
    "fcn32s_vgg16_voc": 134_346_581,
    "fcn16s_vgg16_voc": 134_357_354,
    "fcn8s_vgg16_voc": 134_362_751,
    "deeplab_largefov_vgg16_voc": 20_505_429,
    "dilatednet_vgg16_voc": 134_346_581 + 28_392,
    "deeplab_v2_r101_voc": 44_048_532,
    "deeplab_v3_r101_voc": 58_040_661,
    "deeplab_v3plus_r101_voc": 59_344_309,
    "pspnet_r50_voc": 49_081_578,
    "unet_original": 31_030_658,
    "xception_unet_pets": 2_055_203,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    changes = ["backbone.frozen_bn=false"] if name == "deeplab_v2_r101_voc" else []  # frozen ones are none
    pipeline, plugins = load_pipeline(name, changes), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == PARAMETERS[name]


NARROW = {
    "unet_original": ["backbone.width=4", "train.batch_size=2"],
    "xception_unet_pets": ["backbone.width=8", "backbone.widths=[8, 16, 16]", "train.batch_size=2"],
    "pspnet_r50_voc": ["backbone={name: dilated_resnet, model: resnet18, output_stride: 8}", "train.batch_size=2"],
    **{
        f"{name}_shapes": ["train.batch_size=2"]
        for name in (
            "fcn",
            "unet",
            "xception_unet",
            "dilatednet",
            "deeplab_largefov",
            "deeplab_v2",
            "deeplab_v3",
            "deeplab_v3plus",
            "pspnet",
        )
    },
}


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_twin_runs_on_drawn_scenes(name: str, tmp_path: Path) -> None:
    """Everything that a long run needs: reads, learns, is judged and drawn."""
    source = "{name: shapes, tasks: [semantic], train: {root: %s, images: 4, size: 64}, val: {images: 2, seed: 1}}"
    changes = [*NARROW[name], "train.transforms=[hflip]", "evaluate={}", "heads.semantic.labels=null"]
    changes += [f"sources={{shapes: {source % (tmp_path / 'shapes')}}}"]
    checks = list(validate(load_pipeline(name, changes), PluginManager(), all_images=True))
    assert [(check.what, check.detail) for check in checks if not check.ok] == []
