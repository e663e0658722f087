"""Optimisers, and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from visionkit.config import OptimizerConfig, Pipeline, TrainConfig
from visionkit.errors import RunError
from visionkit.model.frozen import longest_prefix, part_names
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import check_state, load_state, starting_weights
from visionkit.plugins import did_you_mean


def load_initial_weights(model: MultiTaskModel, pipeline: Pipeline) -> None:
    """Load what ``train.init`` names, if it does: a run folder, a checkpoint or a safetensors file.

    Raises:
        UserError: there is no such file, or it does not fit the model.
    """
    init = pipeline.train.init
    if init is None:
        return
    try:
        load_state(model, starting_weights(Path(init)), init)
    except RunError as error:
        raise pipeline.fail(("train", "init"), f"train.init: {error}") from None


def freeze_parts(model: MultiTaskModel, pipeline: Pipeline) -> None:
    """Freeze the parts of a model that the pipeline freezes; the longest prefix that matches a name decides.

    Raises:
        UserError: a prefix that matches nothing.
    """
    names, parts = part_names(model), pipeline.train.parts
    learned = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for prefix, part in parts.items():
        if prefix not in names:
            around = prefix.rpartition(".")[0]
            beside = [name for name in names if name.rpartition(".")[0] == around] or ["backbone", "neck", "heads"]
            hint = f"{did_you_mean(prefix, names)} (there are {', '.join(beside[:12])})"
            raise pipeline.fail(("train", "parts", prefix), f"the model has no part '{prefix}'{hint}")
        changes = part.lr_scale != 1.0 or part.weight_decay is not None
        if changes and not any(longest_prefix(name, (prefix,)) for name in learned):
            raise pipeline.fail(("train", "parts", prefix), f"no parameter lies under '{prefix}'")
    model.freeze({prefix: part.freeze for prefix, part in parts.items()})


def phases_of(model: MultiTaskModel) -> dict[str, list[nn.Parameter]]:
    """Parameters by phase, ``main`` first: everything that is trained but what heads keep for phases of their own."""
    phases: dict[str, list[nn.Parameter]] = {"main": []}
    apart: set[int] = set()
    for name in model.order:
        head = model.head(name)
        main = {id(p) for p in head.phases()["main"]}
        apart |= {id(p) for p in head.parameters()} - main
        for phase, parameters in head.phases().items():
            if phase != "main":
                phases.setdefault(phase, []).extend(p for p in parameters if p.requires_grad)
    phases["main"] = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    return phases


def norms_of_phases(model: nn.Module, phases: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, list[_NormBase]]:
    """Batch norms by the phase that trains their scale."""
    phase_of = {id(p): phase for phase, parameters in phases.items() for p in parameters}
    found: dict[str, list[_NormBase]] = {phase: [] for phase in phases}
    for module in model.modules():
        if isinstance(module, _NormBase) and module.track_running_stats and id(module.weight) in phase_of:
            found[phase_of[id(module.weight)]].append(module)
    return found


def build_optimizers(
    model: MultiTaskModel, phases: Mapping[str, Sequence[nn.Parameter]], pipeline: Pipeline, balancer: nn.Module
) -> dict[str, Optimizer]:
    """One optimiser a phase; what the balancer learns belongs to ``"main"``.

    Raises:
        UserError: ``train.phases`` names a phase that no head has, or nothing is left to optimize.
    """
    train = pipeline.train
    others = [phase for phase in phases if phase != "main"]
    if unknown := [phase for phase in train.phases if phase not in others]:
        raise pipeline.fail(
            ("train", "phases", unknown[0]),
            f"no head has a phase '{unknown[0]}' (phases beside main: {', '.join(others) or 'none'})",
        )
    if not phases["main"]:
        frozen = [prefix for prefix, part in train.parts.items() if part.freeze]
        why = f": train.parts freezes {', '.join(frozen)}" if frozen else ": every parameter of the model is frozen"
        raise pipeline.fail(("train", "parts") if frozen else ("heads",), f"nothing is left to optimize{why}")
    return {
        phase: build_optimizer(
            model, parameters, train, balancer.parameters() if phase == "main" else (), train.phases.get(phase)
        )
        for phase, parameters in phases.items()
        if parameters  # all of an adversarial head may be frozen
    }


def build_optimizer(
    model: MultiTaskModel,
    parameters: Iterable[nn.Parameter],
    train: TrainConfig,
    extra: Iterable[nn.Parameter] = (),
    config: OptimizerConfig | None = None,
) -> Optimizer:
    """One optimiser over ``parameters``, grouped by the parts of the pipeline (the longest matching prefix counts).

    Each group carries ``lr_scale``; the loop sets its ``lr`` before every step. ``extra`` are parameters of the
    balancer, which are never decayed; ``config`` is that of the phase, where it has one of its own.
    """
    config = config or train.optimizer
    pace = float(config.lr) / float(train.optimizer.lr)
    wanted = {id(p) for p in parameters}
    decay = float(config.weight_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in wanted:
            continue
        part = train.parts.get(longest_prefix(name, train.parts))
        scale = (part.lr_scale if part else 1.0) * pace
        own = part.weight_decay if part and part.weight_decay is not None else decay
        groups.setdefault((scale, own), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": params, "lr_scale": scale, "weight_decay": own} for (scale, own), params in groups.items()
    ]
    if more := list(extra):
        listed.append({"params": more, "lr_scale": pace, "weight_decay": 0.0})
    # One pass over the parameters instead of several; but scaled gradients of a fused optimiser could not be clipped.
    fused = train.precision != "16-mixed"
    if config.name == "sgd":
        return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas, fused=fused)


def fill_momentum(optimizer: Optimizer) -> None:
    """Start the momentum of parameters that get their first gradient after others of their optimizer.

    PyTorch's fused SGD fails if only some parameters have a buffer. A buffer of zeros gives the same first update.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(train: TrainConfig, step: int) -> float:
    """The base learning rate of ``step`` (from 0): a linear warm-up from ``factor`` times the schedule's rate, then

    - ``constant``;
    - ``multistep``: times ``gamma`` at each milestone passed;
    - ``cosine``: half a cosine from 1 to ``final`` (a share of the base rate);
    - ``poly``: ``(1 - step / steps) ** power`` (DeepLab, Chen et al. 2017), down to ``final``.

    The last two keep the whole rate for a share ``hold`` of the steps, and take the rest for their way down.
    """
    schedule, warmup = train.schedule, train.warmup
    done = max(min(step / max(train.steps, 1), 1.0) - schedule.hold, 0.0) / (1.0 - schedule.hold)
    if schedule.name == "multistep":
        factor = schedule.gamma ** sum(step >= milestone for milestone in schedule.milestones)
    elif schedule.name == "cosine":
        factor = schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * done))
    elif schedule.name == "poly":
        factor = schedule.final + (1.0 - schedule.final) * (1.0 - done) ** schedule.power
    else:
        factor = 1.0
    if step < warmup.steps:
        factor *= warmup.factor + (1.0 - warmup.factor) * step / warmup.steps
    return float(train.optimizer.lr) * factor


class MovingAverage:
    """Exponential moving average of everything in a model's state dict (weights and statistics).

    Args:
        model: whose.
        decay: share of the old value kept at each step; less in the first steps, ``(1 + n) / (10 + n)``, so that the
            random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model as it is now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            mine = self.state[name]
            if mine.is_floating_point():
                mine.lerp_(value.to(mine.dtype), 1.0 - decay)
            else:
                mine.copy_(value)

    def load(self, state: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on from a checkpoint, after so many updates."""
        check_state(self.state, state, "the moving average of the checkpoint")
        self.updates = updates
        for name, value in state.items():
            self.state[name].copy_(value)
