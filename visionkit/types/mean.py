"""A loss as what it is the mean of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mean:
    """A sum and what it is divided by: pixels, anchors, objects ...

    A head that returns this in place of the quotient lets the core divide by the count of *all* processes and of all
    accumulated batches, so that many small batches give the gradient of one large batch, however unevenly the labels
    fall on them.

    Attributes:
        total: scalar, the sum.
        count: scalar or number, 0 where there is nothing to learn from.
    """

    total: Tensor
    count: Tensor | float

    def value(self) -> Tensor:
        """The mean; 0 (with its graph) where nothing was counted."""
        return divide(self.total, self.count)


def divide(total: Tensor, count: Tensor | float) -> Tensor:
    """``total / count``, and ``total`` itself, which is then 0, where ``count`` is 0."""
    if not isinstance(count, Tensor):
        return total / count if count > 0 else total
    count = count.to(torch.promote_types(total.dtype, torch.float32))
    return total / torch.where(count > 0, count, torch.ones_like(count))
