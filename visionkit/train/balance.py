"""How the losses of many heads become one number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.graph import Losses


class Balancer(nn.Module, ABC):
    """Losses of all heads -> the one that is differentiated. State that it learns or counts belongs in parameters and
    buffers, so that checkpoints hold it."""

    def __init__(self, heads: Mapping[str, tuple[str, ...]]) -> None:
        """Args: heads: the loss names of every head."""
        super().__init__()
        self.heads = dict(heads)

    @abstractmethod
    def forward(self, losses: Losses) -> Tensor:
        """A scalar that keeps the graph."""


class Fixed(Balancer):
    """The weighted sum of all losses.

    Args:
        heads: the loss names of every head.
        weights: by head (``semantic: 0.5``) or by single loss (``semantic/cross_entropy: 0.5``); 1 where none is given.
    """

    def __init__(self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, float] | None = None) -> None:
        super().__init__(heads)
        self.weights = dict(weights or {})
        known = set(heads) | {f"{head}/{name}" for head, names in heads.items() for name in names}
        if unknown := sorted(set(self.weights) - known):
            raise UserError(f"weights: there is no head or loss '{unknown[0]}' (there is: {', '.join(sorted(known))})")

    def forward(self, losses: Losses) -> Tensor:
        total: Tensor | None = None
        for head, named in losses.items():
            for name, value in named.items():
                part = value * (self.weights.get(head, 1.0) * self.weights.get(f"{head}/{name}", 1.0))
                total = part if total is None else total + part
        assert total is not None, "a pipeline without losses"
        return total
