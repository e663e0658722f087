"""Objects as points: corner pooling, decoding, and three tasks in one pass.

The straightforward ways are a loop over the rows or columns for corner pooling (no bad way on a CPU, where there is no
gradient; on a GPU each line is a kernel), and for decoding a loop over the images that looks at one peak after the
other. The last row holds boxes (CenterNet), poses (its multi-person pose) and label maps on one ResNet-18 and pyramid
against a model for each; all are visionkit's: what is measured is the sharing.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.sharing import REGIONS, THINGS, images, row, seconds
from visionkit.layers.corner_pool import Side, corner_pool
from visionkit.model import Head, MultiTaskModel
from visionkit_backbones.fpn import FPN
from visionkit_backbones.timm_backbone import TimmBackbone
from visionkit_points.centernet import CenterNet, decode_centres
from visionkit_points.centernet_pose import CenterNetPose
from visionkit_semantic.semantic_fpn import SemanticFPN

SIDES: tuple[Side, ...] = ("top", "left", "bottom", "right")
TASKS = ("boxes", "poses", "semantic")
COUNT = 100


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Maps of 128 x 128, 128 channels or 80 classes; images of 512 x 512. Quick: 32 x 32 and 128 x 128."""
    torch.manual_seed(0)
    side, rounds = (32, 2) if quick else (128, 7)
    forward, back, decoded = pooling(side, rounds), pooling(side, rounds, True), decoding(side, rounds)
    return [
        row("corner pooling, 4 sides", forward[0], "loop over lines", forward[1], 1.0),
        row("corner pooling, 4 sides, and back", back[0], "loop over lines", back[1], 1.25),
        row("CenterNet's decoding, 8 images", decoded[0], "loop over peaks", decoded[1], 2.0),
        *sharing(4 * side, rounds),
    ]


def pooling(side: int, rounds: int, backward: bool = False) -> tuple[list[float], list[float]]:
    """Seconds of all four poolings, and of their gradients, ours and by a loop."""
    x = torch.randn(2, 128, side, side, requires_grad=backward)
    grads = [torch.randn_like(x) for _ in SIDES]
    ours, theirs = [], []
    for _ in range(rounds + 1):
        for pool, times in ((corner_pool, ours), (loop_pool, theirs)):

            def step(pool: Any = pool) -> None:
                made = [pool(x, one) for one in SIDES]
                if backward:
                    torch.autograd.grad(made, [x], grads)

            times.append(seconds(step))
    for one in SIDES:
        if not torch.equal(corner_pool(x, one), loop_pool(x, one)):
            raise RuntimeError(f"the poolings to the {one} differ: the comparison would mean nothing")
    return ours[1:], theirs[1:]


def loop_pool(x: Tensor, side: Side) -> Tensor:
    """The largest value between a cell and the far end, one row or column after the other."""
    axis = 2 if side in ("top", "bottom") else 3
    lines = list(x.unbind(axis))
    order = range(len(lines) - 2, -1, -1) if side in ("top", "left") else range(1, len(lines))
    step = 1 if side in ("top", "left") else -1
    for i in order:
        lines[i] = torch.maximum(lines[i], lines[i + step])
    return torch.stack(lines, axis)


def decoding(side: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds from maps to boxes, ours and by a loop."""
    blurred = F.avg_pool2d(torch.randn(8, 80, side, side), 5, 1, 2) * 8 - 3
    maps = {"heat": blurred, "size": torch.rand(8, 2, side, side) * 20, "offset": torch.rand(8, 2, side, side)}
    found, wanted = decode_centres(maps, COUNT), loop_decode(maps, COUNT)
    for name, own, other in zip(("boxes", "scores", "labels"), found, wanted):
        if not torch.allclose(own.double(), other.double(), atol=1e-4):
            raise RuntimeError(f"the {name} differ: the comparison would mean nothing")
    times = [
        (seconds(lambda: decode_centres(maps, COUNT)), seconds(lambda: loop_decode(maps, COUNT))) for _ in range(rounds)
    ]
    return [ours for ours, _ in times], [theirs for _, theirs in times]


def loop_decode(maps: dict[str, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Peaks by max pooling, then image by image and peak by peak in Python."""
    heat = maps["heat"].sigmoid()
    peaks = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    boxes, scores, labels = [], [], []
    for b in range(len(heat)):
        at = peaks[b].nonzero()
        ranked = sorted(zip(peaks[b][tuple(at.T)].tolist(), at.tolist()), reverse=True)[:count]
        size, offset = maps["size"][b], maps["offset"][b]
        for score, (label, y, x) in ranked:
            centre_x, centre_y = x + float(offset[0, y, x]), y + float(offset[1, y, x])
            half_x, half_y = float(size[0, y, x]) / 2, float(size[1, y, x]) / 2
            boxes.append([centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y])
            scores.append(score)
            labels.append(label)
    n = len(heat)
    return torch.tensor(boxes).view(n, -1, 4), torch.tensor(scores).view(n, -1), torch.tensor(labels).view(n, -1)


def sharing(side: int, rounds: int) -> list[dict[str, Any]]:
    """Three tasks in one pass, against one pass each."""
    shared, single = model(*TASKS), [model(task) for task in TASKS]
    batch = images((side, side))
    together, apart = [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            together.append(seconds(lambda: shared.predict(batch)))
            apart.append(sum(seconds(lambda one=one: one.predict(batch)) for one in single))
    ours, theirs = together[1:], apart[1:]  # the first was the warm-up
    out = row("boxes, poses and label maps on one ResNet-18", ours, "three models", theirs, 1.3)
    return [
        out | {"ours": f"{1 / median(ours):.2f} images/s", "peer": f"three models {1 / median(theirs):.2f} images/s"}
    ]


def model(*tasks: str) -> MultiTaskModel:
    """A ResNet-18 with a pyramid and the heads of these tasks."""
    backbone = TimmBackbone(model="resnet18", levels=["c2", "c3", "c4", "c5"])
    spec = FPN(backbone.spec, channels=64).spec
    made: dict[str, Any] = {
        "boxes": lambda: CenterNet(spec, THINGS),
        "poses": lambda: CenterNetPose(spec, THINGS),
        "semantic": lambda: SemanticFPN(spec, REGIONS),
    }
    heads: dict[str, Head] = {task: made[task]() for task in tasks}
    read = {level for head in heads.values() for level in head.levels}
    neck = FPN(backbone.spec, levels=[level for level in spec if level in read], channels=64)
    return MultiTaskModel(backbone, neck, heads).to(memory_format=torch.channels_last).eval()
