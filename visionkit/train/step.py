"""One training step: the phases of all heads, each with parameters and an optimiser of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from visionkit.config import build_component
from visionkit.data.base import Source
from visionkit.data.wiring import build_feeds
from visionkit.errors import RunError
from visionkit.evaluate.over_time import pictures_over_time
from visionkit.evaluate.runner import evaluate_model
from visionkit.model.graph import Losses, Step
from visionkit.model.run import load_state, load_weights
from visionkit.train.balance import Balancer
from visionkit.train.checkpoint import rng_state, save_checkpoint, set_rng_state
from visionkit.train.optim import (
    MovingAverage,
    build_optimizers,
    freeze_parts,
    initial_weights,
    learning_rate,
    norms_of_phases,
    phases_of,
)
from visionkit.train.progress import Averages
from visionkit.types import MixedBatch
from visionkit.types._tree import map_tensors

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager
    from visionkit.train.loop import Run

log = logging.getLogger("visionkit.train")


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
        heads = model.loss_names()
        self.balancer: Balancer = build_component(plugins, "balancer", train.balancer, pipeline, heads)
        self.balancer.to(fabric.device)
        self.phases = phases_of(model)
        self.norms = norms_of_phases(model, self.phases)
        optimizers = build_optimizers(model, self.phases, pipeline, self.balancer)
        self.module = fabric.setup_module(model)
        ready = fabric.setup_optimizers(*optimizers.values())
        self.optimizers = dict(zip(optimizers, ready if isinstance(ready, list | tuple) else [ready]))
        self.average = MovingAverage(model, train.ema) if train.ema else None

    def step(self, batches: list[MixedBatch], averages: Averages) -> float:
        """One update of every phase from ``accumulate`` batches; returns the learning rate it was taken with."""
        model, train = self.run.model, self.run.pipeline.train
        model.train()
        rate = learning_rate(train, self.run.step)
        branch = self.balancer.branch if self.balancer.at_features else None
        steps = [
            Step(
                batch.to(self.fabric.device, non_blocking=True).normalised(
                    model.mean, model.std, channels_last=train.channels_last
                ),
                branch,
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
                        self.fabric.backward(self._one(phase, losses, step) / len(steps))
                    # Later phases see what was made, not how; with one phase alone the graph can go at once.
                    step.outputs = _detached(step.outputs or {}) if len(self.phases) > 1 else None
                    averages.add(losses, step.labelled, len(step.batch) if phase == "main" else 0)
                self._finish(phase, optimizer)
        self.run.step += 1
        if self.average:
            self.average.update(model)
        return rate

    def _one(self, phase: str, losses: Losses, step: Step) -> Tensor:
        """The scalar to differentiate: the balancer's in the phase that all heads share, else the plain sum."""
        if phase == "main":
            return self.balancer(losses, step.labelled)
        return torch.stack([value for named in losses.values() for value in named.values()]).sum()

    def _finish(self, phase: str, optimizer: Any) -> None:
        if phase == "main" and self.fabric.world_size > 1:
            # The balancer's own parameters are not in the module whose gradients are averaged over the processes.
            for parameter in self.balancer.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.balancer.mean(parameter.grad)
        self._clip(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def _only(self, phase: str) -> Iterator[None]:
        """Only this phase's parameters get a gradient, and only its batch norms move their statistics."""
        others = [p for other, parameters in self.phases.items() if other != phase for p in parameters]
        norms = [norm for other, listed in self.norms.items() if other != phase for norm in listed]
        momenta = [norm.momentum for norm in norms]
        for parameter in others:
            parameter.requires_grad_(False)
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum

    def _clip(self, optimizer: Any) -> None:
        train = self.run.pipeline.train
        if train.clip is None:
            return
        norm = self.fabric.clip_gradients(self.module, optimizer, max_norm=train.clip, error_if_nonfinite=False)
        scaled = train.precision == "16-mixed"  # its scaler leaves out a step that overflows, and scales less
        if not scaled and not torch.isfinite(norm):  # type: ignore[arg-type]
            raise RunError(f"the gradient at step {self.run.step} is not finite ({float(norm)}), though every loss is; "  # type: ignore[arg-type]
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
        self,
        plugins: PluginManager,
        sources: Mapping[str, Source],
        *,
        write: bool = False,
        on_metrics: Callable[[dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Metrics of the ``val`` splits; random numbers of training are left as they were. Heads that make pictures
        leave a sheet of them over time. ``on_metrics`` is called before anything is drawn."""
        kept = rng_state()
        with self.averaged(), self.fabric.autocast():
            metrics = evaluate_model(
                self.run.model, self.run.pipeline, plugins, self.run.labels, sources,
                device=self.fabric.device, out=self.run.folder.path if write else None,
                rank=self.fabric.global_rank, world_size=self.fabric.world_size, on_metrics=on_metrics,
            )  # fmt: skip
            if self.fabric.global_rank == 0:
                feeds = build_feeds(self.run.pipeline, plugins, sources, self.run.labels, training=False)
                try:
                    pictures_over_time(
                        self.run.model, self.run.pipeline, self.run.labels, feeds, self.run.folder.path / "pictures",
                        self.run.step, self.fabric.device,
                    )  # fmt: skip
                except Exception as error:  # the training is worth more
                    log.warning("no visualization over time: %s", (str(error) or repr(error)).splitlines()[0])
        set_rng_state(kept)
        return metrics

    def save(self) -> None:
        """Write the checkpoint; one process does, and asks the others for their random numbers."""
        generators: list[Any] = [rng_state()]
        if self.fabric.world_size > 1:
            generators = [None] * self.fabric.world_size
            torch.distributed.all_gather_object(generators, rng_state())
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
                    "scaler": self.fabric.strategy.precision.state_dict(),
                    "rng": generators,
                },
            )
        self.fabric.barrier()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            RunError: it was saved by another number of processes, each of which has drawn its own samples.
        """
        processes, path = len(state["rng"]), self.run.folder.checkpoint_file
        if processes != self.fabric.world_size:
            raise RunError(f"{path} was saved by {processes} processes, and here are {self.fabric.world_size}; "
                           "resume with as many, or begin another run with train.init")  # fmt: skip
        self.run.step = state["step"]
        load_state(self.run.model, state["model"], str(path))
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][phase])
        self.balancer.load_state_dict(state["balancer"])
        if self.average:
            self.average.load(state["average"], state["step"])
        if state["scaler"]:
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        set_rng_state(state["rng"][self.fabric.global_rank])


def _detached(outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs cut from their graph, for the phases after the first."""
    return {name: map_tensors(output, torch.Tensor.detach) for name, output in outputs.items()}
