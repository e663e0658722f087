"""Weights of detectron2 fit the shipped pipelines of the R-CNN family."""

from __future__ import annotations

import pytest
import torch

from visionkit.config import load_pipeline, parse_pipeline
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn"])
def test_imported_weights_fit(name: str) -> None:
    plugins = PluginManager()
    importer = plugins.load("importer", f"detectron2/{name}_R_50_FPN_3x")()
    shipped = load_pipeline(f"{name}_r50_fpn_coco")
    with torch.device("meta"):
        imported = build_model(parse_pipeline(importer.pipeline, name), plugins, importer.labels)
        own = build_model(shipped, plugins, placeholder_labels(shipped, plugins))
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (imported, own)]
    assert shapes[0] == shapes[1]
