"""``kills.py --training``: kill ``visionkit train`` at random moments and fill its disk; every run must end alike.

Processes are forked from one that has imported everything, so that hundreds of short runs take minutes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors.torch import load_file

from visionkit.cli import main

STEPS = 30
PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads:
  semantic: {{name: semantic_fpn, channels: 16, norm: batch}}
  boxes: {{name: retinanet, levels: [p3, p4], anchor_sizes: [[16], [32]], channels: 16, convs: 1}}
sources:
  shapes:
    name: shapes
    train: {{root: {root}/train, images: 8, seed: 0, size: 64}}
    val: {{root: {root}/val, images: 4, seed: 1, size: 64}}
train:
  steps: {steps}
  batch_size: 2
  optimizer: {{name: adamw, lr: 0.001}}
  ema: 0.9
  checkpoint_every: 3
  log_every: 1
  workers: {workers}
  transforms: [{{name: hflip}}]
evaluate: {{every: 7, pictures: 1}}
"""
HALF_WRITTEN = (".visionkit-*", ".weights.safetensors.*", "checkpoints/.last.pt.*", "predictions/*/.visionkit-*")


def start(root: Path, out: Path, *, resume: bool, steps: int = STEPS) -> int:
    """Begin a run in a process of its own; returns its PID."""
    arguments = ["train", str(root / "training.yaml"), "--out", str(out), "--accelerator", "cpu"]
    arguments += ["--set", f"train.steps={steps}", *(["--resume"] if resume else [])]
    pid = os.fork()
    if pid:
        return pid
    with open(root / "log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        status = 1
        try:
            sys.argv = ["visionkit", *arguments]
            main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG) != (0, 0)


def lines(out: Path) -> list[dict]:
    """The whole lines of the log, without what depends on the clock."""
    try:
        text = (out / "metrics.jsonl").read_text()
    except OSError:
        return []
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in found]


def check(out: Path) -> int:
    """The step of the checkpoint, 0 if there is none; whatever else is in the folder belongs to it and is whole."""
    checkpoint, weights, metrics = (
        out / name for name in ("checkpoints/last.pt", "weights.safetensors", "metrics.json")
    )
    if not checkpoint.exists():
        assert not weights.exists()
        assert not metrics.exists()
        return 0
    state = torch.load(checkpoint, weights_only=True)
    if weights.exists():
        held = load_file(weights)
        assert held.keys() == state["average"].keys()
        assert all(torch.equal(held[name], value) for name, value in state["average"].items())
    if metrics.exists():
        assert weights.exists(), "metrics of no weights"
        json.loads(metrics.read_text())
    return int(state["step"])


def compare(whole: Path, out: Path, finished_at: int | None = None) -> None:
    """Weights, checkpoint, metrics and predictions of two runs are the same, bit for bit; one has ended before."""
    for name in ("weights.safetensors", "metrics.json", "labels.json", "predictions/shapes/boxes.json"):
        assert (whole / name).read_bytes() == (out / name).read_bytes(), f"{name} differs"
    told = [line for line in lines(out) if line["step"] != finished_at or "metrics" not in line]
    pairs = list(zip_longest(lines(whole), told))
    assert all(one == other for one, other in pairs), next(pair for pair in pairs if pair[0] != pair[1])
    one, other = (torch.load(run / "checkpoints/last.pt", weights_only=True) for run in (whole, out))
    assert not (different := _difference(one, other)), f"the checkpoints differ in {different}"
    hidden = [path for path in out.rglob(".*") if path.is_file()]
    assert not hidden, f"left behind: {hidden}"


def _difference(one: object, other: object, at: str = "/") -> str:
    """Where two trees of tensors differ first."""
    if isinstance(one, torch.Tensor):
        return "" if torch.equal(one, other) else at
    pairs: list = []
    if isinstance(one, dict) and one.keys() == other.keys():
        pairs = [(value, other[key], f"{at}/{key}") for key, value in one.items() if key != "pipeline"]
    elif isinstance(one, list | tuple) and len(one) == len(other):
        pairs = [(*pair, f"{at}/{i}") for i, pair in enumerate(zip(one, other))]
    elif one != other:
        return at
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def kill(root: Path, out: Path, resume: bool, steps: int, rng: random.Random) -> tuple[str, int]:
    """Kill a run at a random moment, half of the time while it writes a file; returns the moment and its checkpoint."""
    begun = len(lines(out)) if resume else 0
    target = rng.randint(0, STEPS)
    writing = rng.random() < 0.5
    pid = start(root, out, resume=resume, steps=steps)
    moment = "after its end"
    while not has_ended(pid):
        if len(lines(out)) < min(begun + target, steps):
            time.sleep(0.001)
            continue
        if writing:
            if not any(True for pattern in HALF_WRITTEN for _ in out.glob(pattern)):
                continue
            moment = "while it wrote a file"
        else:
            time.sleep(rng.uniform(0, 0.3))
            moment = "at any moment"
        os.kill(pid, signal.SIGKILL)
        finish(pid)
        break
    return moment, check(out)


def run_kills(root: Path, kills: int, rng: random.Random) -> None:
    series = 0
    while kills:
        workers = series % 2
        (root / "training.yaml").write_text(PIPELINE.format(root=root, steps=STEPS, workers=workers))
        out, resume, told = root / f"killed_{series}", False, []
        extended = series % 3 == 2  # a finished run that is trained further
        if extended:
            assert finish(start(root, out, resume=False, steps=9)) == 0, (root / "log").read_text()
            resume = True
        for _ in range(min(kills, rng.randint(1, 4))):
            moment, step = kill(root, out, resume, STEPS, rng)
            told.append(f"{moment} (checkpoint of step {step})")
            resume = (out / "checkpoints/last.pt").exists()
            kills -= 1
        assert (status := finish(start(root, out, resume=resume))) == 0, (status, (root / "log").read_text())
        compare(root / "whole_training", out, 9 if extended else None)
        print(
            f"train{', extended' if extended else ''}, {workers} workers: killed {'; '.join(told)}; all is equal",
            flush=True,
        )
        shutil.rmtree(out)
        series += 1


def run_training_disks(root: Path, count: int, rng: random.Random) -> None:
    """The part that runs in a mount namespace of its own."""
    disk = root / "training_disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    whole = root / "whole_training"
    needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.rglob("*") if path.is_file())
    for number in range(count):
        out, filler = disk / "out", disk / "filler"
        shutil.rmtree(out, ignore_errors=True)
        space = os.statvfs(disk)
        free = rng.randrange(8192, needed)
        with open(filler, "wb") as file:
            file.write(bytes(max(space.f_bavail * space.f_frsize - free, 0)))
        status = finish(start(root, out, resume=False))
        text = (root / "log").read_text()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert status == 2, text
        assert len(errors) == 1, text
        assert "Traceback" not in text, text
        assert "No space left on device" in errors[0], text
        step = check(out)
        filler.unlink()
        assert finish(start(root, out, resume=step > 0)) == 0, (root / "log").read_text()
        compare(whole, out)
        print(f"disk {number + 1}: train with {free // 1024} KiB of {needed // 1024} KiB, checkpoint of step {step}: "
              f"{errors[0]}", flush=True)  # fmt: skip


def prepare_training(root: Path) -> None:
    """The undisturbed run."""
    (root / "training.yaml").write_text(PIPELINE.format(root=root, steps=STEPS, workers=0))
    assert finish(start(root, root / "whole_training", resume=False)) == 0, (root / "log").read_text()
