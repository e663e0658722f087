"""Pipelines that are shipped: each can be built by its name, and the demo does all it says on a small scale."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from visionkit.config import check_arguments, load_pipeline
from visionkit.config.load import shipped_pipelines
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager
from visionkit.train.validate import validate


@pytest.mark.parametrize("name", shipped_pipelines())
def test_a_shipped_pipeline_builds_without_its_data(name: str):
    pipeline, plugins = load_pipeline(name), PluginManager()
    check_arguments(pipeline, plugins)
    with torch.device("meta"):  # takes no memory, and fetches no pretrained weights
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    assert set(model.order) == set(pipeline.heads)


def test_the_demo_trains_and_evaluates_every_head(tmp_path: Path):
    changes = [f"sources.shapes.train={{root: {tmp_path}/train, images: 8, seed: 0, size: 64}}"]
    changes += [f"sources.shapes.val={{root: {tmp_path}/val, images: 4, seed: 1, size: 64}}"]
    checks = list(validate(load_pipeline("demo", changes), PluginManager(), all_images=True))
    assert [check.what for check in checks if not check.ok] == []
    assert len(checks) == 9


@pytest.mark.real_data
def test_real_data_sets_that_are_each_labelled_for_their_own_tasks(real_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VISIONKIT_REAL_DATA", str(real_data))
    checks = list(validate(load_pipeline("cells_and_mice"), PluginManager(), all_images=True))
    assert [check.detail for check in checks if not check.ok] == []


def test_what_differs_between_pipelines_is_only_what_was_set():
    plain, changed = load_pipeline("demo"), load_pipeline("demo", ["train.steps=7"])
    assert dataclasses.replace(changed, train=dataclasses.replace(changed.train, steps=plain.train.steps)) == plain
    assert yaml.safe_load(changed.to_yaml())["train"]["steps"] == 7
