"""Balancers that weigh losses: one number a head, from the losses themselves or from the norms of their gradients.

In all of them a head that has learnt from nothing in this step has no weight, no regulariser and no part in any
statistic, and statistics are of all processes together, so that every process weighs alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.graph import Losses
from visionkit.numbers import Count, NonNegative, Positive, PositiveFloat
from visionkit.train.balance import Balancer


class Uncertainty(Balancer):
    """Weighs by learnt uncertainty (Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses",
    CVPR 2018, equations 7 and 10): for each head ``L / (2 exp(s)) + s / 2`` with a learnt ``s``, the logarithm of the
    variance of its noise.

    That is the form of a regression. The form of a classification, ``L exp(-s) + s / 2``, is used for the heads that
    are listed. ``s`` is trained with the rates of the pipeline's optimiser, never decayed.
    Scale: a sum of the heads' gradients, each times about 0.8 at the start.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        start: ``s`` at the start.
        classification: heads whose loss is a classification's.
    """

    def __init__(
        self,
        heads: Mapping[str, tuple[str, ...]],
        *,
        weights: dict[str, NonNegative] | None = None,
        start: float = -0.5,
        classification: list[str] | None = None,
    ) -> None:
        super().__init__(heads, weights=weights)
        self.classification = frozenset(classification or ())
        if unknown := sorted(self.classification - set(heads)):
            raise UserError(f"classification: there is no head '{unknown[0]}' (heads: {', '.join(heads)})")
        # One parameter a head: an optimiser leaves alone what has no gradient, and would move the rest of a vector.
        self.log_variances = nn.ParameterList([nn.Parameter(torch.tensor(float(start))) for _ in heads])

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        terms = []
        for head, s, total in zip(self.heads, self.log_variances, in_order(self.heads, self.totals(losses))):
            if labelled[head]:
                total = total * torch.exp(-s) * (1.0 if head in self.classification else 0.5) + s / 2
            terms.append(total)
        return torch.stack(terms).sum()


class ImpartialLosses(Balancer):
    """IMTL-L (Liu et al., "Towards impartial multi-task learning", ICLR 2021): for each head
    ``exp(s) L - s`` with a learnt ``s`` that starts at 0, so that all scaled losses come to lie at 1.

    ``s`` is trained with the rates of the pipeline's optimiser, never decayed.
    Scale: a sum of the heads' gradients at the start; of those of the logarithms of their losses in the end.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
    """

    def __init__(self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, NonNegative] | None = None) -> None:
        super().__init__(heads, weights=weights)
        self.log_scales = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in heads])

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        terms = []
        for head, s, total in zip(self.heads, self.log_scales, in_order(self.heads, self.totals(losses))):
            terms.append(torch.exp(s) * total - s if labelled[head] else total)
        return torch.stack(terms).sum()


class DynamicWeightAverage(Balancer):
    """DWA (Liu, Johns and Davison, "End-to-end multi-task learning with attention", CVPR 2019, equation 7): head k has
    the weight ``K exp(r_k / T) / sum_i exp(r_i / T)``, where ``r`` is its mean loss of the last period divided by that
    of the period before. A head whose loss falls slowly weighs more.

    The paper's period is an epoch; with several sources there is none, so it is a number of batches here. As in the
    paper weights are 1 in the first two periods; so is that of a head which has not yet been labelled in two of them.
    Scale: a sum of the heads' gradients; the weights add up to their number.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        period: batches whose losses are averaged.
        temperature: ``T``; the larger, the more alike the weights.
    """

    sums: Tensor
    counts: Tensor
    averages: Tensor
    batches: Tensor

    def __init__(
        self,
        heads: Mapping[str, tuple[str, ...]],
        *,
        weights: dict[str, NonNegative] | None = None,
        period: Positive = 200,
        temperature: PositiveFloat = 2.0,
    ) -> None:
        super().__init__(heads, weights=weights)
        if period < 1 or temperature <= 0:
            raise UserError(f"period {period} and temperature {temperature} must be positive")
        self.period, self.temperature = period, temperature
        self.register_buffer("sums", torch.zeros(len(heads)))
        self.register_buffer("counts", torch.zeros(len(heads)))
        self.register_buffer("averages", torch.full((2, len(heads)), math.nan))  # of the period before, of the last
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        totals = torch.stack(in_order(self.heads, self.totals(losses)))
        if self.batches > 0 and self.batches % self.period == 0:
            self._end_period()
        loss = (totals * self.current()).sum()
        here = torch.tensor([labelled[head] > 0 for head in self.heads], device=totals.device)
        self.sums += torch.where(here, self.mean(totals.float()), 0.0)
        self.counts += here
        self.batches += 1
        return loss

    def current(self) -> Tensor:
        """The weights (K,) of all heads, as they are now."""
        before, last = self.averages
        rates = last / before
        known = torch.isfinite(rates)
        shares = torch.softmax(torch.where(known, rates, -math.inf) / self.temperature, 0) * known.sum()
        return torch.where(known, shares, 1.0)

    def _end_period(self) -> None:
        seen = self.counts > 0
        mean = self.sums / self.counts.clamp(min=1)
        self.averages.copy_(torch.where(seen, torch.stack((self.averages[1], mean)), self.averages))
        self.sums.zero_()
        self.counts.zero_()


class RandomWeights(Balancer):
    """RLW (Lin et al., "Reasonable effectiveness of random weighting", TMLR 2022): weights are a softmax of
    new standard normal numbers in each step, a baseline that any other method ought to beat.

    They are drawn from the seed and the number of the batch, so that a resumed run and all processes draw the same.
    Scale: a sum of the heads' gradients; the weights are K times the paper's, which add up to 1.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        seed: of the numbers drawn.
    """

    batches: Tensor

    def __init__(
        self, heads: Mapping[str, tuple[str, ...]], *, weights: dict[str, NonNegative] | None = None, seed: Count = 0
    ) -> None:
        super().__init__(heads, weights=weights)
        self.seed = seed
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        drawn = torch.randn(len(self.heads), generator=generator(self.seed, int(self.batches)))
        self.batches += 1
        totals = self.totals(losses)
        learnt = [head for head in self.heads if labelled[head]]
        scores = torch.stack([value for head, value in zip(self.heads, drawn) if labelled[head]] or [drawn[0]])
        return weighted(totals, dict(zip(learnt, torch.softmax(scores, 0) * len(learnt))))


class GeometricMean(Balancer):
    """GLS (Chennupati et al., "MultiNet++: multi-stream feature aggregation and geometric loss strategy for multi-task
    learning", CVPR Workshops 2019): the K-th root of the product of the heads' losses.

    Its gradient is that of ``sum_k w_k L_k`` with ``w_k = GLS / (K L_k)``, which is how it is computed, from losses of
    all processes. A head whose loss is 0 in a step has no part in it, for it would silence all others.
    Scale: a mean of the heads' relative gradients, times the geometric mean of their losses.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.

    Raises:
        UserError: in training, a negative loss, which has no geometric mean.
    """

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        totals = self.totals(losses)
        values = self.mean(torch.stack(in_order(self.heads, totals)).float()).tolist()
        found = {head: value for head, value in zip(self.heads, values) if labelled[head] and value != 0}
        if negative := [head for head, value in found.items() if value < 0]:
            head = negative[0]
            raise UserError(f"the loss of head '{head}' is {found[head]:.4g}; a geometric mean needs losses above 0")
        root = math.exp(sum(math.log(value) for value in found.values()) / max(len(found), 1))
        weights = {head: torch.tensor(root / (len(found) * value)) for head, value in found.items()}
        return weighted(totals, weights)


class GradNorm(Balancer):
    """GradNorm (Chen et al., "GradNorm: gradient normalization for adaptive loss balancing in deep multitask networks",
    ICML 2018, equations 1 and 2, algorithm 1): weights such that the norm ``G_i`` of every weighted gradient comes near
    ``mean(G) r_i ** alpha``, where ``r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0))`` says how slowly head i trains.

    ``sum_i |G_i - mean(G) r_i ** alpha|`` is made smaller by a step of gradient descent after every batch, its target
    held fixed, and the weights are then made to add up to the number of heads again. Two things differ from the paper:
    the gradient is the one at the shared features, not at the last shared layer's weights, so that it costs nothing;
    and the step is taken in the logarithm of a weight, on norms divided by their mean, so that a weight stays positive
    and ``lr`` has no unit.
    Scale: a sum of the heads' gradients; the weights add up to their number.

    Args:
        heads: the loss names of every head.
        weights: by head or by single loss, before all else; 1 where none is given.
        alpha: how strongly heads that train slowly are pulled along; 0 makes all norms equal.
        lr: of the weights.
    """

    at_features = True
    factors: Tensor
    first: Tensor

    def __init__(
        self,
        heads: Mapping[str, tuple[str, ...]],
        *,
        weights: dict[str, NonNegative] | None = None,
        alpha: NonNegative = 1.5,
        lr: PositiveFloat = 0.025,
    ) -> None:
        super().__init__(heads, weights=weights)
        self.alpha, self.lr = alpha, lr
        self.register_buffer("factors", torch.ones(len(heads)))
        self.register_buffer("first", torch.full((len(heads),), math.nan))  # the loss when a head was first labelled
        self._now = torch.zeros(len(heads))  # from forward to weigh, within one step

    def forward(self, losses: Losses, labelled: Mapping[str, int]) -> Tensor:
        totals = torch.stack(in_order(self.heads, self.totals(losses)))
        self._now = self.mean(totals.float())
        here = torch.tensor([labelled[head] > 0 for head in self.heads], device=totals.device)
        self.first.copy_(torch.where(here & self.first.isnan(), self._now, self.first))
        return (totals * torch.where(here, self.factors, 1.0)).sum()

    def weigh(self, gramian: Tensor, heads: Sequence[str]) -> Tensor:
        """Ones: the losses are weighted already. The norms give the weights of the next step."""
        every = list(self.heads)
        rows = torch.tensor([every.index(head) for head in heads], device=gramian.device)
        norms = gramian.diagonal().sqrt().to(self.factors.dtype)
        ratios = self._now[rows] / self.first[rows].clamp(min=1e-12)
        rates = ratios / ratios.mean()
        target = norms.mean() * rates.clamp(min=0.0) ** self.alpha
        if torch.isfinite(norms).all() and torch.isfinite(target).all():  # a step of half precision may overflow
            # G_i is w_i times a norm that does not depend on w_i: its derivative by log w_i is G_i itself.
            slope = torch.sign(norms - target) * norms / norms.mean()
            old = self.factors[rows]
            new = old * torch.exp(-self.lr * slope)
            self.factors[rows] = new * (old.sum() / new.sum())
        return torch.ones_like(norms)


def in_order(heads: Mapping[str, tuple[str, ...]], totals: Mapping[str, Tensor]) -> list[Tensor]:
    """The totals of all heads in the order of ``heads``."""
    return [totals[head] for head in heads]


def weighted(totals: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """The sum of all totals, times a weight where there is one."""
    return torch.stack([t * weights[h].to(t) if h in weights else t for h, t in totals.items()]).sum()


def generator(seed: int, step: int) -> torch.Generator:
    """A generator that depends on seed and step alone."""
    # The generator looks at 32 bits; a large odd factor keeps the steps of neighbouring seeds far apart.
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % (1 << 32))
