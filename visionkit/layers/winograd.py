"""3 x 3 convolutions that multiply less: 16 products for 2 x 2 results instead of 36 (Lavin & Gray, CVPR 2016).

The minimal algorithm F(2 x 2, 3 x 3): tiles of 4 x 4 cells overlap by two, and with their section 4.1

    Y = A' [(G g G') * (B' d B)] A

is worked out for all tiles and channels at once, as 16 matrix products. Sums of +-1 and +-1/2 are all that is added to
them, so results are no less exact than those of the usual way. On a CPU it takes two thirds of the time, and half of
it for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 18  # tiles times channels that are worked on at once, so that they stay in the cache


def winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor | None = None, *, narrow: bool = False
) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)``, with gradients.

    Args:
        x: (B, C, h, w) float32, channels_last.
        weight: (K, C, 3, 3).
        bias: (K,).
        kernel: the transformed weight, where it is at hand.
        narrow: with few channels the usual way is faster, but for the gradient of the weight: that alone is made here.
    """
    y: Tensor = _Winograd.apply(x, weight, bias, kernel, narrow)
    return y


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor | None, narrow: bool
    ) -> Tensor:
        if kernel is None and not narrow:
            kernel = transformed_kernel(weight)
        ctx.save_for_backward(x, weight, kernel)
        ctx.has_bias = bias is not None
        return F.conv2d(x, weight, bias, padding=1) if kernel is None else convolve(x, kernel, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight, kernel = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
        bias, form = [len(weight)] if ctx.has_bias else None, ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        usual: Any = torch.ops.aten.convolution_backward
        if torch.is_grad_enabled():  # someone wants gradients of gradients
            return (*usual(grad, x, weight, bias, *form, (to_x, to_weight, to_bias)), None, None)
        grad = grad.contiguous(memory_format=torch.channels_last)
        if kernel is None:
            of_x, _, of_bias = usual(grad, x, weight, bias, *form, (to_x, False, to_bias))
        else:
            of_x = convolve(grad, turned(kernel), None) if to_x else None
            of_bias = grad.sum((0, 2, 3)) if to_bias else None
        of_weight = kernel_gradient(x, grad).to(memory_format=torch.channels_last) if to_weight else None
        return of_x, of_weight, of_bias, None, None


def transformed_kernel(weight: Tensor) -> Tensor:
    """G g G' of a weight (K, C, 3, 3): (4 columns, 4 rows, C, K), the channels of the input side by side."""
    g = weight.permute(3, 2, 0, 1)
    columns = torch.stack(_times_g(*g))
    return torch.stack(_times_g(*columns.unbind(1)), 1).transpose(2, 3)


def _times_g(first: Tensor, middle: Tensor, last: Tensor) -> tuple[Tensor, ...]:
    ends, middle = (first + last) * 0.5, middle * 0.5
    return first, ends + middle, ends - middle, last


def turned(kernel: Tensor) -> Tensor:
    """The transform of the weight that is turned by half a circle and whose inputs are the outputs."""
    order = torch.tensor([3, 1, 2, 0])
    return kernel.transpose(2, 3).flatten(0, 1)[(order[:, None] * 4 + order).flatten()].unflatten(0, (4, 4))


def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=1)`` in channels_last.

    Args:
        x: (B, C, h, w), channels_last.
        kernel: transformed, (4, 4, C, K).
        bias: (K,).
    """
    padded, kernel, outputs = _padded(x), kernel.flatten(0, 1), kernel.shape[3]
    shape = (x.shape[0], outputs, *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    rows_of_y = y.permute(0, 2, 3, 1)
    for images, rows in _chunks(x, max(x.shape[1], outputs)):
        tiles = _tiles(padded[images, 2 * rows.start : 2 * rows.stop + 2])
        products = torch.bmm(tiles.view(16, -1, x.shape[1]), kernel).view(*tiles.shape[:-1], outputs)
        _untile(products, bias, rows_of_y[images, 2 * rows.start : 2 * rows.stop])
    return y


def kernel_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient (K, C, 3, 3) of the weight from the input and the gradient (B, K, h, w) of the result."""
    padded, above = _padded(x), grad.permute(0, 2, 3, 1)
    inputs, outputs = x.shape[1], grad.shape[1]
    total = x.new_zeros(16, outputs, inputs)
    for images, rows in _chunks(x, max(inputs, outputs)):
        tiles = _tiles(padded[images, 2 * rows.start : 2 * rows.stop + 2]).view(16, -1, inputs)
        spread = _spread(above[images, 2 * rows.start : 2 * rows.stop]).view(16, -1, outputs)
        total.baddbmm_(spread.transpose(1, 2), tiles)
    columns = torch.stack(_times_g_transposed(*total.view(4, 4, outputs, inputs)))
    return torch.stack(_times_g_transposed(*columns.unbind(1))).permute(2, 3, 0, 1)


def _times_g_transposed(first: Tensor, second: Tensor, third: Tensor, last: Tensor) -> tuple[Tensor, ...]:
    both = (second + third) * 0.5
    return first + both, (second - third) * 0.5, last + both


def _chunks(x: Tensor, channels: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles that are worked on at once: some of one image's rows, or several whole images."""
    count, high, wide = len(x), (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    tiles = max(1, _CHUNK // channels)
    rows = max(1, min(high, tiles // wide))
    images = max(1, tiles // (high * wide))
    for image in range(0, count, images):
        for row in range(0, high, rows):
            yield slice(image, min(image + images, count)), slice(row, min(row + rows, high))


def _padded(x: Tensor) -> Tensor:
    """(B, h + 2, w + 2, C), and one more where a side is odd."""
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + x.shape[3] % 2, 1, 1 + x.shape[2] % 2))


def _tiles(x: Tensor) -> Tensor:
    """B' d B of every tile d of ``x`` (b, 2m + 2, 2n + 2, C): (4 columns, 4 rows, b, m, n, C)."""
    count, height, width, channels = x.shape
    m, n = height // 2 - 1, width // 2 - 1
    rows, tiles = x.new_empty(4, count, m, width, channels), x.new_empty(4, 4, count, m, n, channels)
    _times_b([x[:, i : i + 2 * m - 1 : 2] for i in range(4)], rows)
    _times_b([rows[:, :, :, j : j + 2 * n - 1 : 2] for j in range(4)], tiles)
    return tiles


def _times_b(d: list[Tensor], out: Tensor) -> None:
    torch.sub(d[0], d[2], out=out[0])
    torch.add(d[1], d[2], out=out[1])
    torch.sub(d[2], d[1], out=out[2])
    torch.sub(d[1], d[3], out=out[3])


def _untile(products: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """A' M A of every tile M of ``products`` (4 columns, 4 rows, b, m, n, K), into ``y`` (b, about 2m, about 2n, K)."""
    left, right = _times_a(products)
    for j, column in enumerate((left, right)):
        for i, result in enumerate(_times_a(column)):
            place = y[:, i::2, j::2]
            result = result[:, : place.shape[1], : place.shape[2]]
            place.copy_(result) if bias is None else torch.add(result, bias, out=place)


def _times_a(m: Tensor) -> tuple[Tensor, Tensor]:
    return (m[1] + m[2]).add_(m[0]), (m[1] - m[2]).sub_(m[3])


def _spread(grad: Tensor) -> Tensor:
    """A g A' of every 2 x 2 of ``grad`` (b, about 2m, about 2n, K): (4 columns, 4 rows, b, m, n, K)."""
    grad = F.pad(grad, (0, 0, 0, grad.shape[2] % 2, 0, grad.shape[1] % 2))
    count, height, width, channels = grad.shape
    m, n = height // 2, width // 2
    rows, tiles = grad.new_empty(4, count, m, width, channels), grad.new_empty(4, 4, count, m, n, channels)
    _times_a_transposed(grad[:, 0::2], grad[:, 1::2], rows)
    _times_a_transposed(rows[:, :, :, 0::2], rows[:, :, :, 1::2], tiles)
    return tiles


def _times_a_transposed(first: Tensor, second: Tensor, out: Tensor) -> None:
    out[0].copy_(first)
    torch.add(first, second, out=out[1])
    torch.sub(first, second, out=out[2])
    torch.neg(second, out=out[3])
