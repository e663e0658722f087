"""Balancers that weigh gradients: how much of each head's goes on from the shared features into neck and backbone.

All of them need no more than the inner products of the gradients, and one ordinary backward pass. A head's own
parameters get their gradient whole. The Gramian is divided by the mean of its diagonal first, so that nothing depends
on the scale of gradients but what a method makes depend on it. With one head, or a gradient that is not finite (which
half precision skips), all weights are 1.

The weightings are `torchjd`'s (Quinton and Rey, "Jacobian descent for multi-objective optimization", 2024) where they
need no solver. Where they do, the small convex problem is solved here, exactly: it has one unknown a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchjd.aggregation import (
    AlignedMTLWeighting,
    DualProjWeighting,
    PCGradWeighting,
    UPGradWeighting,
)
from torchjd.linalg import DualConeProjector

from visionkit.errors import UserError
from visionkit.numbers import Count, NonNegative
from visionkit.train.balance import Balancer
from visionkit.train.weighting import generator
from visionkit.types.device import to_device

RIDGE = 1e-6
"""Added to a diagonal of mean 1 where a problem must be strictly convex: the rounding of float32 inner products."""


class PCGrad(Balancer):
    """Projects each head's gradient onto the normal plane of every other that it conflicts with, one after another in
    random order, and adds the results up (Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020,
    algorithm 1).

    With two heads no loss rises along the step; with more one may.
    Scale: heads that do not conflict give the plain sum of their gradients.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        seed: of the order; it is drawn from the seed and the number of the batch.
    """

    at_features = True
    batches: Tensor

    def __init__(
        self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, NonNegative] | None = None, seed: Count = 0
    ) -> None:
        super().__init__(heads, weights=weights)
        self.seed = seed
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        step = int(self.batches)
        self.batches += 1

        def solve(g: Tensor) -> Tensor:
            # torchjd draws from the global generator: it gets a state of ours, and its own back.
            kept = torch.get_rng_state()
            try:
                torch.set_rng_state(generator(self.seed, step).get_state())
                return PCGradWeighting()(g)
            finally:
                torch.set_rng_state(kept)

        return solved(gramian, solve)


class CAGrad(Balancer):
    """The step within a ball about the mean gradient ``g0``, of radius ``c |g0|``, whose smallest gain over all heads
    is largest (Liu et al., "Conflict-averse gradient descent for multi-task learning", NeurIPS 2021, algorithm 1).

    Scale: the paper's step times ``K / (1 + c)``; heads that agree give the plain sum of their gradients.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        c: 0 is the mean gradient; the larger, the more the worst-off head counts.
    """

    at_features = True

    def __init__(
        self,
        heads: Mapping[str, tuple[str, ...]],
        *,
        weights: dict[str, NonNegative] | None = None,
        c: NonNegative = 0.5,
    ) -> None:
        super().__init__(heads, weights=weights)
        if c < 0:
            raise UserError(f"c {c} must not be negative")
        self.c = c

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, lambda g: conflict_averse(g, self.c) * (len(g) / (1 + self.c)))


class MGDA(Balancer):
    """The shortest vector in the convex hull of the gradients, along which no loss rises (Désidéri, "Multiple-gradient
    descent algorithm for multiobjective optimization", 2012; Sener and Koltun, "Multi-task learning as multi-objective
    optimization", NeurIPS 2018, equation 3).

    It is found exactly, not by Frank and Wolfe's iteration as in the second paper, and at the shared features as there
    (MGDA-UB). Heads with small gradients rule.
    Scale: weights add up to 1, as published: heads that agree give a mean of their gradients, and the step shrinks to
    nothing where they oppose one another. Expect a learning rate about as many times larger as there are heads.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    at_features = True

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, shortest)


class NashMTL(Balancer):
    """The Nash bargaining solution: weights ``a > 0`` with ``G a = 1 / a`` for the Gramian ``G`` (Navon et al.,
    "Multi-task learning as a bargaining game", ICML 2022, algorithm 1). The direction does not depend on the scale of
    any head's loss.

    They are the minimum of ``a' G a / 2 - sum log a``, which Newton's method finds to the last bits in place of the
    paper's sequence of convex programs. The paper's cap on the step's norm is left to ``train.clip``.
    Scale: the step has always the norm ``sqrt(K)`` times the root mean square norm of the gradients, as the plain sum
    has where they are orthogonal.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    at_features = True

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, bargained)


class AlignedMTL(Balancer):
    """Turns the gradients as little as possible into orthogonal ones of one length, and adds those up (Senushkin et
    al., "Independent component alignment for multi-task learning", CVPR 2023, algorithm 1).

    Scale: as published that length is the smallest singular value of the gradients, so the step shrinks where any two
    of them are nearly parallel or opposed; orthogonal gradients of one length give their plain sum.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        length: which singular value is taken: the smallest, the median, or the root mean square (as in the authors'
            first code).
    """

    at_features = True

    def __init__(
        self,
        heads: Mapping[str, tuple[str, ...]],
        *,
        weights: dict[str, NonNegative] | None = None,
        length: Literal["min", "median", "rmse"] = "min",
    ) -> None:
        super().__init__(heads, weights=weights)
        self.length: Literal["min", "median", "rmse"] = length

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, lambda g: AlignedMTLWeighting(torch.ones(len(g)).to(g), self.length)(g))


class ImpartialGradients(Balancer):
    """IMTL-G (Liu et al., "Towards impartial multi-task learning", ICLR 2021): the step whose projections
    onto all gradients, each made of length 1, are equal.

    Weights may be negative. Gradients that depend on one another are served by the pseudo-inverse, as in torchjd, where
    eigenvalues that are no more than rounding count as 0.
    Scale: weights add up to 1, as published: heads that agree give a mean of their gradients.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    at_features = True

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        # Gradients are float32, so what is left of a singular value that is 0 is at most the square of their rounding.
        rounding = torch.finfo(torch.float32).eps
        noise = len(gramian) * (rounding**2 if gramian.dtype == torch.float64 else rounding)
        return solved(gramian, lambda g: impartial(g, noise))


class UPGrad(Balancer):
    """Projects each head's gradient onto the cone of directions along which no loss rises, and adds the results up
    (Quinton and Rey, "Jacobian descent for multi-objective optimization", 2024).

    Scale: heads that do not conflict give the plain sum of their gradients.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    at_features = True

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, lambda g: UPGradWeighting(torch.ones(len(g)).to(g), Cone())(g))


class DualProj(Balancer):
    """Projects the sum of the gradients onto the cone of directions along which no loss rises (Lopez-Paz and Ranzato,
    "Gradient episodic memory for continual learning", NeurIPS 2017, equation 11).

    Scale: heads that do not conflict with the sum give the plain sum of their gradients.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    at_features = True

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        return solved(gramian, lambda g: DualProjWeighting(torch.ones(len(g)).to(g), Cone())(g))


def solved(gramian: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Weights from a Gramian, made on the CPU in double precision: it has but a few numbers.

    Args:
        gramian: (K, K), the diagonal above 0.
        solve: (K, K) float64 with a diagonal of mean 1 -> (K,).
    """
    small = gramian.detach().cpu().double()
    if len(small) < 2 or not bool(torch.isfinite(small).all()):
        return torch.ones(len(small), device=gramian.device)
    return to_device([solve(small / small.diagonal().mean()).float()], gramian.device)[0]


def conflict_averse(gramian: Tensor, c: float) -> Tensor:
    """Weights of CAGrad's step.

    The step is ``g0 + e``, where ``e`` is the shortest vector that lifts the gain of every head to a level ``m``, and
    ``m`` is such that ``|e| = c |g0|``. ``|e|`` is convex in ``m``, so Newton's method from above cannot miss.
    """
    count = len(gramian)
    matrix = _strictly_convex(gramian)
    gains = matrix.mean(1)
    radius = c * math.sqrt(matrix.mean())
    pull = np.zeros(count)
    level = float((gains + radius * np.sqrt(matrix.diagonal())).min())
    for _ in range(100):
        if radius < 1e-9:
            break
        pull = nonnegative_minimum(matrix, level - gains)
        length = math.sqrt(pull @ matrix @ pull)
        if length <= radius * (1 + 1e-9):
            break
        level -= (length - radius) * length / float(pull.sum())
    return torch.from_numpy(1 / count + pull)


def impartial(gramian: Tensor, noise: float) -> Tensor:
    """Weights of IMTL-G's step: proportional to ``pinv(G) d`` for the norms ``d``, or 0 where these add up to 0.

    How many gradients are independent doesn't depend on their lengths, so the rank is that of the unit vectors.

    Args:
        gramian: (K, K) float64.
        noise: eigenvalues of the unit vectors' Gramian up to this share of the largest one are zeros that were rounded.
    """
    norms = gramian.diagonal().sqrt()
    cosines = torch.linalg.eigvalsh(gramian / norms.outer(norms))
    rank = int((cosines > noise * cosines.max()).sum())
    values, vectors = torch.linalg.eigh(gramian)
    values, vectors = values[-rank:], vectors[:, -rank:]
    weights = vectors @ ((vectors.T @ norms) / values)
    total = weights.sum()
    # Weights of more than a million are a sum of 0 that was rounded, and would end the training.
    return weights / total if total.abs() > 1e-6 * weights.abs().max() else torch.zeros_like(weights)


def shortest(gramian: Tensor) -> Tensor:
    """Weights (adding up to 1) of the shortest vector in the convex hull.

    The minimum of ``|J' a| ** 2 + (1 - sum a) ** 2`` over ``a >= 0`` is the same point, up to its length.
    """
    count = len(gramian)
    weights = nonnegative_minimum(_strictly_convex(gramian) + np.ones((count, count)), np.ones(count))
    return torch.from_numpy(weights / weights.sum())


def bargained(gramian: Tensor) -> Tensor:
    """``a > 0`` with ``G a = 1 / a``: damped steps of Newton, which always converge on a self-concordant function."""
    matrix = _strictly_convex(gramian)
    a = np.ones(len(matrix))
    for _ in range(200):
        slope = matrix @ a - 1 / a
        newton = np.linalg.solve(matrix + np.diag(a**-2), slope)
        decrement = math.sqrt(max(float(slope @ newton), 0.0))
        a = a - newton / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-10:
            break
    return torch.from_numpy(a)


class Cone(DualConeProjector):
    """Projection onto the dual cone of the gradients, exact and without a solver to install."""

    def __call__(self, U: Tensor, G: Tensor, /) -> Tensor:  # type: ignore[override]
        """``v >= u`` with the smallest ``v' G v``, for each row ``u`` of (..., K)."""
        matrix = _strictly_convex(G)
        rows = U.reshape(-1, U.shape[-1]).double().numpy()
        found = np.stack([u + nonnegative_minimum(matrix, -matrix @ u) for u in rows])
        return torch.from_numpy(found).to(U).reshape(U.shape)


def nonnegative_minimum(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The minimum of ``x' A x / 2 - b' x`` over ``x >= 0``, by an active set (Lawson and Hanson, "Solving least squares
    problems", 1974, chapter 23).

    Args:
        matrix: (K, K), positive definite.
        target: (K,).
    """
    count = len(target)
    x, free = np.zeros(count), np.zeros(count, bool)
    tolerance = 1e-10 * (1e-10 + float(np.abs(target).max()))
    for _ in range(10 * count):  # as a rule as many rounds as there are unknowns above 0
        slope = np.where(free, -np.inf, target - matrix @ x)
        if slope.max() <= tolerance:
            break
        free[slope.argmax()] = True
        while free.any():
            best = np.zeros(count)
            best[free] = np.linalg.solve(matrix[np.ix_(free, free)], target[free])
            below = free & (best <= 0)
            if not below.any():
                x = best
                break
            # As far towards the best as nothing falls below 0; what reaches 0 first stays there.
            shares = np.where(below, x / np.maximum(x - best, 1e-300), np.inf)
            x = x + shares.min() * (best - x)
            free[shares.argmin()] = False
            x[~free] = 0.0
    return x


def _strictly_convex(gramian: Tensor) -> np.ndarray:
    return gramian.numpy() + RIDGE * np.eye(len(gramian))
