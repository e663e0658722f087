"""The training loop: one backbone, many heads, several sources."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from visionkit.config import Pipeline, build_component
from visionkit.data.base import Source
from visionkit.data.loader import train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.errors import RunError
from visionkit.evaluate.runner import evaluate_model
from visionkit.model.build import build_model
from visionkit.model.graph import Losses, MultiTaskModel, Step
from visionkit.model.run import RunFolder, load_state, load_weights, write_atomically
from visionkit.train.balance import Balancer
from visionkit.train.checkpoint import load_checkpoint, rng_state, save_checkpoint, set_rng_state
from visionkit.train.optim import MovingAverage, build_optimizer, freeze_parts, learning_rate, phases_of
from visionkit.train.progress import Averages, MetricsFile, Progress
from visionkit.types import LabelSet, MixedBatch

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


@dataclasses.dataclass
class Run:
    """A run in progress, as life-cycle hooks see it."""

    folder: RunFolder
    pipeline: Pipeline
    model: MultiTaskModel
    labels: dict[str, LabelSet]
    step: int = 0


def train(
    pipeline: Pipeline,
    plugins: PluginManager,
    out: str | Path,
    *,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> dict[str, float]:
    """Train a pipeline, leave a run folder at ``out``, and return its final metrics (``source/head/metric``).

    Args:
        pipeline: what to train, on what.
        plugins: where its components are looked up.
        out: the run folder.
        resume: go on from its last checkpoint.
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        devices: processes on this machine.
        nodes: machines, each launched by ``torchrun``.

    Raises:
        UserError: anything in the pipeline or its data that the user must mend, a loss that is not finite (the message
            names the head and the images), a folder that already holds a run.
    """
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, precision=pipeline.train.precision)  # type: ignore[arg-type]
    fabric.launch()
    folder = RunFolder(Path(out))
    if folder.checkpoint_file.exists() and not resume:
        raise RunError(f"{out} already holds a run: go on with --resume, or choose another --out")
    checkpoint = load_checkpoint(folder.checkpoint_file, pipeline) if resume else None

    torch.manual_seed(pipeline.train.seed)
    sources = build_sources(pipeline, plugins, "train")
    if not sources:
        raise pipeline.fail(("sources",), "nothing to train on: no source has a `train` split")
    held_out = build_sources(pipeline, plugins, "val")
    labels = resolve_labels(pipeline, plugins, {**held_out, **sources})
    model = build_model(pipeline, plugins, labels)
    run = Run(folder, pipeline, model, labels)
    training = Training(run, plugins, fabric)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    progress = Progress(pipeline.train.steps, quiet=fabric.global_rank > 0)
    for name, source in sources.items():
        for problem in source.problems():
            progress.say(f"{name}: {problem}")

    if checkpoint is not None:
        training.load(checkpoint)
        progress.say(f"resumed at step {run.step}")
    if fabric.global_rank == 0:
        folder.write_description(pipeline, labels)
    log = _Log(run, plugins, progress, resume, first=fabric.global_rank == 0)
    accumulate = pipeline.train.accumulate
    batches = train_loader(
        feeds,
        batch_size=pipeline.train.batch_size,
        seed=pipeline.train.seed,
        start_step=run.step * accumulate,
        steps=pipeline.train.steps * accumulate,
        workers=pipeline.train.workers,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        on_error=pipeline.train.on_error,
    )
    plugins.hook.visionkit_run_started(run=run)
    every = pipeline.train.checkpoint_every or max(pipeline.train.steps // 10, 1)
    try:
        while run.step < pipeline.train.steps:
            rate = training.step([next(batches) for _ in range(accumulate)], log.averages)
            last = run.step == pipeline.train.steps
            if run.step % pipeline.train.log_every == 0 or last:
                log.step(rate)
            if run.step % every == 0 or last:
                training.save()
                plugins.hook.visionkit_checkpoint_saved(run=run, step=run.step, path=folder.checkpoint_file)
            if pipeline.evaluate.every and run.step % pipeline.evaluate.every == 0 and not last:
                log.metrics(training.evaluate(plugins, held_out))
    except KeyboardInterrupt:
        training.save()
        progress.say(f"interrupted at step {run.step}; go on with --resume")
        raise
    finally:
        progress.close()

    if fabric.global_rank == 0:
        with training.averaged():
            folder.write_weights(model.state_dict())
    metrics = training.evaluate(plugins, held_out, write=True)
    log.metrics(metrics)
    log.close()
    return metrics


class Training:
    """Model, optimisers, balancer and average of one process, and the step that moves them."""

    def __init__(self, run: Run, plugins: PluginManager, fabric: Fabric) -> None:
        self.run, self.fabric = run, fabric
        pipeline = run.pipeline
        model, train = run.model, pipeline.train
        if train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if train.init:
            load_state(model, load_weights(initial_weights(train.init)), train.init)
        freeze_parts(model, pipeline)
        heads = {name: tuple(model.head(name).loss_names) for name in model.order}
        self.balancer: Balancer = build_component(plugins, "balancer", train.balancer, pipeline, heads)
        self.balancer.to(fabric.device)
        self.phases = phases_of(model)
        optimizers = [
            build_optimizer(model, parameters, train, self.balancer.parameters() if phase == "main" else ())
            for phase, parameters in self.phases.items()
        ]
        self.module = fabric.setup_module(model)
        self.optimizers = dict(zip(self.phases, fabric.setup_optimizers(*optimizers) if len(optimizers) > 1
                                   else [fabric.setup_optimizers(*optimizers)]))  # fmt: skip
        self.average = MovingAverage(model, train.ema) if train.ema else None

    def step(self, batches: list[MixedBatch], averages: Averages) -> float:
        """One update of every phase from ``accumulate`` batches; returns the learning rate it was taken with."""
        model, train = self.run.model, self.run.pipeline.train
        model.train()
        rate = learning_rate(train, self.run.step)
        steps = [
            Step(
                batch.to(self.fabric.device, non_blocking=True).normalised(
                    model.mean, model.std, channels_last=train.channels_last
                )
            )
            for batch in batches
        ]
        for phase, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            with self._only(phase):
                for i, step in enumerate(steps):
                    step.phase = phase
                    with self.fabric.no_backward_sync(self.module, enabled=i < len(steps) - 1):
                        losses: Losses = self.module(step)
                        self._check_finite(losses, step.batch)
                        self.fabric.backward(self.balancer(losses) / len(steps))
                    # Later phases see what was made, not how; with one phase alone the graph can go at once.
                    step.outputs = _detached(step.outputs or {}) if len(self.phases) > 1 else None
                    labelled = {head: len(step.batch.labelled(head)) for head in losses}
                    averages.add(losses, labelled, len(step.batch) if phase == "main" else 0)
                self._clip(phase)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.run.step += 1
        if self.average:
            self.average.update(model)
        return rate

    @contextlib.contextmanager
    def _only(self, phase: str) -> Iterator[None]:
        """Only the parameters of this phase get a gradient."""
        if len(self.phases) == 1:
            yield
            return
        for other, parameters in self.phases.items():
            for parameter in parameters:
                parameter.requires_grad_(other == phase)
        try:
            yield
        finally:
            for parameters in self.phases.values():
                for parameter in parameters:
                    parameter.requires_grad_(True)

    def _clip(self, phase: str) -> None:
        limit = self.run.pipeline.train.clip
        if limit is None:
            return
        norm = torch.nn.utils.clip_grad_norm_(self.phases[phase], limit)
        if not torch.isfinite(norm):
            raise RunError(f"the gradient at step {self.run.step} is not finite ({float(norm)}), though every loss is; "
                           f"lower the learning rate, or train with precision 32-true")  # fmt: skip

    def _check_finite(self, losses: Losses, batch: MixedBatch) -> None:
        if bool(torch.isfinite(torch.stack([v.detach().float() for n in losses.values() for v in n.values()])).all()):
            return
        for head, named in losses.items():
            for name, value in named.items():
                if not torch.isfinite(value):
                    images = ", ".join(batch.info[row].path or str(batch.info[row].id) for row in batch.labelled(head))
                    raise RunError(
                        f"loss '{name}' of head '{head}' is {value.item()} at step {self.run.step}; "
                        f"its images: {images}"
                    )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the moving average, where one is kept."""
        if self.average is None:
            yield
            return
        model = self.run.model
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average.state)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def evaluate(
        self, plugins: PluginManager, sources: Mapping[str, Source], *, write: bool = False
    ) -> dict[str, float]:
        """Metrics of the ``val`` splits; random numbers of training are left as they were."""
        kept = rng_state()
        with self.averaged(), self.fabric.autocast():
            metrics = evaluate_model(
                self.run.model, self.run.pipeline, plugins, self.run.labels, sources,
                device=self.fabric.device, out=self.run.folder.path if write else None,
                rank=self.fabric.global_rank, world_size=self.fabric.world_size,
            )  # fmt: skip
        set_rng_state(kept)
        return metrics

    def save(self) -> None:
        """Write the checkpoint."""
        if self.fabric.global_rank == 0:
            save_checkpoint(
                self.run.folder.checkpoint_file,
                {
                    "pipeline": self.run.pipeline.to_yaml(),
                    "step": self.run.step,
                    "model": self.run.model.state_dict(),
                    "optimizers": {phase: o.state_dict() for phase, o in self.optimizers.items()},
                    "balancer": self.balancer.state_dict(),
                    "average": self.average.state if self.average else None,
                    "rng": rng_state(),
                },
            )
        self.fabric.barrier()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.run.step = state["step"]
        load_state(self.run.model, state["model"], str(self.run.folder.checkpoint_file))
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][phase])
        self.balancer.load_state_dict(state["balancer"])
        if self.average:
            self.average.load(state["average"], state["step"])
        set_rng_state(state["rng"])


class _Log:
    """Everything that is told of a run: screen, ``metrics.jsonl``, ``metrics.json``, TensorBoard, plugins.

    Only the ``first`` process writes files.
    """

    def __init__(self, run: Run, plugins: PluginManager, progress: Progress, resume: bool, *, first: bool) -> None:
        self.run, self.plugins, self.progress = run, plugins, progress
        self.averages = Averages()
        self.file = MetricsFile(run.folder.path / "metrics.jsonl", run.step if resume else None) if first else None
        self.board = _tensorboard(run) if first and run.pipeline.train.tensorboard else None

    def step(self, rate: float) -> None:
        losses, speed = self.averages.read()
        step = self.run.step
        if self.file:
            self.file.write(step=step, lr=rate, images_per_s=round(speed, 2), losses=losses)
        self.progress.report(step, losses, speed, rate)
        if self.board:
            for key, value in {**losses, "lr": rate, "images_per_s": speed}.items():
                self.board.add_scalar(f"train/{key}", value, step)
        self.plugins.hook.visionkit_step_done(run=self.run, step=step, losses=losses)

    def metrics(self, metrics: dict[str, float]) -> None:
        step = self.run.step
        if self.file:
            self.file.write(step=step, metrics=metrics)
            write_atomically(self.run.folder.path / "metrics.json", json.dumps(metrics, indent=1))
        if self.board:
            for key, value in metrics.items():
                self.board.add_scalar(f"val/{key}", value, step)
        self.plugins.hook.visionkit_evaluated(run=self.run, step=step, metrics=metrics)

    def close(self) -> None:
        if self.file:
            self.file.close()
        if self.board:
            self.board.close()


def initial_weights(init: str) -> Path:
    """The weights file that ``train.init`` names: itself, or that of a run folder."""
    path = Path(init)
    return RunFolder(path).weights_file if path.is_dir() else path


def _tensorboard(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise run.pipeline.fail(
            ("train", "tensorboard"),
            "TensorBoard is not installed: pip install 'visionkit[tensorboard]', or tensorboard: false",
        ) from None
    return SummaryWriter(run.folder.path / "tensorboard")  # type: ignore[no-untyped-call]


def _detached(outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs cut from their graph, for the phases after the first."""
    from visionkit.types._tree import map_tensors

    def cut(tensor: Tensor) -> Tensor:
        return tensor.detach()

    return {name: map_tensors(output, cut) for name, output in outputs.items()}
