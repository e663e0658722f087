"""Priors (anchors) of every level, and which object each learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from visionkit.layers.boxes import IGNORED, OBJECTLESS, covered, pairwise_iou
from visionkit.types.device import constant, on_host

Grid = tuple[int, int]
"""Rows and columns of a level."""


def cell_size(size: tuple[int, int], stride: int) -> tuple[float, float]:
    """Height and width in pixels of the cells that share out an image of ``size`` (height, width).

    A level of stride 8 has 69 cells for 550 pixels, so one is 7.97 pixels wide: what the published weights expect. It
    follows from the image alone, so that padding moves nothing.
    """
    return size[0] / math.ceil(size[0] / stride), size[1] / math.ceil(size[1] / stride)


def level_priors(
    grid: Grid, cell: tuple[float, float], sizes: Sequence[float], ratios: Sequence[float], *, square: bool = True
) -> Tensor:
    """Priors around the centre of every cell: (rows * columns * len(sizes) * len(ratios), 4), ratios varying fastest.

    Args:
        grid: rows and columns.
        cell: height and width of a cell in pixels.
        sizes: in pixels.
        ratios: width / height.
        square: all of them squares of ``size * sqrt(ratio)`` a side. An oversight of the published code that its
            weights have grown used to; ``False`` gives sides of ``size * sqrt(ratio)`` by ``size / sqrt(ratio)``.
    """
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()
    width = (torch.tensor(sizes, dtype=torch.float32)[:, None] * root).flatten()
    height = width if square else (torch.tensor(sizes, dtype=torch.float32)[:, None] / root).flatten()
    y = (torch.arange(grid[0]) + 0.5) * cell[0]
    x = (torch.arange(grid[1]) + 0.5) * cell[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    around = torch.stack((-width, -height, width, height), 1) / 2
    return (torch.stack((x, y, x, y), -1).view(-1, 1, 4) + around).view(-1, 4)


def assign(
    priors: Tensor,
    objects: Tensor,
    crowd: Tensor,
    *,
    low: float,
    high: float,
    crowd_share: float = 0.7,
    usable: Tensor | None = None,
) -> Tensor:
    """Which object each prior learns from.

    A prior takes the object that it overlaps most, if their IoU reaches ``high``. Before that every object is given one
    prior of its own, however low the IoU: of all pairs the best comes first, and neither of the two is paired again.

    Args:
        priors: (P, 4).
        objects: (N, 4) annotated boxes.
        crowd: (N,) bool; those match nothing, and a prior of which more than ``crowd_share`` lies in one is ignored
            unless it has an object of its own.
        low, high: background is below ``low``; between the two a prior is ignored.
        crowd_share: see above.
        usable: (P,) bool; the other priors are ignored, whatever they overlap. ``None``: all are usable.

    Returns:
        (P,) int64 index of an object, ``OBJECTLESS`` (-1: background) or ``IGNORED`` (-2).
    """
    matched = torch.full((len(priors),), OBJECTLESS, dtype=torch.int64, device=priors.device)
    if len(objects):
        iou = pairwise_iou(objects, priors).masked_fill_(crowd[:, None], -1.0)
        if usable is not None:
            iou.masked_fill_(~usable, -1.0)
        value, index = iou.max(0)
        matched = matched.masked_fill(value >= low, IGNORED)
        matched = torch.where(value >= high, index, matched)
        best, prior = one_prior_each(iou)
        matched[prior] = best
        # Only on the CPU does it cost nothing to ask whether there are crowds at all.
        if crowd.device.type != "cpu" or bool(crowd.any()):
            inside = ((covered(priors, objects) > crowd_share) & crowd).any(1)
            matched = matched.masked_fill(inside & (matched < 0), IGNORED)
    return matched if usable is None else matched.where(usable, IGNORED)


def one_prior_each(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of an object and a prior, the best first, each of them in one pair only.

    Args:
        iou: (objects, priors).

    Returns:
        Indices of the objects and of their priors; an object that touches no prior that is left has none.
    """
    count = min(iou.shape)
    # The others can take at most count - 1 of an object's best priors.
    values, priors = on_host(iou.topk(count, dim=1))
    rows, ranks = (values > 0).nonzero(as_tuple=True)
    order = values[rows, ranks].argsort(descending=True, stable=True)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, prior in zip(rows[order].tolist(), priors[rows, ranks][order].tolist()):
        if row not in pairs and prior not in taken:
            pairs[row] = prior
            taken.add(prior)
    found = constant(list(pairs.items()), iou, torch.int64).view(-1, 2)
    return found[:, 0], found[:, 1]
