"""Dilated convolutions as ones that are not dilated, in channels_last, where cells are copied whole.

One with dilation d on a map is one without on each of its d x d *phases*: every d-th cell of every d-th row
(Holschneider et al. 1989, whose "algorithm a trous" it is; Chen et al., PAMI 2018, section 3.1). Where every channel is
by itself, it is also a sum of nine shifted maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 4  # of a map that are worked on at once, so that they stay in the cache
_NEAR = 4  # a dilation up to which the usual way is the fastest, but for the gradient of the weight


def split(x: Tensor, step: int) -> Tensor:
    """The phases of maps (B, C, h, w), each a map of its own: (B * step * step, C, h / step, w / step), rounded up."""
    if step == 1:
        return x
    down, right = (-side % step for side in x.shape[2:])
    rows = F.pad(_rows(x), (0, 0, 0, right, 0, down)) if down or right else _rows(x)
    return _map(rows.unflatten(2, (-1, step)).unflatten(1, (-1, step)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2))


def joined(phases: Tensor, step: int, size: tuple[int, int]) -> Tensor:
    """The maps (B, C, h, w) of ``size`` that :func:`split` made ``phases`` of."""
    if step == 1:
        return phases
    cells = _rows(phases).unflatten(0, (-1, step, step)).permute(0, 3, 1, 4, 2, 5)
    rows = cells.flatten(3, 4).flatten(1, 2)
    return _map(rows[:, : size[0], : size[1]].contiguous())


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=step, dilation=step, groups=C)``, with gradients.

    Args:
        x: (B, C, h, w), channels_last.
        weight: (C, 1, 3, 3).
        bias: (C,).
        step: the dilation.
    """
    y: Tensor = _Depthwise.apply(x, weight, bias, step)
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.step, ctx.has_bias = step, bias is not None
        return _convolve(x, weight, bias, step)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (x, weight), step = ctx.saved_tensors, ctx.step
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # someone wants gradients of gradients
            wanted, bias = (to_x, to_weight, to_bias), [len(weight)] if ctx.has_bias else None
            form: Any = ([1, 1], [step, step], [step, step], False, [0, 0], len(weight))
            return (*torch.ops.aten.convolution_backward(grad, x, weight, bias, *form, wanted), None)
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = _convolve(grad, weight.flip(2, 3), None, step) if to_x else None
        of_weight = _kernel_gradient(x, grad, step) if to_weight else None
        return of_x, of_weight, grad.sum((0, 2, 3)) if to_bias else None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, step: int) -> Tensor:
    if step <= _NEAR:
        return F.conv2d(x, weight, bias, 1, step, step, len(weight))
    cells, kernel = _rows(x), weight[:, 0].permute(1, 2, 0).contiguous()
    y = torch.empty_like(cells)
    for image, result in zip(cells, y):
        for row, column, seen, place in _shifts(image, result, step):
            if row == column == 1:  # the first of each place: the kernel's middle
                torch.mul(seen, kernel[1, 1], out=place)
                if bias is not None:
                    place += bias
            else:
                place.addcmul_(seen, kernel[row, column])
    return _map(y)


def _kernel_gradient(x: Tensor, grad: Tensor, step: int) -> Tensor:
    """The gradient (C, 1, 3, 3) of the weight from the input and the gradient of the result."""
    total = x.new_zeros(3, 3, x.shape[1])
    for image, above in zip(_rows(x), _rows(grad)):
        for row, column, seen, place in _shifts(image, above, step):
            total[row, column] += (seen * place).sum((0, 1))
    return total.permute(2, 0, 1)[:, None]


def _shifts(image: Tensor, result: Tensor, step: int) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """For some rows at a time of ``result`` (h, w, C): row and column of the kernel, the cells of ``image`` (h, w, C)
    that are seen through it, and the cells of ``result`` that see them; the kernel's middle first."""
    height, width = image.shape[:2]
    for start in range(0, height, _ROWS):
        stop = min(start + _ROWS, height)
        for row, column in _KERNEL:
            down, right = (row - 1) * step, (column - 1) * step
            top, bottom = max(start, -down), min(stop, height - down)
            first, last = max(0, -right), min(width, width - right)
            if top < bottom and first < last:
                seen = image[top + down : bottom + down, first + right : last + right]
                yield row, column, seen, result[top:bottom, first:last]


_KERNEL = sorted(((row, column) for row in range(3) for column in range(3)), key=lambda place: place != (1, 1))


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _map(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)
