"""3 x 3 convolutions the fast way, where there is one: on a CPU, in float32 and channels_last."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from visionkit.layers.dilated import depthwise, joined, split
from visionkit.layers.winograd import transformed_kernel, winograd

_NARROWEST = 96  # channels; with fewer, the sums cost more than the products that they save
_NARROWEST_LEARNT = 32  # for the gradient of the weight, which takes the usual way three times as long in this format
_FEWEST, _FEWEST_KEPT = 200, 64  # cells of all maps; with fewer, the kernel's transform costs more, or the calls do


class FastConv2d(nn.Conv2d):
    """``nn.Conv2d``, with fewer products where that pays (:mod:`visionkit.layers.winograd`), and without dilation
    (:mod:`visionkit.layers.dilated`).

    Equal up to rounding, to about 1e-6 of the values' size. Whoever watches operators (a tracer, a counter) sees a
    convolution.

    Attributes:
        kernel: the transformed weight, if it was worked out once and for all by :func:`keep_kernels`.
    """

    kernel: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias, self.kernel)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor | None = None) -> Tensor:
        """What the convolution would make of ``x`` with this weight and bias."""
        if suits(self) and _is_plain(x):
            step = self.dilation[0]
            if self.groups > 1:
                return depthwise(x, weight, bias, step)
            if _pays(x, step, _FEWEST if kernel is None else _FEWEST_KEPT):
                narrow = not _is_wide(self)
                if not narrow or (weight.requires_grad and torch.is_grad_enabled()):
                    y = winograd(split(x, step), weight, bias, kernel, narrow=narrow)
                    return joined(y, step, (x.shape[2], x.shape[3]))
        return self._conv_forward(x, weight, bias)


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 3 x 3, keeps the size of its map, and can gain: wide, or of single channels, dilated."""
    step = conv.dilation[0]
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.padding_mode)
    if form != ((3, 3), (1, 1), (step, step), (step, step), "zeros"):
        return False
    if conv.groups == 1:
        return min(conv.in_channels, conv.out_channels) >= _NARROWEST_LEARNT
    return step > 1 and conv.groups == conv.in_channels == conv.out_channels


def _is_wide(conv: nn.Conv2d) -> bool:
    return min(conv.in_channels, conv.out_channels) >= _NARROWEST


def use_fast_convs(model: nn.Module) -> None:
    """Every plain convolution in ``model`` that can gain becomes a :class:`FastConv2d`; in place."""
    for module in model.modules():
        if type(module) is nn.Conv2d and suits(module):
            module.__class__ = FastConv2d


def to_channels_last(model: nn.Module) -> None:
    """Bring the weights of a model into channels-last memory format; in place.

    ``model.to(memory_format=torch.channels_last)`` raises an error for weights of 3-D convolutions.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def keep_kernels(model: nn.Module) -> None:
    """Transform all weights now; for a model whose weights do not change any more, and that stays on the CPU."""
    for module in model.modules():
        if isinstance(module, FastConv2d) and module.groups == 1 and _is_wide(module) and suits(module):
            module.kernel = transformed_kernel(module.weight)


def _is_plain(x: Tensor) -> bool:
    """Whether these are maps that the fast ways are for, and nobody watches."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    return x.ndim == 4 and x.numel() > 0 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last)


def _pays(x: Tensor, step: int, fewest: int) -> bool:
    """Whether the maps are so large that products are saved in the end: tiles hang over the edges of small phases."""
    count, _, height, width = x.shape
    if step == 1:
        return count * height * width >= fewest
    tiles = -(-height // (2 * step)) * -(-width // (2 * step)) * step * step
    return count * height * width >= fewest and 16 * tiles <= 5 * height * width
