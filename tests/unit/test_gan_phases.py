"""Adversarial heads in the training step: what each phase moves, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from visionkit.config import parse_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.train.loop import Run
from visionkit.train.progress import Averages
from visionkit.train.step import Training

PIPELINE = """
heads: {{picture: {head}}}
sources:
  shapes:
    name: painted
    train: {{source: {{name: shapes, root: "{root}", images: 4, seed: 2, size: 64}}}}
train:
  steps: 4
  batch_size: 2
  workers: 0
  optimizer: {{name: adamw, lr: 0.001, betas: [0.5, 0.999], weight_decay: 0.0}}
"""
HEADS = {
    "pix2pix": "{name: pix2pix, norm: batch, downs: 5, width: 4, judge_layers: 2, judge_width: 4}",
    "cyclegan": "{name: cyclegan, norm: batch, blocks: 1, width: 4, judge_layers: 2, judge_width: 4, pool: 3, "
    "pool_side: 64}",
    "style_transfer": "{name: style_transfer, width: 4, blocks: 1, vgg_width: 4, style_size: 32}",
}
GENERATORS = {"pix2pix": ("generator",), "cyclegan": ("forth", "back"), "style_transfer": ("network",)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes") / "shapes"


def a_training(name: str, root: Path, folder: Path) -> tuple[Training, list[Any]]:
    pipeline, plugins = parse_pipeline(PIPELINE.format(head=HEADS[name], root=root), f"{name}.yaml"), PluginManager()
    torch.manual_seed(0)
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    run = Run(RunFolder(folder), pipeline, build_model(pipeline, plugins, labels), labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    batches = list(train_loader(feeds, batch_size=2, seed=0, steps=2))
    return Training(run, plugins, Fabric(accelerator="cpu")), batches


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of what moved; batches that were counted by norms in passing do not matter."""
    return {n for n, value in after.items() if "num_batches" not in n and not torch.equal(value, before[n])}


def copied(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.run.model.state_dict().items()}


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan"])
def test_a_side_stands_still_while_the_other_is_trained(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, batches = a_training(name, root, tmp_path)
    model, finish = training.run.model, training._finish
    states, gradients = [copied(training)], []

    def watched(optimizer: Any, losses: Any, steps: Any) -> None:
        gradients.append({n for n, p in model.named_parameters() if p.grad is not None})
        finish(optimizer, losses, steps)
        states.append(copied(training))

    monkeypatch.setattr(training, "_finish", watched)
    training.step(batches[:1], Averages())

    generators = tuple(f"heads.picture.{part}." for part in GENERATORS[name])
    made = {n for n in states[0] if n.startswith(generators)}
    judging = {n for n in states[0] if not n.startswith(generators) and ".pool_" not in n}
    pools = set(states[0]) - made - judging
    parameters = {n for n, _ in model.named_parameters()}
    # No gradient for the other side, which judges or has made all the same ...
    assert gradients == [made & parameters, judging & parameters]
    # ... and no drift of its batch norms: neither weights nor statistics move.
    first, second = changed(states[0], states[1]), changed(states[1], states[2])
    assert first <= made
    assert any(n.endswith("running_mean") for n in first)
    assert second <= judging | pools
    assert any(n.endswith("running_mean") for n in second)
    assert bool(second & pools) == bool(pools)


def test_vgg_stays_as_it_was(root: Path, tmp_path: Path) -> None:
    training, batches = a_training("style_transfer", root, tmp_path)
    before = copied(training)
    for batch in batches:
        training.step([batch], Averages())
    moved = changed(before, copied(training))
    assert moved
    assert all(n.startswith("heads.picture.network.") for n in moved)
    assert any(".vgg." in n for n in before)


def test_judges_are_trained_on_pictures_that_the_pool_gave_back(root: Path, tmp_path: Path) -> None:
    training, batches = a_training("cyclegan", root, tmp_path)
    head: Any = training.run.model.head("picture")
    training.step(batches[:1], Averages())
    assert int(head.pool_first.count) == int(head.pool_second.count) == 2
    training.step(batches[1:], Averages())
    assert int(head.pool_first.count) == 3  # full
    kept = [float(picture.float().std()) for picture in head.pool_second.pictures]
    assert all(value > 0 for value in kept)
