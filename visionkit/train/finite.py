"""NaN and infinity reach neither the optimizer nor a checkpoint; the error says where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from visionkit.errors import RunError
from visionkit.model.graph import Losses
from visionkit.types import MixedBatch

_OPTIMIZER_STATE = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def all_finite(losses: Losses, norm: Tensor | None) -> Tensor:
    """Whether every loss and the norm of the gradient are finite: one boolean on their device, which takes a single
    synchronization to read."""
    values = [value.detach().float() for named in losses.values() for value in named.values()]
    if norm is not None:
        values.append(norm.detach().float())
    return torch.isfinite(torch.stack(values)).all()


def not_finite(
    losses: Losses, batches: Sequence[MixedBatch], parameters: Iterable[tuple[str, nn.Parameter]], step: int
) -> RunError:
    """The error that names the head, and either the loss and the images or the parameter.

    Args:
        losses: of all batches of the step.
        batches: the images that they come from.
        parameters: those that have gradients, by their names in the model.
        step: the number of the step.
    """
    for head, named in losses.items():
        for name, value in named.items():
            if not torch.isfinite(value):
                rows = [(batch, row) for batch in batches for row in batch.labelled(head)]
                images = ", ".join(batch.info[row].path or str(batch.info[row].id) for batch, row in rows)
                return RunError(
                    f"loss '{name}' of head '{head}' is {value.item()} at step {step}; its images: {images}"
                )
    return RunError(f"the gradient{_first_at_fault(parameters)} at step {step} is not finite, though every loss is; "
                    "lower the learning rate, or train with precision 32-true")  # fmt: skip


def _first_at_fault(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """The first parameter whose gradient is not finite. Shared layers get theirs from the heads, so that those come
    first."""
    names = [name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
    name = next((name for name in names if name.startswith("heads.")), names[0] if names else "")
    if name.startswith("heads."):
        return f" of head '{name.split('.')[1]}' ({name})"
    return f" of {name}" if name else ""


def check_state_is_finite(
    model: nn.Module, average: Mapping[str, Tensor], optimizers: Iterable[Optimizer], step: int
) -> None:
    """An update can overflow although its gradient is finite.

    Args:
        model: whose weights and statistics are checked.
        average: the moving average of its state; empty if there is none.
        optimizers: of its parameters.
        step: how many updates were made.

    Raises:
        RunError: the message names the first tensor that is not finite.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed: list[tuple[str, Any]] = [*model.state_dict().items()]
    listed += [(f"the moving average of {name}", value) for name, value in average.items()]
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            name = names.get(id(parameter), "a parameter of the balancer")
            listed += [(f"the {key} of {name}", state[key]) for key in _OPTIMIZER_STATE if key in state]
    listed = [(name, value) for name, value in listed if isinstance(value, Tensor) and value.is_floating_point()]
    finite = torch.stack([torch.isfinite(value).all() for _, value in listed]).tolist()
    if not all(finite):
        raise RunError(f"{listed[finite.index(False)][0]} is not finite after step {step}, and nothing of this step is "
                       "saved; lower the learning rate")  # fmt: skip
