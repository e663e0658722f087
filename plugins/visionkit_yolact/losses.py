"""What YOLACT learns from (Bolya et al., ICCV 2019, section 3.3 and the published code), as sums."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.layers.boxes import OBJECTLESS
from visionkit.types.device import to_device, true_rows
from visionkit_yolact.masks import assemble, inside


def class_loss(logits: Tensor, aims: Tensor, ratio: float) -> Tensor:
    """Softmax cross-entropy of all positives and of the hardest background (OHEM, as in SSD: Liu, ECCV 2016).

    Args:
        logits: (B, P, classes + 1), background first.
        aims: (B, P) int64 label of the object, ``OBJECTLESS`` (-1) for background or ``IGNORED`` (-2).
        ratio: background priors for each positive of the same image; those count that look least like background.

    An image without positives gives 0: there are no three times as many priors of background.
    """
    positive, background = aims >= 0, aims == OBJECTLESS
    with torch.no_grad():
        hardness = logits.logsumexp(2) - logits[..., 0]  # the loss that it would have as background
        rank = hardness.where(background, -torch.inf).argsort(1, descending=True).argsort(1)
        chosen = positive | (background & (rank < positive.sum(1, keepdim=True) * ratio))
    index = true_rows([chosen.flatten()])[0]
    logits, aims = logits.flatten(0, 1)[index], aims.flatten()[index]
    return F.cross_entropy(logits, aims.clamp(min=-1) + 1, reduction="sum")


def mask_loss(prototypes: Tensor, coefficients: Tensor, masks: Tensor, boxes: Tensor, most: int) -> Tensor:
    """Binary cross-entropy of the assembled masks inside the box of the object, each divided by the area of that box.

    Args:
        prototypes: (K, h, w).
        coefficients: (n, K) of the positives.
        masks: (n, h, w) bool, of their objects.
        boxes: (n, 4) of their objects, in cells.
        most: so many positives at random stand for all; the sum is scaled up to their number.
    """
    total = len(coefficients)
    if total > most:
        chosen = to_device([torch.randperm(total)[:most]], coefficients.device)[0]
        coefficients, masks, boxes = coefficients[chosen], masks[chosen], boxes[chosen]
    logits = assemble(prototypes, coefficients)
    each = F.binary_cross_entropy_with_logits(logits, masks.to(logits), reduction="none")
    each = (each * inside(boxes, *logits.shape[1:])).sum((1, 2))
    # The published training drops objects that are smaller than about a cell; here they count as one.
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    return (each / sides.prod(1)).sum() * (total / max(1, len(boxes)))


def semantic_loss(
    logits: Tensor, masks: Tensor, labels: Tensor, ignored: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Binary cross-entropy of every class in every cell, as a mean over cells and a sum over classes.

    Args:
        logits: (classes, h, w).
        masks: (N, h, w) bool, of the objects.
        labels: (N,) int64, theirs; on the CPU, the device is not waited for.
        ignored: cells (M, h, w) bool that do not count for the class of the same row, and these classes (M,) int64.
    """
    aims, weight = torch.zeros_like(logits), torch.ones_like(logits)
    for mask, label in zip(masks, labels.tolist()):
        aims[label].masked_fill_(mask, 1.0)
    for cells, label in zip(ignored[0], ignored[1].tolist()) if ignored is not None else ():
        weight[label].masked_fill_(cells, 0.0)
    weight = torch.maximum(weight, aims)  # what is known to be an object counts
    return F.binary_cross_entropy_with_logits(logits, aims, weight, reduction="sum") / logits[0].numel()
