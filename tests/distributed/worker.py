"""What each process of a distributed test does; also called without processes, for the numbers to compare with.

python -m torch.distributed.run --nproc-per-node 2 worker.py PIPELINE PLUGIN OUT
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from visionkit.config import Pipeline, load_pipeline
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.evaluate.runner import evaluate_model
from visionkit.model import MultiTaskModel, Step
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.train.loop import Run, start_processes
from visionkit.train.progress import Averages
from visionkit.train.step import Training, keep_local_buffers
from visionkit.types import MixedBatch

# Everything that is drawn at random (which anchors, which proposals) is taken whole, and no layer looks at the batch.
SURE = [
    "backbone.frozen_bn=true",
    "heads.boxes.rpn_samples=100000",
    "heads.boxes.samples=100000",
    "train.optimizer={name: sgd, lr: 0.01, momentum: 0.0, weight_decay: 0.0}",
    "train.clip=null",
    "train.ema=null",
    "train.batch_size=4",
]
PHASED = [
    "heads={semantic: {name: semantic_fpn, channels: 16}, paint: {name: translate, batch_norm: false}}",
    "sources.stuff.heads=[semantic, paint]",
    "sources.things.heads=[semantic, paint]",
]


def a_training(pipeline: Pipeline, plugins: PluginManager, fabric: Fabric) -> tuple[Training, MixedBatch]:
    """A model that is the same in all processes, and one batch of four images of both sources."""
    torch.manual_seed(0)
    sources = build_sources(pipeline, plugins, "train")
    labels = resolve_labels(pipeline, plugins, sources)
    run = Run(RunFolder(Path("nowhere")), pipeline, build_model(pipeline, plugins, labels), labels)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    batch = next(iter(train_loader(feeds, batch_size=4, seed=3, steps=1)))
    return Training(run, plugins, fabric), batch


def part(batch: MixedBatch, rows: list[int]) -> MixedBatch:
    """The batch of these rows."""
    targets = {head: [own[i] for i in rows] for head, own in batch.targets.items()}
    return replace(batch, images=batch.images[rows], info=tuple(batch.info[i] for i in rows), targets=targets)


def only(batch: MixedBatch, **labelled: list[int]) -> MixedBatch:
    """The same batch, where these heads are labelled on these rows alone."""
    targets = dict(batch.targets)
    for head, rows in labelled.items():
        targets[head] = [t if i in rows else None for i, t in enumerate(targets[head])]
    return replace(batch, targets=targets)


def update(
    pipeline: Pipeline, plugins: PluginManager, fabric: Fabric, parts: int = 1, **labelled: list[int]
) -> dict[str, Any]:
    """Gradients of one step over the four images: all here, or a share in each process, in so many batches."""
    training, batch = a_training(pipeline, plugins, fabric)
    batch = only(batch, **labelled)
    share = len(batch) // fabric.world_size
    mine = part(batch, list(range(fabric.global_rank * share, (fabric.global_rank + 1) * share)))
    model = training.run.model
    gradients: dict[str, Any] = {}
    finish = training._finish

    def watched(optimizer: Any, losses: Any, steps: list[Step]) -> None:
        phase = steps[0].phase
        gradients.update({f"{phase} {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        finish(optimizer, losses, steps)
        for name, p in training.balancer.named_parameters():
            gradients[f"{phase} balancer {name}"] = p.detach().clone()

    training._finish = watched  # type: ignore[method-assign]
    averages = Averages()
    training.step([part(mine, [*range(i, len(mine), parts)]) for i in range(parts)], averages)
    own, _ = averages.read()
    return {"gradients": gradients, "seen": {h: len(mine.labelled(h)) for h in labelled}, "losses": own}


def sharded(pipeline: Pipeline, plugins: PluginManager, fabric: Fabric, **labelled: list[int]) -> dict[str, Any]:
    """Gradients as :func:`update` has them, but every parameter is split among the processes (FSDP).

    The heads are in the outermost shard: their losses need their weights after ``forward`` has returned.
    """
    training, batch = a_training(pipeline, plugins, Fabric(accelerator="cpu") if fabric.world_size == 1 else fabric)
    model = copy.deepcopy(training.run.model).to(memory_format=torch.contiguous_format)  # all that FSDP can split
    model.zero_grad(set_to_none=True)
    batch = only(batch, **labelled).normalised(model.mean, model.std)
    share = len(batch) // fabric.world_size
    mine = part(batch, list(range(fabric.global_rank * share, (fabric.global_rank + 1) * share)))
    if fabric.world_size > 1:
        mesh = init_device_mesh("cpu", (fabric.world_size,))
        fully_shard(model.backbone, mesh=mesh)
        fully_shard(model, mesh=mesh)
    losses = model.train()(Step(mine))
    torch.stack([value for named in losses.values() for value in named.values()]).sum().backward()
    return {
        "gradients": {
            f"main {name}": p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            for name, p in model.named_parameters()
            if p.grad is not None
        }
    }


def metrics(pipeline: Pipeline, plugins: PluginManager, fabric: Fabric, out: Path) -> dict[str, float]:
    """Metrics of an untrained model, the images shared among the processes."""
    torch.manual_seed(0)
    sources = build_sources(pipeline, plugins, "val")
    labels = resolve_labels(pipeline, plugins, sources)
    model = build_model(pipeline, plugins, labels)
    heads = {"heads.boxes.branch.classes.bias"}
    for name, parameter in model.named_parameters():
        if name in heads:
            parameter.data[1:] += 3.0  # so that an untrained model finds something
    return evaluate_model(
        model, pipeline, plugins, labels, sources, out=out, rank=fabric.global_rank, world_size=fabric.world_size
    )


def accumulated(file: str, plugins: PluginManager, fabric: Fabric, parts: int) -> dict[str, Any]:
    """Steps over the four images whose labels and objects are distributed unevenly, in so many batches per process."""
    some = {"semantic": [0, 1, 3], "boxes": [0, 1, 2], "masks": [0], "keypoints": [3]}
    changes = {
        "plain": [],
        "precise": ["train.balancer=geometric_mean"],
        "learned": ["train.balancer=uncertainty"],
        "features": ["train.balancer=upgrad"],
        "norms": ["train.balancer=gradnorm"],
    }
    found = {
        name: update(load_pipeline(file, [*SURE, *own]), plugins, fabric, parts, **some)
        for name, own in changes.items()
    }
    found["phases"] = update(load_pipeline(file, [*SURE, *PHASED]), plugins, fabric, parts, paint=[1, 2, 3])
    return found


class Pool(nn.Module):
    """A parameter, a buffer that the processes share, and one in which each keeps its own."""

    local_buffers = ("own",)

    def __init__(self, value: float) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("own", torch.tensor(value))
        self.register_buffer("shared", torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def buffers(fabric: Fabric) -> dict[str, torch.Tensor]:
    """The buffers of such a module after two forward passes; they start from 1, 2 ... in the processes."""
    pool = Pool(fabric.global_rank + 1.0)
    model = MultiTaskModel(None, None, {})
    model.heads["pool"] = pool
    model.forward = pool.forward  # type: ignore[method-assign, assignment]
    keep_local_buffers(model)
    module = fabric.setup_module(model)
    for _ in range(2):
        fabric.backward(module(torch.ones(1, 1)).sum())
    return {"own": pool.own, "shared": pool.shared}


def everything(file: str, plugin: str, out: Path, fabric: Fabric | None = None) -> dict[str, Any]:
    """All that the tests compare."""
    plugins = PluginManager(files=[plugin])
    pipeline = load_pipeline(file, SURE)
    fabric = fabric or start_processes(pipeline, plugins, "cpu", None, None)
    phased = load_pipeline(file, [*SURE, *PHASED])
    if fabric.world_size > 1:
        fabric.strategy._ddp_kwargs["find_unused_parameters"] = True  # some of what follows has phases
    return {
        "plain": update(pipeline, plugins, fabric),
        "uneven": update(pipeline, plugins, fabric, semantic=[0, 1, 3], boxes=[0, 1], masks=[0], keypoints=[3]),
        "phases": update(phased, plugins, fabric, paint=[1, 2, 3]),
        "learned": update(
            load_pipeline(file, [*SURE, "train.balancer=uncertainty"]), plugins, fabric, semantic=[3], masks=[0, 1]
        ),
        "features": update(load_pipeline(file, [*SURE, "train.balancer=upgrad"]), plugins, fabric, masks=[0, 1]),
        "accumulated": accumulated(file, plugins, fabric, parts=1 if fabric.world_size == 1 else 2),
        "sharded": sharded(pipeline, plugins, fabric, boxes=[0, 1], keypoints=[3]),
        "metrics": metrics(pipeline, plugins, fabric, out),
        "buffers": buffers(fabric),
    }


if __name__ == "__main__":
    found = everything(sys.argv[1], sys.argv[2], Path(sys.argv[3]) / "evaluated")
    torch.save(found, Path(sys.argv[3]) / f"{torch.distributed.get_rank()}.pt")
