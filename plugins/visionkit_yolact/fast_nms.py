"""Fast NMS (Bolya et al., ICCV 2019, section 5): all boxes of a class suppress each other at once.

Unlike greedy suppression, a box that is itself suppressed still suppresses others. So a little more is removed, and
nothing waits for anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visionkit.types.device import true_rows


def fast_nms(boxes: Tensor, scores: Tensor, *, iou: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Every class on its own; one box may stay in several classes.

    Args:
        boxes: (N, 4).
        scores: (N, classes).
        iou: a box goes if it overlaps a better one of its class by more.
        top_k: the best of each class that are looked at.

    Returns:
        Indices of the boxes and their labels, the best score first.
    """
    values, index = scores.T.topk(min(top_k, len(boxes)), dim=1)
    keep = stays(boxes[index], iou)
    labels = torch.arange(len(index), device=boxes.device)[:, None].expand_as(index)
    # By their flat indices, so that the host waits for their number once.
    kept = true_rows([keep.flatten()])[0]
    kept = kept[values.flatten()[kept].argsort(descending=True, stable=True)]
    return index.flatten()[kept], labels.flatten()[kept]


def cross_class_fast_nms(boxes: Tensor, scores: Tensor, *, iou: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Each box in its best class only, and boxes of all classes suppress each other.

    Args and returns as for :func:`fast_nms`; ``top_k`` counts all classes together.
    """
    best, labels = scores.max(1)
    index = best.topk(min(top_k, len(boxes))).indices
    index = index[true_rows([stays(boxes[index][None], iou)[0]])[0]]
    return index, labels[index]


def stays(boxes: Tensor, iou: float) -> Tensor:
    """(..., N) bool: which of the boxes (..., N, 4), best first, overlap no better one by more than ``iou``."""
    left, top, right, bottom = boxes.unbind(-1)
    area = (right - left) * (bottom - top)
    both = _shared(left, right) * _shared(top, bottom)
    overlap = both / (area[..., :, None] + area[..., None, :] - both).clamp(min=1e-9)
    return ~(overlap > iou).triu(diagonal=1).any(-2)


def _shared(low: Tensor, high: Tensor) -> Tensor:
    """(..., N, N): the length that each two of the intervals from ``low`` to ``high``, (..., N), have in common."""
    shared = torch.minimum(high[..., :, None], high[..., None, :]) - torch.maximum(low[..., :, None], low[..., None, :])
    return shared.clamp(min=0)
