"""Losses of a class for every pixel, as one choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import TypedDict

from visionkit.errors import UserError
from visionkit.numbers import Fraction, FractionBelowOne, NonNegative, PositiveFloat, PositiveFraction
from visionkit.types import IGNORE, Mean

LossName = Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"]


class LossOptions(TypedDict, total=False):
    """A loss with its settings.

    Attributes:
        name: which.
        class_weights: weight of each class.
        smoothing: share of the truth that is spread over all classes (``cross_entropy``).
        threshold: pixels whose true class is less probable count as hard (``ohem``); 0.7.
        keep: share of the labelled pixels of an image that counts in any case (``ohem``); 1 / 16.
        gamma: how much less sure pixels weigh (``focal``); 2.
    """

    name: LossName
    class_weights: Sequence[PositiveFloat]
    smoothing: FractionBelowOne
    threshold: PositiveFraction
    keep: Fraction
    gamma: NonNegative


_OPTIONS = {
    "cross_entropy": {"smoothing": 0.0},
    "ohem": {"threshold": 0.7, "keep": 1 / 16},
    "focal": {"gamma": 2.0},
    "dice": {},
    "lovasz": {},
}


class SegmentationLoss(nn.Module):
    """One of these, each a mean of its own kind, that of nothing being 0:

    - ``cross_entropy``: over labelled pixels, weighted by class where weights are given;
    - ``ohem``: cross-entropy over the hard ones of them alone (Shrivastava et al., CVPR 2016);
    - ``focal``: over labelled pixels, those that are surely right weighing less (Lin et al., ICCV 2017, equation 4);
    - ``dice``: 1 - Dice coefficient of probabilities, over the classes in an image, then over images (Milletari et
      al., 3DV 2016, with plain sums in the denominator);
    - ``lovasz``: the Lovász extension of 1 - IoU, over the classes in an image, then over images (Berman et al., CVPR
      2018, equations 8 and 9).

    Args:
        classes: how many.
        loss: the name of the loss, or a mapping with ``name`` and its settings.

    Raises:
        UserError: a loss that is unknown or has no such setting, a number of weights that is not that of the classes.
    """

    def __init__(self, classes: int, loss: LossName | LossOptions = "cross_entropy") -> None:
        super().__init__()
        given = LossOptions(name=loss) if isinstance(loss, str) else loss
        self.name = given.get("name", "cross_entropy")
        if self.name not in _OPTIONS:
            raise UserError(f"loss: there is no '{self.name}' (there is: {', '.join(get_args(LossName))})")
        allowed = {"name", "class_weights", *_OPTIONS[self.name]}
        if strange := sorted(set(given) - allowed):
            raise UserError(f"loss: {self.name} has no '{strange[0]}' (it has: {', '.join(sorted(allowed))})")
        self.settings: dict[str, float] = {
            key: float(given.get(key, default))  # type: ignore[arg-type]
            for key, default in _OPTIONS[self.name].items()
        }
        weights = given.get("class_weights")
        if weights is not None and len(weights) != classes:
            raise UserError(f"class_weights: {len(weights)} weights for {classes} classes")
        self.weight: Tensor | None
        weight = None if weights is None else torch.tensor(list(weights), dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Mean:
        """The loss of logits (B, classes, H, W) for labels (B, H, W) int64, ``IGNORE`` where nobody knows."""
        logits = logits.float()
        if self.name == "cross_entropy":
            return cross_entropy(logits, labels, self.weight, **self.settings)
        if self.name == "focal":
            return focal(logits, labels, self.weight, **self.settings)
        if self.name == "ohem":
            return _sum([ohem(x, y, self.weight, **self.settings) for x, y in zip(logits, labels)])
        one = dice if self.name == "dice" else lovasz
        return _sum([one(x, y, self.weight) for x, y in zip(logits, labels)])


def _sum(parts: Sequence[Mean]) -> Mean:
    return Mean(
        torch.stack([m.total for m in parts]).sum(), torch.stack([torch.as_tensor(m.count) for m in parts]).sum()
    )


def _pixel_weights(labels: Tensor, weight: Tensor | None) -> Tensor:
    """The weight of every pixel, 0 for those that are not labelled."""
    known = labels != IGNORE
    return known.float() if weight is None else weight[labels.where(known, 0)] * known


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Mean:
    """Softmax cross-entropy over the labelled pixels of (B, classes, H, W); a weighted mean where there are weights."""
    weights = _pixel_weights(labels, weight).sum()
    if logits.stride(1) == 1:  # channels_last: pixel by pixel as they lie, else they would be copied both ways
        logits, labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    total = F.cross_entropy(
        logits, labels, weight=weight, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing
    )
    return Mean(total, weights)


def focal(logits: Tensor, labels: Tensor, weight: Tensor | None = None, gamma: float = 2.0) -> Mean:
    """``-(1 - p) ** gamma log p`` of the true class p, over the labelled pixels of (B, classes, H, W)."""
    error = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")  # -log p
    weights = _pixel_weights(labels, weight)
    return Mean((weights * (-torch.expm1(-error)).clamp(min=1e-7) ** gamma * error).sum(), weights.sum())


def ohem(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, threshold: float = 0.7, keep: float = 1 / 16
) -> Mean:
    """Cross-entropy over the hard pixels of one image (classes, H, W): those whose true class has a probability below
    ``threshold``, and a share ``keep`` of all in any case."""
    error = F.cross_entropy(logits[None], labels[None], ignore_index=IGNORE, reduction="none").flatten()
    weights = _pixel_weights(labels, weight).flatten()
    known = labels.flatten() != IGNORE
    hardest, order = error.detach().masked_fill(~known, -1.0).sort(descending=True)
    least = (known.sum() * keep).ceil()
    rank = torch.arange(len(order), device=order.device)
    chosen = (hardest >= 0) & ((hardest > -math.log(threshold)) | (rank < least))
    weights = weights[order] * chosen
    return Mean((error[order] * weights).sum(), weights.sum())


def _scores(logits: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of one image: probabilities and truth of its labelled pixels, (classes, P) each, and the weight of every class
    that is in it, (classes,), 0 for the others."""
    known = labels.flatten() != IGNORE
    found = logits.flatten(1)[:, known].softmax(0)
    truth = F.one_hot(labels.flatten()[known], len(logits)).T.to(found)
    present = truth.sum(1) > 0
    return found, truth, present.float() if weight is None else weight * present


def dice(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Mean:
    """``1 - 2 sum(p g) / (sum p + sum g)`` of one image (classes, H, W), a mean over the classes in it."""
    found, truth, weights = _scores(logits, labels, weight)
    coefficient = 2 * (found * truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp(min=1e-6)
    total = ((1 - coefficient) * weights).sum() / weights.sum().clamp(min=1e-6)
    return Mean(total, (weights.sum() > 0).float())


def lovasz(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Mean:
    """Lovász-softmax of one image (classes, H, W), a mean over the classes in it."""
    found, truth, weights = _scores(logits, labels, weight)
    error, order = (truth - found).abs().sort(1, descending=True)
    right = truth.gather(1, order)
    missed = right.sum(1, keepdim=True) - right.cumsum(1)
    jaccard = 1 - missed / (right.sum(1, keepdim=True) + (1 - right).cumsum(1)).clamp(min=1)
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    total = ((error * steps).sum(1) * weights).sum() / weights.sum().clamp(min=1e-6)
    return Mean(total, (weights.sum() > 0).float())
