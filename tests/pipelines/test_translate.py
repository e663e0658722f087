"""A head that makes pictures beside others on one backbone: phases, gradients, and exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionkit.config import Pipeline, load_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.model.build import build_model
from visionkit.plugins import PluginManager
from visionkit.train import train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def small(root: Path, *changes: str) -> Pipeline:
    sources = [
        f"sources.shapes.{split}={{source: {{name: shapes, root: {root / split}, images: 6, seed: {i}, size: 64}}}}"
        for i, split in enumerate(("train", "val"))
    ]
    fast = ["train.batch_size=2", "train.workers=0", "train.steps=4", "train.warmup.steps=2", "evaluate.max_images=1",
            "evaluate.every=null", "backbone.options.channels=[8, 8, 16, 16]", "neck.channels=16",
            "heads.semantic.channels=16", "heads.boxes.fcs=[16]", "heads.edges.width=8", "heads.edges.judge_width=4",
            "train.checkpoint_every=2", "train.schedule={name: constant}"]  # fmt: skip
    return load_pipeline("translate_shapes", [*sources, *fast, *changes])


def test_a_run_that_was_interrupted_ends_bit_for_bit_the_same(root: Path, tmp_path: Path) -> None:
    whole = train(small(root), PluginManager(), tmp_path / "whole", accelerator="cpu")
    train(small(root, "train.steps=2"), PluginManager(), tmp_path / "parts", accelerator="cpu")
    parts = train(small(root), PluginManager(), tmp_path / "parts", resume=True, accelerator="cpu")
    assert {"shapes/semantic/mIoU", "shapes/boxes/AP50", "shapes/edges/L1"} <= set(whole)
    assert whole == pytest.approx(parts, rel=0, abs=0, nan_ok=True)
    first, second = (
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(first["model"][key], value) for key, value in second["model"].items())
    assert list(first["optimizers"]) == ["main", "discriminator"]
    for phase, state in first["optimizers"].items():
        for number, own in state["state"].items():
            for key, value in own.items():
                assert torch.equal(value, second["optimizers"][phase]["state"][number][key]), (phase, number, key)


def test_edges_teach_the_backbone_in_the_main_phase_only(root: Path) -> None:
    pipeline, plugins = small(root), PluginManager()
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    model = build_model(pipeline, plugins, labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    (batch,) = train_loader(feeds, batch_size=2, seed=0, steps=1)
    ready = batch.normalised(model.mean, model.std)
    losses, outputs = model.losses(ready)
    assert set(losses) == {"semantic", "boxes", "edges"}
    assert model.backbone is not None
    shared = list(model.backbone.parameters())
    for head in losses:
        grads = torch.autograd.grad(sum(losses[head].values(), torch.zeros(())), shared, retain_graph=True,
                                    allow_unused=True)  # fmt: skip
        assert any(grad is not None and bool(grad.any()) for grad in grads), head
    cut = {name: output for name, output in outputs.items() if name != "edges"}
    cut["edges"] = type(outputs["edges"])(outputs["edges"].picture.detach())
    judged, _ = model.losses(ready, "discriminator", cut)
    assert set(judged) == {"edges"}
    grads = torch.autograd.grad(sum(judged["edges"].values(), torch.zeros(())), shared, allow_unused=True)
    assert all(grad is None for grad in grads)
