"""Dilated convolutions as ones that are not dilated, in channels_last, where cells are copied whole.

One with dilation d on a map is one without on each of its d x d *phases*: every d-th cell of every d-th row
(Holschneider et al. 1989, whose "algorithm a trous" it is; Chen et al., PAMI 2018, section 3.1). Where every channel is
by itself, it is also a sum of nine shifted maps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 4  # of a map that are worked on at once, so that they stay in the cache


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=step, dilation=step, groups=C)``, with gradients, on the phases.

    Args:
        x: (B, C, h, w), channels_last.
        weight: (C, 1, 3, 3).
        bias: (C,).
        step: the dilation.
    """
    phases = F.conv2d(laid_out(x, step), weight, bias, padding=1, groups=len(weight))
    return taken_up(phases, step, (x.shape[2], x.shape[3]))


def depthwise_of_shifts(x: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
    """What :func:`depthwise` makes, without gradients: shifted maps are added up."""
    cells, kernel = _rows(x), weight[:, 0].permute(1, 2, 0).contiguous()
    y = torch.empty_like(cells)
    for image, result in zip(cells, y):
        for start in range(0, len(result), _ROWS):
            stop = min(start + _ROWS, len(result))
            torch.mul(image[start:stop], kernel[1, 1], out=result[start:stop])
            if bias is not None:
                result[start:stop] += bias
            for row, column in _AROUND:
                down, right = (row - 1) * step, (column - 1) * step
                top, bottom = max(start, -down), min(stop, len(image) - down)
                first, last = max(0, -right), min(image.shape[1], image.shape[1] - right)
                if top < bottom and first < last:
                    seen = image[top + down : bottom + down, first + right : last + right]
                    result[top:bottom, first:last].addcmul_(seen, kernel[row, column])
    return _map(y)


_AROUND = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]


def split(x: Tensor, step: int) -> Tensor:
    """The phases of maps (B, C, h, w), each a map of its own: (B * step * step, C, h / step, w / step), rounded up."""
    if step == 1:
        return x
    return _map(_cells(x, step, 0).permute(0, 2, 4, 1, 3, 5).flatten(0, 2))


def joined(phases: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The maps (B, C, h, w) of ``size`` that :func:`split` made ``phases`` of."""
    if step == 1:
        return phases
    return _whole(_rows(phases).unflatten(0, (-1, step, step)).permute(0, 3, 1, 4, 2, 5), size)


def laid_out(x: Tensor, step: int) -> Tensor:
    """The phases of maps (B, C, h, w) side by side in one map, zeros between them: (B, C, about h, about w)."""
    return _map(_cells(x, step, 1).permute(0, 2, 1, 4, 3, 5).flatten(3, 4).flatten(1, 2))


def taken_up(phases: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The maps (B, C, h, w) of ``size`` that :func:`laid_out` made ``phases`` of."""
    rows = _rows(phases).unflatten(2, (step, -1)).unflatten(1, (step, -1))
    return _whole(rows.permute(0, 2, 1, 4, 3, 5), size)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)


def _cells(x: Tensor, step: int, more: int) -> Tensor:
    """(B, h / step, step, w / step, step, C): rounded up with zeros, and so many more cells of zeros in each phase."""
    down, right = (-side % step + more * step for side in x.shape[2:])
    rows = F.pad(_rows(x), (0, 0, 0, right, 0, down)) if down or right else _rows(x)
    return rows.unflatten(2, (-1, step)).unflatten(1, (-1, step))


def _whole(cells: Tensor, size: tuple[int, int]) -> Tensor:
    rows = cells.flatten(3, 4).flatten(1, 2)
    return _map(rows[:, : size[0], : size[1]].contiguous())
