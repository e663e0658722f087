"""One training step: the phases of all heads, each with parameters and an optimiser of its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from visionkit.config import build_component
from visionkit.data.base import Source
from visionkit.data.wiring import build_feeds
from visionkit.errors import RunError
from visionkit.evaluate.over_time import pictures_over_time
from visionkit.evaluate.runner import evaluate_model
from visionkit.layers.fast_conv import to_channels_last
from visionkit.model.graph import Branches, Counts, Losses, MultiTaskModel, Step
from visionkit.model.run import load_state
from visionkit.train.balance import Balancer, gradients_at, gramian, weigh_heads
from visionkit.train.checkpoint import load_optimizer, rng_state, save_checkpoint, set_rng_state
from visionkit.train.finite import all_finite, check_state_is_finite, not_finite
from visionkit.train.optim import (
    MovingAverage,
    build_optimizers,
    fill_momentum,
    freeze_parts,
    learning_rate,
    load_initial_weights,
    norms_of_phases,
    phases_of,
)
from visionkit.train.precision import FULL, in_single_precision, precision_errors
from visionkit.train.progress import Averages
from visionkit.types import MixedBatch
from visionkit.types._tree import map_tensors
from visionkit.types.mean import divide
from visionkit.types.processes import gather_objects

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager
    from visionkit.train.loop import Run

log = logging.getLogger("visionkit.train")

SMALLEST_SCALE = 2.0**-14
"""Losses are scaled by less than this only if gradients overflow whatever the scale is."""


class Training:
    """Model, optimisers, balancer and average of one process, and the step that moves them."""

    def __init__(self, run: Run, plugins: PluginManager, fabric: Fabric, *, resumed: bool = False) -> None:
        self.run, self.fabric = run, fabric
        pipeline = run.pipeline
        model, train = run.model, pipeline.train
        if train.channels_last:
            to_channels_last(model)
        if not resumed:
            load_initial_weights(model, pipeline)
        freeze_parts(model, pipeline)
        heads = model.loss_names()
        self.balancer: Balancer = build_component(plugins, "balancer", train.balancer, pipeline, heads)
        self.balancer.to(fabric.device)
        self.phases = phases_of(model)
        self.norms = norms_of_phases(model, self.phases)
        optimizers = build_optimizers(model, self.phases, pipeline, self.balancer)
        keep_local_buffers(model)
        self.module = fabric.setup_module(model)
        ready = fabric.setup_optimizers(*optimizers.values())
        self.optimizers = dict(zip(optimizers, ready if isinstance(ready, list | tuple) else [ready]))
        self.average = MovingAverage(model, train.ema) if train.ema else None
        self._scaler = getattr(fabric.strategy.precision, "scaler", None)

    def step(self, batches: list[MixedBatch], averages: Averages) -> float:
        """One update of every phase from ``accumulate`` batches; returns the learning rate it was taken with.

        Raises:
            UserError: a loss or gradient that is not finite, or a head or device that cannot compute in the precision.
        """
        with precision_errors(self.run.model, self.run.pipeline, self.fabric.device):
            return self._step(batches, averages)

    def rehearse(self, batch: MixedBatch) -> None:
        """Compute the gradients of a batch and forget them, to find out whether all can be computed in the precision.

        Raises:
            UserError: a head or the device cannot.
        """
        (step,) = steps = self._steps([batch], None)
        self.run.model.train()
        with precision_errors(self.run.model, self.run.pipeline, self.fabric.device), self._undone(steps):
            for step.phase in self.optimizers:
                step.whole = None
                with self._only(step.phase):
                    losses: Losses = self.module(step)
                    values = [value for named in losses.values() for value in named.values()]
                    self.fabric.backward(torch.stack(values).sum())
                self._detach(step)
        self.module.zero_grad(set_to_none=True)

    def _steps(self, batches: list[MixedBatch], branch: Callable[[Branches], Branches] | None) -> list[Step]:
        """Batches on the device, normalized."""
        model, device = self.run.model, self.fabric.device
        channels_last = self.run.pipeline.train.channels_last
        moved = [batch.to(device, non_blocking=True) for batch in batches]
        return [Step(b.normalised(model.mean, model.std, channels_last=channels_last), branch) for b in moved]

    def _step(self, batches: list[MixedBatch], averages: Averages) -> float:
        model, train = self.run.model, self.run.pipeline.train
        model.train()
        rate = learning_rate(train, self.run.step)
        # Several batches are weighed together, in a pass of their own.
        branch = self.balancer.branch if self.balancer.at_features and len(batches) == 1 else None
        steps = self._steps(batches, branch)
        images = sum(len(step.batch) for step in steps)
        for phase, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            for step in steps:
                step.phase, step.whole = phase, None
            with self._only(phase):
                losses, labelled = self._backward_one(steps[0]) if len(steps) == 1 else self._backward_many(steps)
                self._finish(optimizer, losses, steps)
            averages.add(losses, labelled, images if phase == "main" else 0)
        self.run.step += 1
        if self.average:
            self.average.update(model)
        return rate

    def _backward_one(self, step: Step) -> tuple[Losses, dict[str, int]]:
        """Gradients of the step's only batch."""
        losses: Losses = self.module(step)
        self._check_dependence(step, losses)
        assert step.whole is not None
        self.fabric.backward(self._one(step.phase, losses, step.whole.labelled))
        self._detach(step)
        return losses, step.whole.labelled

    def _backward_many(self, steps: list[Step]) -> tuple[Losses, dict[str, int]]:
        """Gradients of several batches, equal to those of one batch that holds all their images.

        What a loss is divided by, and how much the balancer makes of it, depends on all batches. So the batches first
        go through the model without a graph, to find both; then every batch adds its share to the gradients.
        """
        losses, whole = self._measure(steps)
        phase = steps[0].phase
        listed = [value.requires_grad_() for named in losses.values() for value in named.values()]
        scalar = self._one(phase, losses, whole.labelled)
        weights = torch.autograd.grad(scalar, listed, retain_graph=True, allow_unused=True)

        def share(step: Step) -> Tensor:
            own: Losses = self.module(step)
            self._check_dependence(step, own)
            parts = [value for named in own.values() for value in named.values()]
            return torch.stack([x * (0.0 if w is None else w) for x, w in zip(parts, weights, strict=True)]).sum()

        for step in steps:
            step.whole = whole
        if phase == "main" and self.balancer.at_features:
            self._weigh_at_features(steps, share)
        for i, step in enumerate(steps):
            with self.fabric.no_backward_sync(self.module, enabled=i < len(steps) - 1):
                # The balancer's own parameters get their gradient once.
                self.fabric.backward(share(step) + scalar if i == 0 else share(step))
            self._detach(step)
        return losses, whole.labelled

    def _check_dependence(self, step: Step, losses: Losses) -> None:
        """Every loss must depend on something that is trained, unless its head is frozen.

        Raises:
            PipelineError: a loss that nothing can learn from.
        """
        for head, named in losses.items():
            parameters = list(self.run.model.head(head).parameters())
            if not step.batch.labelled(head) or (parameters and not any(p.requires_grad for p in parameters)):
                continue
            whole = not any(value.requires_grad for value in named.values())
            for name, value in named.items():
                if not value.requires_grad and (whole or bool(value != 0)):  # a constant 0 may have nothing to measure
                    raise self.run.pipeline.fail(
                        ("heads", head),
                        f"heads.{head}: loss '{name}' depends on no parameter that is trained",
                    )

    def _measure(self, steps: list[Step]) -> tuple[Losses, Counts]:
        """The losses over all batches, without a graph, and what they are means over."""
        sums: list[Losses] = []
        with self._undone(steps), torch.no_grad(), self.fabric.no_backward_sync(self.module):
            for step in steps:
                step.divide = False
                sums.append(self.module(step))
        whole = functools.reduce(operator.add, [step.counts for step in steps]).of_all_processes(self.fabric.device)
        counts = iter(whole.losses)
        losses: Losses = {
            head: {
                name: divide(sum(part[head][name] for part in sums) * self.fabric.world_size, next(counts))  # type: ignore[arg-type]
                for name in named
            }
            for head, named in sums[0].items()
        }
        return losses, whole

    def _weigh_at_features(self, steps: list[Step], share: Callable[[Step], Tensor]) -> None:
        """Ask the balancer for the heads' weights, given the gradients at the features of all batches together."""
        heads: list[str] = []
        grams = []
        scaler = self._scaler
        with self._undone(steps), self.fabric.no_backward_sync(self.module):
            for step in steps:
                features: Branches = {}
                step.branch = functools.partial(_cut_off, kept=features)
                loss = share(step)
                grams.append(gramian(gradients_at(scaler.scale(loss) if scaler else loss, features)))
                heads = list(features)
        weights = weigh_heads(self.balancer, torch.stack(grams).sum(0), heads)
        for step in steps:
            step.branch = functools.partial(self.balancer.branch, weights=weights)

    @contextlib.contextmanager
    def _undone(self, steps: list[Step]) -> Iterator[None]:
        """A rehearsal: random numbers, buffers and the outputs of earlier phases are left as they were."""
        model = self.run.model
        generators = rng_state()
        buffers = [
            (module, name, value, value.clone())
            for module in model.modules()
            for name, value in module.named_buffers(recurse=False)
        ]
        outputs = [step.outputs for step in steps]
        try:
            yield
        finally:
            for module, name, value, before in buffers:
                module._buffers[name] = value.copy_(before)
            for step, output in zip(steps, outputs):
                step.outputs, step.divide = output, True
            set_rng_state(generators)

    def _detach(self, step: Step) -> None:
        # Later phases see what was made, not how; with one phase alone the graph can go at once.
        step.outputs = _detached(step.outputs or {}) if len(self.phases) > 1 else None

    def _one(self, phase: str, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        """The scalar to differentiate: the balancer's in the phase that all heads share, else the plain sum."""
        if phase == "main":
            return self.balancer(losses, labelled)
        return torch.stack([value for named in losses.values() for value in named.values()]).sum()

    def _finish(self, optimizer: Any, losses: Losses, steps: list[Step]) -> None:
        """Check and clip the gradients, and update the parameters of one phase."""
        if steps[0].phase == "main" and self.fabric.world_size > 1:
            # The balancer's own parameters are not in the module whose gradients are averaged over the processes.
            for parameter in self.balancer.parameters():
                if parameter.grad is not None:
                    parameter.grad = self.balancer.mean(parameter.grad)
        norm = self._norm(optimizer)
        self._check_finite(losses, norm, steps)
        self._clip(optimizer, norm)
        fill_momentum(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self._scaler is not None and self._scaler.get_scale() < SMALLEST_SCALE:
            raise RunError(f"the gradient at step {self.run.step} is not finite, however little the losses are scaled; "
                           f"train with precision bf16-mixed or 32-true")  # fmt: skip

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

    def _norm(self, optimizer: Any) -> Tensor | None:
        """The norm of the gradient; ``None`` if it is scaled, because the scaler leaves out a step that overflows, and
        scales less."""
        if self._scaler is not None:
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in _with_gradient(optimizer) if p.grad is not None])

    def _clip(self, optimizer: Any, norm: Tensor | None) -> None:
        limit = self.run.pipeline.train.clip
        if limit is None:
            return
        if norm is None:
            self.fabric.clip_gradients(self.module, optimizer, max_norm=limit, error_if_nonfinite=False)
        else:
            torch.nn.utils.clip_grads_with_norm_(_with_gradient(optimizer), limit, norm)

    def _check_finite(self, losses: Losses, norm: Tensor | None, steps: list[Step]) -> None:
        """Nothing but finite numbers may reach the optimizer.

        Raises:
            RunError: a loss or the gradient is not finite.
        """
        finite: Any = all_finite(losses, norm)
        if norm is None and self.fabric.world_size > 1:
            # Losses differ between the processes, and none of them may go on alone.
            finite = self.fabric.all_reduce(finite.float(), reduce_op="sum") == self.fabric.world_size
        if not bool(finite):
            parameters = [*self.run.model.named_parameters(), *self.balancer.named_parameters("balancer")]
            raise not_finite(losses, [step.batch for step in steps], parameters, self.run.step)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The model is as it is evaluated and saved: in float32 unless it is mixed precision, with the moving average,
        where one is kept."""
        model, full = self.run.model, self.run.pipeline.train.precision in FULL
        own = {name: value.detach().clone() for name, value in model.state_dict().items()} if self.average else {}
        try:
            with in_single_precision(model), contextlib.nullcontext() if full else self.fabric.autocast():
                if self.average:
                    model.load_state_dict(self.average.state)
                yield
        finally:
            if self.average:
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
        with self.averaged():
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
        """Write the checkpoint; one process does, and asks the others for their random numbers.

        Raises:
            RunError: something in it is not finite, or it cannot be written.
        """
        # All processes check, because one that stopped alone would leave the others waiting.
        average = self.average.state if self.average else {}
        optimizers = [optimizer.optimizer for optimizer in self.optimizers.values()]
        check_state_is_finite(self.run.model, average, optimizers, self.run.step)
        generators = gather_objects(rng_state())
        # With one process, they are in the state of the model alone.
        local = gather_objects(self.run.model.local_buffers()) if self.fabric.world_size > 1 else [{}]
        if self.fabric.global_rank == 0:
            save_checkpoint(
                self.run.folder.checkpoint_file,
                {
                    "pipeline": self.run.pipeline.to_yaml(),
                    "labels": {head: labels.to_dict() for head, labels in self.run.labels.items()},
                    "step": self.run.step,
                    "model": self.run.model.state_dict(),
                    "local_buffers": local,
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
        own = state.get("local_buffers", [{}] * processes)[self.fabric.global_rank]
        for name, value in self.run.model.local_buffers().items():
            value.copy_(own.get(name, value))
        for phase, optimizer in self.optimizers.items():
            load_optimizer(optimizer, state["optimizers"][phase])
        self.balancer.load_state_dict(state["balancer"])
        if self.average:
            self.average.load(state["average"], state["step"])
        if state["scaler"]:
            self.fabric.strategy.precision.load_state_dict(state["scaler"])
        set_rng_state(state["rng"][self.fabric.global_rank])


def keep_local_buffers(model: MultiTaskModel) -> None:
    """DDP copies the buffers of the first process to all others before each forward pass; here, not those in which each
    process keeps values of its own."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(model.local_buffers()))


def _detached(outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs cut from their graph, for the phases after the first."""
    return {name: map_tensors(output, torch.Tensor.detach) for name, output in outputs.items()}


def _cut_off(branches: Branches, kept: Branches) -> Branches:
    """The features as leaves of the graph, at which gradients end; they are also put into ``kept``."""
    for head, levels in branches.items():
        kept[head] = {level: value.detach().requires_grad_() for level, value in levels.items()}
    return kept


def _with_gradient(optimizer: Any) -> list[torch.nn.Parameter]:
    """The parameters of an optimizer that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
