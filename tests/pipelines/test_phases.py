"""Heads that are trained in phases: an optimiser each, and nothing of one phase moves in another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from visionkit.config import load_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.errors import UserError
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.train.loop import Run
from visionkit.train.progress import Averages
from visionkit.train.step import Training

HEADS = "heads={semantic: {name: semantic_fpn, channels: 16}, paint: {name: translate}}"
ADAM = "{name: adamw, lr: 0.001, betas: [0.5, 0.999], weight_decay: 0.0}"


@pytest.fixture
def plugins(repository: Path) -> PluginManager:
    return PluginManager(files=[str(repository / "tests" / "plugins" / "translate.py")])


def a_training(tiny: Path, folder: Path, plugins: PluginManager) -> tuple[Training, list]:
    pipeline = load_pipeline(str(tiny), changes_of(tiny))
    torch.manual_seed(0)
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    run = Run(RunFolder(folder), pipeline, build_model(pipeline, plugins, labels), labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    batches = list(train_loader(feeds, batch_size=3, seed=0, steps=3))
    return Training(run, plugins, Fabric(accelerator="cpu")), batches


def changes_of(tiny: Path) -> list[str]:
    stuff = tiny.parent / "stuff"
    return [
        HEADS,
        f"sources={{stuff: {{name: shapes, train: {{root: {stuff}, images: 8, seed: 2, size: 64}}, "
        f"val: {{root: {tiny.parent / 'val'}, images: 4, seed: 1, size: 64}}}}}}",
        f"train.phases={{discriminator: {ADAM}}}",
    ]


def of(state: dict, part: str) -> dict:
    return {name: value.clone() for name, value in state.items() if name.startswith(f"heads.paint.{part}")}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_phase_moves_its_own_parameters_and_statistics_only(tiny, tmp_path, plugins, monkeypatch):
    training, batches = a_training(tiny, tmp_path, plugins)
    model = training.run.model
    seen = []
    finish = training._finish

    def watched(optimizer, losses, steps):
        phase = steps[0].phase
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        seen.append((phase, with_gradient, before))
        finish(optimizer, losses, steps)

    monkeypatch.setattr(training, "_finish", watched)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    training.step(batches[:1], Averages())
    end = model.state_dict()

    (first, main, after_main), (second, other, after_both) = seen
    assert (first, second) == ("main", "discriminator")
    discriminator = {name for name, _ in model.named_parameters() if name.startswith("heads.paint.discriminator")}
    assert main == {name for name, _ in model.named_parameters()} - discriminator
    assert other == discriminator
    # In the generator's phase the discriminator judges, and neither its weights nor its statistics move ...
    kept = {n: v for n, v in of(start, "discriminator").items() if "num_batches" not in n}
    assert equal(kept, {n: v for n, v in of(after_main, "discriminator").items() if "num_batches" not in n})
    # ... and the other way round.
    assert not equal(of(start, "generator.1.running"), of(after_main, "generator.1.running"))
    assert equal(of(after_both, "generator.1.running"), of(end, "generator.1.running"))
    assert not equal(of(start, "discriminator"), of(end, "discriminator"))


def test_every_phase_has_its_own_optimiser(tiny, tmp_path, plugins):
    training, batches = a_training(tiny, tmp_path, plugins)
    for batch in batches:
        rate = training.step([batch], Averages())
    main, other = training.optimizers["main"], training.optimizers["discriminator"]
    assert {group["lr"] for group in main.param_groups} == {rate}
    assert other.param_groups[0]["betas"] == (0.5, 0.999)
    assert other.param_groups[0]["lr"] == pytest.approx(rate * 0.001 / 0.01)


def both_sources(tiny: Path) -> list[str]:
    """Two sources, the run stopped amid their epochs; detection, a translation head in phases, an average."""
    return [
        "heads.paint={name: translate}",
        "sources.stuff.heads=[semantic, paint]",
        f"train.phases={{discriminator: {ADAM}}}",
    ]


@pytest.mark.parametrize("balancer", ["uncertainty", "gradnorm", "pcgrad", "{name: dwa, period: 1}"])
def test_a_run_that_stops_amid_an_epoch_goes_on_bit_for_bit(balancer, tiny, tmp_path, plugins):
    changes = [*both_sources(tiny), f"train.balancer={balancer}", "evaluate.max_images=1"]
    pipeline = load_pipeline(str(tiny), changes)
    train(pipeline, plugins, tmp_path / "whole", accelerator="cpu")
    train(load_pipeline(str(tiny), [*changes, "train.steps=3", "train.workers=2"]), plugins, tmp_path / "parts",
          accelerator="cpu")  # fmt: skip
    train(pipeline, plugins, tmp_path / "parts", resume=True, accelerator="cpu")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for part in ("model", "average", "balancer"):
        assert equal(whole[part], parts[part]), part
    assert list(whole["optimizers"]) == ["main", "discriminator"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    losses, same = ({line["step"]: line["losses"] for line in log if "losses" in line} for log in (lines, again))
    assert losses == same
    assert any("paint/real" in seen for seen in losses.values())


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(tiny, tmp_path, plugins):
    states = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        changes = [*both_sources(tiny), "train.steps=2", f"train.seed={seed}", "evaluate.max_images=1"]
        train(load_pipeline(str(tiny), changes), plugins, tmp_path / name, accelerator="cpu")
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert equal(states[0], states[1])
    assert not equal(states[0], states[2])


def test_an_unknown_phase_is_an_error_of_the_file(tiny, tmp_path):
    pipeline = load_pipeline(str(tiny), ["train.phases={critic: {name: adamw}}"])
    with pytest.raises(UserError, match=r"no head has a phase 'critic' \(phases beside main: none\)"):
        train(pipeline, PluginManager(), tmp_path / "out", accelerator="cpu")
