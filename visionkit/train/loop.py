"""The training loop: one backbone, many heads, several sources."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from visionkit.config import Pipeline, check_arguments
from visionkit.data.label_maps import label_map_problems
from visionkit.data.loader import Feed, Skipped, train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels, untrained_heads
from visionkit.errors import RunError, UserError
from visionkit.evaluate.runner import check_metrics
from visionkit.model import Head, MultiTaskModel
from visionkit.model.build import build_model, head_class, without_first_weights
from visionkit.model.run import RunFolder, damaged
from visionkit.results.files import check_output_folder, json_text, write_atomically, write_errors
from visionkit.results.lock import folder_lock
from visionkit.train.checkpoint import check_continues, load_checkpoint
from visionkit.train.precision import precision_arguments
from visionkit.train.progress import Averages, MetricsFile, Progress
from visionkit.train.step import Training
from visionkit.types import LabelSet, MixedBatch

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


LEFTOVERS = (".visionkit-*", ".weights.safetensors.*", "checkpoints/.last.pt.*")
"""Files of a run folder that were not written to their end."""


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
    devices: int | None = None,
    nodes: int | None = None,
) -> dict[str, float]:
    """Train a pipeline, leave a run folder at ``out``, and return its final metrics (``source/head/metric``).

    Args:
        pipeline: what to train, on what.
        plugins: where its components are looked up.
        out: the run folder.
        resume: go on from its last checkpoint.
        accelerator: ``cpu``, ``cuda``, ``mps`` or ``auto``.
        devices: processes on this machine, one a device; ``None``: as many as ``torchrun`` has started, else one.
        nodes: machines, each launched by ``torchrun``; ``None``: as many as it says, else one.

    Raises:
        UserError: anything in the pipeline or its data that the user must mend, a loss that is not finite (the message
            names the head and the images), a folder that already holds a run.
    """
    check_output_folder(Path(out))
    check_arguments(pipeline, plugins)
    fabric = start_processes(pipeline, plugins, accelerator, devices, nodes)
    with contextlib.ExitStack() as held:
        problem: str | None = None
        if fabric.global_rank == 0:
            try:
                held.enter_context(folder_lock(Path(out), LEFTOVERS))
                if not resume:
                    RunFolder(Path(out)).check_unused()
            except UserError as error:
                problem = str(error)
        if problem := fabric.broadcast(problem):  # no process may wait for one that has given up
            raise RunError(problem)
        return _train(pipeline, plugins, fabric, out, resume)


def _train(
    pipeline: Pipeline, plugins: PluginManager, fabric: Fabric, out: str | Path, resume: bool
) -> dict[str, float]:
    """What :func:`train` does once all processes run and the folder is this run's."""
    folder = RunFolder(Path(out))
    checkpoint = load_checkpoint(folder.checkpoint_file, pipeline) if resume else None

    seed_process(pipeline.train.seed)
    sources = build_sources(pipeline, plugins, "train")
    if not sources:
        raise pipeline.fail(("sources",), "nothing to train on: no source has a `train` split")
    held_out = build_sources(pipeline, plugins, "val")
    labels = resolve_labels(pipeline, plugins, sources, held_out)
    if checkpoint is not None:
        checkpoint.setdefault("labels", {head: label_set.to_dict() for head, label_set in folder.labels().items()})
        check_continues(checkpoint, labels, pipeline, folder.checkpoint_file)
    first = pipeline if checkpoint is None else without_first_weights(pipeline, plugins)
    model = build_model(first, plugins, labels)
    run = Run(folder, pipeline, model, labels)
    training = Training(run, plugins, fabric, resumed=resume)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    check_metrics(model, pipeline, plugins, labels, held_out)
    progress = Progress(pipeline.train.steps, quiet=fabric.global_rank > 0)
    images = ", ".join(f"{len(source):,} of {name}" for name, source in sources.items())
    count = sum(parameter.numel() for parameter in model.parameters())
    progress.say(f"{out}: {count:,} parameters; heads {', '.join(model.order)}; images: {images}")
    for split, group in (("", sources), (" (val)", held_out)):
        for name, source in group.items():
            for problem in (*source.problems(), *label_map_problems(name, source)):
                progress.say(f"{name}{split}: {problem}")
    if unfed := untrained_heads(pipeline, plugins, feeds):
        progress.say(f"NOT TRAINED by any source: {', '.join(unfed)}")
    for name in model.order if checkpoint is None else ():
        for problem in model.head(name).problems():
            progress.say(f"{name}: {problem}")

    if checkpoint is not None:
        with damaged(folder.checkpoint_file):
            training.load(checkpoint)
        progress.say(f"resumed at step {run.step}")
    if checkpoint is None and pipeline.train.precision != "32-true":
        for batch in first_batches(pipeline, feeds):
            training.rehearse(batch)
    if fabric.global_rank == 0:
        if checkpoint is not None and run.step < pipeline.train.steps:
            folder.remove_results()
        folder.write_description(pipeline, labels)
    log = _Log(run, plugins, progress, resume, first=fabric.global_rank == 0)
    accumulate = pipeline.train.accumulate
    skipped = Skipped()
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
        size_divisor=pipeline.train.size_divisor,
        skipped=skipped,
    )
    plugins.hook.visionkit_run_started(run=run)
    if checkpoint is None and fabric.global_rank > 0:
        # The weights are alike in all processes; what is drawn from now on is not.
        seed_process(pipeline.train.seed + fabric.global_rank)
    every = pipeline.train.checkpoint_every or max(pipeline.train.steps // 10, 1)
    saved = run.step
    whole = True  # no step has been taken in part
    try:
        if log.evaluates(run.step) and resume:  # the process may have ended before it did
            log.metrics(training.evaluate(plugins, held_out))
        while run.step < pipeline.train.steps:
            try:
                step_batches = [next(batches) for _ in range(accumulate)]
            except UserError:
                # To save, all processes are needed; the others do not know of this error.
                if run.step > saved and fabric.world_size == 1:
                    training.save()
                    progress.say(f"stopped at step {run.step}; go on with --resume")
                raise
            whole = False
            with interrupts_after():
                rate = training.step(step_batches, log.averages)
                whole = True
            last = run.step == pipeline.train.steps
            if run.step % pipeline.train.log_every == 0 or last:
                log.step(rate)
            if run.step % every == 0 or last:
                training.save()
                saved = run.step
                plugins.hook.visionkit_checkpoint_saved(run=run, step=run.step, path=folder.checkpoint_file)
            if log.evaluates(run.step):
                log.metrics(training.evaluate(plugins, held_out))
    except KeyboardInterrupt:
        if whole:
            training.save()
            progress.say(f"interrupted at step {run.step}; go on with --resume")
        raise
    finally:
        progress.close()
    for line in skipped.gathered(fabric.world_size).summary():
        progress.say(line)

    if fabric.global_rank == 0:
        with training.averaged():
            folder.write_weights(model.state_dict())
    metrics = training.evaluate(plugins, held_out, write=True, on_metrics=functools.partial(log.metrics, final=True))
    log.close()
    return metrics


def first_batches(pipeline: Pipeline, feeds: Sequence[Feed]) -> Iterator[MixedBatch]:
    """A few images of each source, so that all heads are labelled."""
    train = pipeline.train
    for feed in feeds:
        yield from train_loader([dataclasses.replace(feed, weight=1.0)], batch_size=min(train.batch_size, 2), steps=1,
                                seed=train.seed, on_error=train.on_error, size_divisor=train.size_divisor)  # fmt: skip


def seed_process(seed: int) -> None:
    """Seed all generators that a head may draw from: torch's, NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global generator
    random.seed(seed)


def start_processes(
    pipeline: Pipeline, plugins: PluginManager, accelerator: str, devices: int | None, nodes: int | None
) -> Fabric:
    """Fabric, with all its processes running.

    Raises:
        UserError: no such accelerator, or more devices than there are.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0))  # set by torchrun alone, not where Fabric starts processes
    everywhere = int(os.environ.get("WORLD_SIZE", 1)) if here else 1
    devices, nodes = devices or here or 1, nodes or max(1, everywhere // max(here, 1))
    strategy: Any = "auto"
    if devices * nodes > 1:
        # Only where a head has phases are some parameters left out of a backward pass.
        phased = any(head_class(pipeline, plugins, name).phases is not Head.phases for name in pipeline.heads)
        strategy = DDPStrategy(find_unused_parameters=phased)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            **precision_arguments(pipeline.train.precision),
        )
    except (ValueError, RuntimeError) as error:  # Fabric's own words for a device that is not there
        raise UserError(f"accelerator '{accelerator}' with {devices} devices: {str(error).splitlines()[0]}") from None
    fabric.launch()
    return fabric


@contextlib.contextmanager
def interrupts_after() -> Iterator[None]:
    """Let a first Ctrl-C wait until the block is done, so that no step is taken in part; a second one does not wait."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield
        return
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


class _Log:
    """Everything that is told of a run: screen, ``metrics.jsonl``, ``metrics.json``, TensorBoard, plugins.

    Only the ``first`` process writes files.
    """

    def __init__(self, run: Run, plugins: PluginManager, progress: Progress, resume: bool, *, first: bool) -> None:
        self.run, self.plugins, self.progress = run, plugins, progress
        self.averages = Averages()
        again = run.step == run.pipeline.train.steps or self.evaluates(run.step)
        path, resumed_at = run.folder.path / "metrics.jsonl", run.step if resume else None
        self.file = MetricsFile(path, resumed_at, evaluated_again=again) if first else None
        self.board = _tensorboard(run) if first and run.pipeline.train.tensorboard else None

    def step(self, rate: float) -> None:
        losses, speed = self.averages.read()
        step = self.run.step
        if self.file:
            self.file.write(step=step, lr=rate, images_per_s=round(speed, 2), losses=losses)
        self.progress.report(step, losses, speed, rate)
        self._plot("train", {**losses, "lr": rate, "images_per_s": speed})
        self.plugins.hook.visionkit_step_done(run=self.run, step=step, losses=losses)

    def evaluates(self, step: int) -> bool:
        """Whether the run is evaluated after a step that is not its last."""
        every = self.run.pipeline.evaluate.every
        return bool(every) and 0 < step < self.run.pipeline.train.steps and step % (every or 1) == 0

    def metrics(self, metrics: dict[str, float], *, final: bool = False) -> None:
        """``final``: they belong to the weights that the run leaves behind, beside which they are written."""
        step = self.run.step
        if self.file:
            self.file.write(step=step, metrics=metrics)
            if final:
                write_atomically(self.run.folder.metrics_file, json_text(metrics, indent=1))
        self._plot("val", metrics)
        self.plugins.hook.visionkit_evaluated(run=self.run, step=step, metrics=metrics)

    def close(self) -> None:
        if self.file:
            self.file.close()
        if self.board:
            with write_errors(self.run.folder.path / "tensorboard"):
                self.board.close()

    def _plot(self, group: str, values: dict[str, float]) -> None:
        if self.board:
            with write_errors(self.run.folder.path / "tensorboard"):
                for key, value in values.items():
                    if math.isfinite(value):  # NaN: there was nothing to measure
                        self.board.add_scalar(f"{group}/{key}", value, self.run.step)


def _tensorboard(run: Run) -> Any:
    writer = tensorboard_writer(run.pipeline)
    with write_errors(run.folder.path / "tensorboard"):
        return writer(run.folder.path / "tensorboard")


def tensorboard_writer(pipeline: Pipeline) -> Any:
    """The class that writes for TensorBoard. Raises ``PipelineError`` where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise pipeline.fail(
            ("train", "tensorboard"),
            "TensorBoard is not installed: pip install 'visionkit[tensorboard]', or tensorboard: false",
        ) from None
    return SummaryWriter
