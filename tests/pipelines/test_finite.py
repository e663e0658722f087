"""NaN and infinity never reach what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from visionkit.config import load_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.errors import RunError
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.train.loop import Run
from visionkit.train.progress import Averages
from visionkit.train.step import SMALLEST_SCALE, Training

HEADS = "heads={semantic: {name: semantic_fpn, channels: 16}, bang: {name: explosive%s}}"


@pytest.fixture
def plugins(repository: Path) -> PluginManager:
    return PluginManager(files=[str(repository / "tests" / "plugins" / "explosive.py")])


def changes_of(tiny: Path, options: str = "") -> list[str]:
    return [
        HEADS % options,
        f"sources={{stuff: {{name: shapes, train: {{root: {tiny.parent / 'stuff'}, images: 8, seed: 2, size: 64}}}}}}",
        "evaluate.pictures=0",
    ]


def assert_finite(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    listed = [*state["model"].values(), *(state["average"] or {}).values()]
    for optimizer in state["optimizers"].values():
        listed += [v for own in optimizer["state"].values() for v in own.values() if isinstance(v, torch.Tensor)]
    assert len(listed) > 50
    assert all(bool(value.isfinite().all()) for value in listed)


@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("options", [["train.clip=null", "train.ema=null"], ["train.clip=1.0"], ["train.accumulate=2"]])
def test_a_step_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint_before_it(
    what: str, options: list[str], tiny: Path, tmp_path: Path, plugins: PluginManager
) -> None:
    calls = 6 if "train.accumulate=2" in options else 3  # of the head, in three steps
    changes = [*changes_of(tiny, f", what: {what}, finite: {calls}"), *options, "train.checkpoint_every=1"]
    with pytest.raises(RunError, match=f"{'gradient of' if what == 'gradient' else 'of'} head 'bang'.* at step 3"):
        train(load_pipeline(str(tiny), changes), plugins, tmp_path / "run", accelerator="cpu")
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["step"] == 3
    assert_finite(tmp_path / "run" / "checkpoints" / "last.pt")
    assert not (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.parametrize("optimizer", ["{name: sgd, lr: 1e39}", "{name: adamw, lr: 1e39}"])
def test_an_update_that_overflows_is_not_saved(
    optimizer: str, tiny: Path, tmp_path: Path, plugins: PluginManager
) -> None:
    changes = [*changes_of(tiny, ", finite: 100"), f"train.optimizer={optimizer}", "train.warmup={steps: 0}"]
    with pytest.raises(RunError, match="is not finite after step 1"):
        train(load_pipeline(str(tiny), [*changes, "train.steps=1"]), plugins, tmp_path / "run", accelerator="cpu")
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_scaled_gradients_may_overflow_but_not_forever(tiny: Path, tmp_path: Path, plugins: PluginManager) -> None:
    pipeline = load_pipeline(str(tiny), [*changes_of(tiny), "train.precision=16-mixed"])
    torch.manual_seed(0)
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    run = Run(RunFolder(tmp_path), pipeline, build_model(pipeline, plugins, labels), labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    batch = next(iter(train_loader(feeds, batch_size=3, seed=0, steps=1)))
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    training = Training(run, plugins, Fabric(accelerator="cpu", plugins=precision))
    for _ in range(3):
        training.step([batch], Averages())
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    scale = precision.scaler.get_scale()
    training.step([batch], Averages())  # its gradient is not finite: left out, and the next one is scaled less
    assert precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(before[name], parameter) for name, parameter in run.model.named_parameters())
    precision.scaler.update(SMALLEST_SCALE * 1.5)
    with pytest.raises(RunError, match="however little the losses are scaled"):
        training.step([batch], Averages())
