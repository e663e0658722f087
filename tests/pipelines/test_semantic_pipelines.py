"""Shipped pipelines of semantic segmentation: that they learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionkit.config import load_pipeline
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate

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
