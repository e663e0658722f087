"""What every balancer adds to a training step, against the plain sum: time, and the most memory that tensors hold.

Three heads (semantic, boxes, masks) on one ResNet-18-FPN, the step as training takes it: forward, one backward pass,
clipping, optimiser. One model and one batch serve all balancers, and rounds go through all of them in turn.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks._ready import ready
from visionkit.model.profile import _Allocations
from visionkit.plugins import PluginManager
from visionkit.train.balance import Balancer
from visionkit.train.progress import Averages
from visionkit.train.step import Training
from visionkit.types import MixedBatch

PIPELINE = """\
backbone: {{name: timm, model: resnet18}}
neck: {{name: fpn, channels: {channels}}}
heads:
  semantic: {{name: semantic_fpn, channels: {channels}}}
  boxes: {{name: rcnn, fcs: [{channels}], rpn_before_nms_train: 500, rpn_after_nms_train: 200, samples: 64}}
  masks: {{name: roi_mask, convs: [{channels}, {channels}]}}
sources:
  shapes:
    name: shapes
    train: {{root: "{root}", images: 8, seed: 0, size: {size}}}
train:
  steps: 1
  batch_size: 4
  optimizer: {{name: sgd, lr: 0.0001}}
  clip: 10.0
"""
AT_FEATURES_BAR = 1.35


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds a step, medians of interleaved rounds; quick: small images and few rounds."""
    size, channels, rounds = (64, 32, 2) if quick else (256, 128, 9)
    plugins = PluginManager()
    with tempfile.TemporaryDirectory() as folder:
        training, batch = ready(
            PIPELINE.format(root=f"{folder}/data", size=size, channels=channels),
            "balancers.yaml",
            Path(folder),
            plugins,
        )
        heads = {name: tuple(training.run.model.head(name).loss_names) for name in training.run.model.order}
        names = [one.component.name for one in plugins.components("balancer") if one.distribution == "visionkit"]
        balancers: dict[str, Balancer] = {name: plugins.load("balancer", name)(heads) for name in names}
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds + 1):
            for name, balancer in balancers.items():
                times[name].append(step_seconds(training, balancer, batch))
        peaks = {name: peak_bytes(training, balancer, batch) for name, balancer in balancers.items()}
    fixed = times["fixed"][1:]  # the first was the warm-up
    return [
        row(name, times[name][1:], fixed, peaks[name], peaks["fixed"], AT_FEATURES_BAR if made.at_features else None)
        for name, made in balancers.items()
        if name != "fixed"
    ]


def step_seconds(training: Training, balancer: Balancer, batch: MixedBatch) -> float:
    """How long one step takes with this balancer."""
    training.balancer = balancer.to(training.fabric.device)
    torch.manual_seed(0)  # the same samples of regions for all
    training.run.step = 0
    start = now(training)
    training.step([batch], Averages())
    return now(training) - start


def now(training: Training) -> float:
    """The clock, once the device has done all that it was asked."""
    if training.fabric.device.type == "cuda":
        torch.cuda.synchronize(training.fabric.device)
    return time.perf_counter()


def peak_bytes(training: Training, balancer: Balancer, batch: MixedBatch) -> int:
    """The most that tensors made in a step hold at once; weights, which were there before, do not count."""
    allocations = _Allocations()
    with allocations:
        step_seconds(training, balancer, batch)
    return allocations.peak


def row(
    name: str, ours: list[float], fixed: list[float], peak: int, fixed_peak: int, bar: float | None
) -> dict[str, Any]:
    """Ratios are taken round by round, so that a machine that slows down slows both."""
    times = median(a / b for a, b in zip(ours, fixed))
    return {
        "name": f"a step with balancer {name}: {times:.2f}x the time, {peak / fixed_peak:.2f}x the memory",
        "ours": f"{median(ours) * 1e3:.0f} ms, {peak / 1e6:.0f} MB",
        "peer": f"fixed {median(fixed) * 1e3:.0f} ms, {fixed_peak / 1e6:.0f} MB",
        "ratio": 1 / times,
        "bar": None if bar is None else 1 / bar,
    }
