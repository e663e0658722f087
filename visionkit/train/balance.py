"""How the losses of many heads become one step: the contract of balancers, and the node at which heads branch off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.graph import Branches, Losses
from visionkit.numbers import NonNegative
from visionkit.types.device import constant

Gradients = dict[str, dict[int, Tensor]]
"""Gradients at the shared features, by head and number of the level."""


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

    def __init__(self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, NonNegative] | None = None) -> None:
        super().__init__()
        self.heads = dict(heads)
        self.weights = dict(weights or {})
        known = set(heads) | {f"{head}/{name}" for head, names in heads.items() for name in names}
        if unknown := sorted(set(self.weights) - known):
            raise UserError(f"weights: there is no head or loss '{unknown[0]}' (there is: {', '.join(sorted(known))})")
        for head, names in self.heads.items():
            if names and not any(self.weights.get(head, 1) * self.weights.get(f"{head}/{name}", 1) for name in names):
                raise UserError(f"weights: all losses of head '{head}' have the weight 0, so that it learns nothing; "
                                "train.parts can freeze it")  # fmt: skip

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
            gramian: (K, K) float64 (float32 where the device has no other), inner products of the gradients of these
                heads at the shared features, summed over levels, images and processes.
            heads: names of the K heads that have learnt from something in this step.

        Returns:
            (K,) weights. A head's own parameters get their gradient whole.
        """
        return torch.ones(len(heads), device=gramian.device)

    def branch(self, branches: Branches, weights: Mapping[str, Tensor] | None = None) -> Branches:
        """The shared features as each head is to read them: the same values, and the weights of the heads' gradients on
        the way back.

        Args:
            branches: levels by head.
            weights: by head, where they are known already; ``None``: :meth:`weigh` is asked.
        """
        levels: dict[str, Tensor] = {}
        for own in branches.values():
            levels.update(own)
        if not any(value.requires_grad for value in levels.values()):
            return branches
        names = list(levels)
        plan = [(head, names.index(level)) for head, own in branches.items() for level in own]

        def weights_of(gradients: Gradients) -> Mapping[str, Tensor]:
            return weigh_heads(self, gramian(gradients), list(gradients)) if weights is None else weights

        parted = iter(_Branch.apply(weights_of, plan, *levels.values()))
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
    def forward(ctx: Any, weights_of: Any, plan: list[tuple[str, int]], *levels: Tensor) -> tuple[Tensor, ...]:
        ctx.weights_of, ctx.plan = weights_of, plan
        ctx.last = [level.ndim == 4 and level.is_contiguous(memory_format=torch.channels_last) for level in levels]
        ctx.set_materialize_grads(False)
        return tuple(levels[i].view_as(levels[i]) for _, i in plan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        by_head: Gradients = {}
        for (head, level), grad in zip(ctx.plan, grads):
            own = by_head.setdefault(head, {})
            if grad is not None:
                form = torch.channels_last if ctx.last[level] else torch.contiguous_format
                own[level] = grad.contiguous(memory_format=form)
        weights = ctx.weights_of(by_head)
        out: list[Tensor | None] = [None] * len(ctx.last)
        for head, own in by_head.items():
            for level, grad in own.items():
                part = grad * weights[head].to(grad.dtype)
                before = out[level]
                out[level] = part if before is None else before.add_(part)
        return (None, None, *out)


def weigh_heads(balancer: Balancer, gramian: Tensor, heads: Sequence[str]) -> dict[str, Tensor]:
    """The weight of every head, given this process's share of the Gramian of their gradients."""
    if torch.distributed.is_initialized():
        # The gradient of the whole is the mean over the processes, each of which holds the part of its own images.
        torch.distributed.all_reduce(gramian)
        gramian = gramian / torch.distributed.get_world_size() ** 2
    weights = torch.ones(len(heads), device=gramian.device)
    # A head that learned from nothing has a gradient of zeros, which would end the search for a common direction.
    active = [i for i, own in enumerate(gramian.diagonal().tolist()) if own > 0]
    if active:
        rows = constant(active, gramian, torch.int64)
        weights[rows] = balancer.weigh(gramian[rows][:, rows], [heads[i] for i in active]).to(weights)
    return dict(zip(heads, weights))


def gradients_at(loss: Tensor, branches: Branches) -> Gradients:
    """Gradients of a scalar at the shared features of every head; those that it doesn't depend on are left out."""
    names = list(dict.fromkeys(level for own in branches.values() for level in own))
    where = [(head, level) for head, own in branches.items() for level in own]
    found = torch.autograd.grad(loss, [branches[head][level] for head, level in where], allow_unused=True)
    gradients: Gradients = {head: {} for head in branches}
    for (head, level), gradient in zip(where, found):
        if gradient is not None:
            gradients[head][names.index(level)] = gradient.contiguous()
    return gradients


def gramian(gradients: Gradients) -> Tensor:
    """(K, K) inner products of the gradients of K heads, over all levels that two of them share.

    They are in double precision: rounded to single precision, the Gramian of dependent gradients is not singular. A
    device without double precision gives float32.
    """
    device = next((grad.device for own in gradients.values() for grad in own.values()), torch.device("cpu"))
    flat = [{level: _flat(grad) for level, grad in own.items()} for own in gradients.values()]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    found = torch.zeros(len(flat), len(flat), dtype=dtype, device=device)
    for i, one in enumerate(flat):
        for j, other in enumerate(flat[: i + 1]):
            for level in one.keys() & other.keys():
                found[i, j] += torch.dot(one[level].to(dtype), other[level].to(dtype))
            found[j, i] = found[i, j]
    return found


def _flat(gradient: Tensor) -> Tensor:
    """All values in the order in which they lie in memory, where that can be."""
    if gradient.ndim == 4 and gradient.is_contiguous(memory_format=torch.channels_last):
        gradient = gradient.permute(0, 2, 3, 1)
    return gradient.reshape(-1)
