"""Whole runs of a tiny pipeline: what they leave behind, and that they can be killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.data.wiring import build_sources
from visionkit.errors import RunError, UserError
from visionkit.evaluate.runner import evaluate_model
from visionkit.infer import load
from visionkit.model.run import RunFolder, load_model, load_weights
from visionkit.plugins import PluginManager
from visionkit.train import train

KILLER = """
import os, signal
from visionkit import hookimpl

@hookimpl
def visionkit_step_done(run, step, losses):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(load_pipeline(str(tiny)), PluginManager(), out, accelerator="cpu")
    return out


def test_a_run_leaves_everything_that_later_commands_need(done: Path):
    metrics = json.loads((done / "metrics.json").read_text())
    for key in ("things/boxes/AP50", "things/masks/AP", "things/keypoints/AP", "stuff/semantic/mIoU"):
        assert key in metrics
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    assert {"semantic/cross_entropy", "boxes/rpn_box", "masks/mask", "keypoints/keypoint"} <= set(lines[-2]["losses"])
    assert {p.name for p in (done / "predictions" / "things").iterdir()} == {
        "predictions.jsonl",
        "boxes.json",
        "masks.json",
        "keypoints.json",
    }
    assert len(list((done / "pictures").rglob("*.jpg"))) == 2
    assert not [p for p in done.rglob(".*") if p.is_file()], "something half-written was left behind"
    loaded = load_model(done, PluginManager())
    assert loaded.labels["masks"].names == loaded.labels["boxes"].names


def test_the_average_is_what_the_run_folder_holds(done: Path):
    checkpoint = torch.load(done / "checkpoints" / "last.pt", weights_only=True)
    weights = load_weights(RunFolder(done).weights_file)
    assert all(torch.equal(weights[name], value) for name, value in checkpoint["average"].items())
    assert any(not torch.equal(weights[name], value) for name, value in checkpoint["model"].items())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_to_the_same_bits(tiny: Path, done: Path, tmp_path: Path, workers: int):
    killer = tmp_path / "killer.py"
    killer.write_text(KILLER)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "visionkit", "train", str(tiny), "--out", str(out), "--accelerator", "cpu"]
    options = ["--plugin", str(killer), "--set", f"train.workers={workers}"]
    killed = subprocess.run([*command, *options], capture_output=True, text=True, env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(out / "checkpoints" / "last.pt", weights_only=True)["step"] == 4
    assert not (out / "weights.safetensors").exists()

    train(load_pipeline(str(tiny), [f"train.workers={workers}"]), PluginManager(), out, resume=True, accelerator="cpu")
    whole, resumed = (torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (done, out))
    for part in ("model", "average"):
        assert whole[part].keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    assert (done / "metrics.json").read_text() == (out / "metrics.json").read_text()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 6]


def test_a_run_is_not_overwritten(tiny: Path, done: Path):
    with pytest.raises(RunError, match="already holds a run: go on with --resume"):
        train(load_pipeline(str(tiny)), PluginManager(), done, accelerator="cpu")


def test_a_checkpoint_of_another_pipeline_is_refused(tiny: Path, done: Path):
    other = load_pipeline(str(tiny), ["heads.masks.convs=[16]"])
    with pytest.raises(RunError, match=r"saved by another pipeline: heads\.masks\.convs was \[8\] and is now \[16\]"):
        train(other, PluginManager(), done, resume=True, accelerator="cpu")


def test_a_loss_that_is_not_finite_names_head_and_images(tiny: Path, tmp_path: Path):
    pipeline = load_pipeline(str(tiny), ["train.optimizer.lr=1e+30", "train.clip=null", "train.warmup.factor=1.0"])
    with pytest.raises(UserError, match=r"loss '\w+' of head '\w+' is (nan|inf|-inf) at step \d+; its images: .*\.jpg"):
        train(pipeline, PluginManager(), tmp_path / "out", accelerator="cpu")


def test_a_head_without_labels_is_named_at_the_start(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    changes = ["sources.stuff.heads=[boxes]", "heads.semantic.labels=[sky]", "train.steps=1", "evaluate.max_images=1"]
    train(load_pipeline(str(tiny), changes), PluginManager(), tmp_path / "out", accelerator="cpu")
    assert "NOT TRAINED by any source: semantic" in "".join(capsys.readouterr())


def test_parts_learn_at_their_own_rate_or_not_at_all(tiny: Path, tmp_path: Path):
    changes = [
        "train.parts={backbone: {freeze: true}, heads.semantic: {lr_scale: 0.0, weight_decay: 0.0}}",
        "train.ema=null",
    ]
    changes += ["train.steps=1", "evaluate.max_images=1", "train.tensorboard=true"]
    pipeline = load_pipeline(str(tiny), changes)
    torch.manual_seed(pipeline.train.seed)
    train(pipeline, PluginManager(), tmp_path / "out", accelerator="cpu")
    checkpoint = torch.load(tmp_path / "out" / "checkpoints" / "last.pt", weights_only=True)
    rates = {group["lr_scale"] for group in checkpoint["optimizers"]["main"]["param_groups"]}
    assert rates == {0.0, 1.0}
    assert list((tmp_path / "out" / "tensorboard").glob("events.*"))


def test_metrics_of_one_name_are_told_apart(done: Path, tmp_path: Path):
    """Both evaluators of the mask head have an AP; neither may hide the other."""
    two = ["evaluate.metrics={masks: [coco_bbox, coco_segm]}", "evaluate.max_images=2"]
    loaded = load_model(done, PluginManager(), two)
    sources = build_sources(loaded.pipeline, PluginManager(), "val")
    found = evaluate_model(loaded.model, loaded.pipeline, PluginManager(), loaded.labels, sources)
    assert {"things/masks/coco_bbox/AP", "things/masks/coco_segm/AP", "things/boxes/AP"} <= set(found)
    assert "things/masks/AP" not in found


def test_images_are_padded_as_the_pipeline_says(tiny: Path, tmp_path: Path):
    pipeline = load_pipeline(str(tiny), ["train.size_divisor=48", "train.steps=1", "evaluate.max_images=1"])
    plugin = tmp_path / "watcher.py"
    plugin.write_text(
        "from visionkit import hookimpl\n"
        "@hookimpl\n"
        "def visionkit_run_started(run):\n"
        "    def note(backbone, images):\n"
        "        (run.folder.path / 'sizes.txt').write_text(str(tuple(images[0].shape[2:])))\n"
        "    run.model.backbone.register_forward_pre_hook(note)\n"
    )
    train(pipeline, PluginManager(files=[str(plugin)]), tmp_path / "out", accelerator="cpu")
    assert (tmp_path / "out" / "sizes.txt").read_text() == "(96, 96)"
    (found,) = load(tmp_path / "out").predict(np.zeros((64, 64, 3), np.uint8))
    assert found.keys() == {"semantic", "boxes", "masks", "keypoints"}
