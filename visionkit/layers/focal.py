"""Focal loss (Lin et al., ICCV 2017)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.layers.boxes import IGNORED


def focal_background(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``-(1 - alpha) p^gamma log(1 - p)`` of every logit, as if all were background (equation 5 with y = -1).

    0.1299651 at a logit of 0 with the defaults.
    """
    return (1 - alpha) * logits.sigmoid().pow(gamma) * F.softplus(logits)


def focal_object(logits: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``-alpha (1 - p)^gamma log(p)`` of every logit, as if all were objects (equation 5 with y = 1).

    0.0433217 at a logit of 0 with the defaults.
    """
    return alpha * (-logits).sigmoid().pow(gamma) * F.softplus(-logits)


def focal_sums(
    logits: Tensor,
    matched: Tensor,
    classes: Tensor,
    *,
    at: tuple[Tensor, Tensor] | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss of each image, summed over anchors and classes.

    Nothing of the size of ``logits`` is made for the targets, almost all of which are 0: everything counts as
    background, and the few entries of objects are exchanged.

    Args:
        logits: (B, A, K) float32.
        matched: (B, A) as :func:`visionkit.layers.boxes.match` gives it.
        classes: (n,) labels of the anchors with an object, in the order of ``matched``.
        at: image and anchor of each of the ``classes``, where the caller knows them; otherwise the host waits for the
            device to find them.
        alpha: weight of objects; background has the rest.
        gamma: how strongly what is easy is passed over; 0 for cross-entropy.

    Returns:
        (B,).
    """
    anchors: Tensor = _BackgroundOfAnchors.apply(logits, alpha, gamma)
    sums = (anchors * (matched != IGNORED)).sum(1)
    image, anchor = (matched >= 0).nonzero(as_tuple=True) if at is None else at
    own = logits[image, anchor, classes]
    return sums.index_add(0, image, focal_object(own, alpha, gamma) - focal_background(own, alpha, gamma))


class _BackgroundOfAnchors(torch.autograd.Function):
    """:func:`focal_background` summed over the last axis; keeps two tensors of that size, where autograd keeps five."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, alpha: float, gamma: float) -> Tensor:
        p, surprise = logits.sigmoid(), F.softplus(logits)
        ctx.save_for_backward(p, surprise)
        ctx.alpha, ctx.gamma = alpha, gamma
        return p.pow(gamma).mul_(surprise).sum(-1).mul_(1 - alpha)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None]:
        """(1 - alpha) p^gamma (gamma (1 - p) softplus(x) + p)."""
        p, surprise = ctx.saved_tensors
        slope = torch.addcmul(surprise, p, surprise, value=-1).mul_(ctx.gamma).add_(p).mul_(p.pow(ctx.gamma))
        return slope * ((1 - ctx.alpha) * above)[..., None], None, None


def prior_bias(probability: float) -> float:
    """The bias from which a sigmoid gives ``probability``: -4.59512 for 0.01 (section 4.1, initialization)."""
    return -math.log((1 - probability) / probability)
