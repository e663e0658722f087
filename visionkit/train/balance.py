"""How the losses of many heads become one step: the contract of balancers, and the node at which heads branch off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.graph import Branches, Losses


class Balancer(nn.Module):
    """Losses of all heads -> the one that is differentiated; this base adds them up.

    State that it learns or counts belongs in parameters and buffers, so that checkpoints hold it.

    Args:
        heads: the loss names of every head.
        weights: by head (``semantic: 0.5``) or by single loss (``semantic/cross_entropy: 0.5``); 1 where none is given.

    Attributes:
        at_features: whether :meth:`weigh` is to be asked, amid the backward pass, how the gradients of the heads are
            added where the heads branch off; of the class.
    """

    at_features: ClassVar[bool] = False

    def __init__(self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.weights = dict(weights or {})
        known = set(heads) | {f"{head}/{name}" for head, names in heads.items() for name in names}
        if unknown := sorted(set(self.weights) - known):
            raise UserError(f"weights: there is no head or loss '{unknown[0]}' (there is: {', '.join(sorted(known))})")

    def totals(self, losses: Losses) -> dict[str, Tensor]:
        """The weighted sum of the losses of each head."""
        out: dict[str, Tensor] = {}
        for head, named in losses.items():
            parts = [
                value * (self.weights.get(head, 1.0) * self.weights.get(f"{head}/{name}", 1.0))
                for name, value in named.items()
            ]
            out[head] = parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        return out

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        """A scalar that keeps the graph of every loss.

        Args:
            losses: of all heads.
            labelled: how many images of this step, in all processes, each head has learnt from. The losses of a head
                without any are zeros: it must stay in the sum, and count for nothing else.
        """
        return torch.stack(list(self.totals(losses).values())).sum()

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        """How much of each head's gradient goes on into neck and backbone.

        Args:
            gramian: (K, K) float32, inner products of the gradients of these heads at the shared features, summed over
                levels, images and processes.
            heads: names of the K heads that have learnt from something in this step.

        Returns:
            (K,) weights. A head's own parameters get their gradient whole.
        """
        return torch.ones(len(heads), device=gramian.device)

    def branch(self, branches: Branches) -> Branches:
        """The shared features as each head is to read them: the same values, and :meth:`weigh` on the way back."""
        levels: dict[str, Tensor] = {}
        for own in branches.values():
            levels.update(own)
        if not any(value.requires_grad for value in levels.values()):
            return branches
        names = list(levels)
        plan = [(head, names.index(level)) for head, own in branches.items() for level in own]
        parted = iter(_Branch.apply(self.weigh, plan, *levels.values()))
        return {head: {level: next(parted) for level in own} for head, own in branches.items()}

    @staticmethod
    def mean(values: Tensor) -> Tensor:
        """Values averaged over the processes, without a graph, so that all of them weigh alike."""
        values = values.detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
            values /= torch.distributed.get_world_size()
        return values


class Fixed(Balancer):
    """The weighted sum of all losses.

    Args:
        heads: the loss names of every head.
        weights: by head (``semantic: 0.5``) or by single loss (``semantic/cross_entropy: 0.5``); 1 where none is given.
    """


class _Branch(torch.autograd.Function):
    """Every head's own view of the shared features.

    Autograd calls ``backward`` once the gradients of all heads have arrived, so one ordinary backward pass is all it
    takes, and nothing runs twice.
    """

    @staticmethod
    def forward(ctx: Any, weigh: Any, plan: list[tuple[str, int]], *levels: Tensor) -> tuple[Tensor, ...]:
        ctx.weigh, ctx.plan = weigh, plan
        ctx.last = [level.ndim == 4 and level.is_contiguous(memory_format=torch.channels_last) for level in levels]
        ctx.set_materialize_grads(False)
        return tuple(levels[i].view_as(levels[i]) for _, i in plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        by_head: dict[str, dict[int, Tensor]] = {}
        for (head, level), grad in zip(ctx.plan, grads):
            own = by_head.setdefault(head, {})
            if grad is not None:
                form = torch.channels_last if ctx.last[level] else torch.contiguous_format
                own[level] = grad.contiguous(memory_format=form)
        gramian = _gramian(list(by_head.values()), ctx.last)
        heads = list(by_head)
        weights = torch.ones(len(heads), device=gramian.device)
        # A head that learnt from nothing has a gradient of zeros, which would end the search for a common direction.
        active = [i for i in range(len(heads)) if gramian[i, i] > 0]
        if len(active) > 0:
            weights[active] = ctx.weigh(gramian[active][:, active], [heads[i] for i in active]).to(weights)
        out: list[Tensor | None] = [None] * len(ctx.last)
        for weight, own in zip(weights, by_head.values()):
            for level, grad in own.items():
                part = grad * weight.to(grad.dtype)
                before = out[level]
                out[level] = part if before is None else before.add_(part)
        return (None, None, *out)


def _gramian(gradients: Sequence[Mapping[int, Tensor]], channels_last: Sequence[bool]) -> Tensor:
    """(K, K) float32 inner products over all levels, and over all processes as if they were one."""
    device = next((grad.device for own in gradients for grad in own.values()), torch.device("cpu"))
    flat = [
        {i: (grad.permute(0, 2, 3, 1) if channels_last[i] else grad).reshape(-1) for i, grad in own.items()}
        for own in gradients
    ]
    gramian = torch.zeros(len(flat), len(flat), device=device)
    for i, one in enumerate(flat):
        for j, other in enumerate(flat[: i + 1]):
            for level in one.keys() & other.keys():
                gramian[i, j] += torch.dot(one[level].float(), other[level].float())
            gramian[j, i] = gramian[i, j]
    if torch.distributed.is_initialized():
        # The gradient of the whole is the mean over the processes, each of which holds the part of its own images.
        torch.distributed.all_reduce(gramian)
        gramian /= torch.distributed.get_world_size() ** 2
    return gramian
