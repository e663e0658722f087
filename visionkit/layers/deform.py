"""Deformable convolution: every tap of the kernel moves by an offset that is learnt (Dai et al., ICCV 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from visionkit.types.device import without_autocast


class DeformConv(nn.Module):
    """A convolution whose taps are read where a second convolution says, bilinearly, and as 0 outside the image.

    The offsets start at 0, so a new layer is an ordinary convolution (He initialised, for ReLU). With ``modulated``
    every tap also has a weight between 0 and 1, half at the start (Zhu et al., "Deformable ConvNets v2", CVPR 2019).

    Args:
        inputs, outputs: channels.
        size: rows and columns of the kernel, odd.
        stride, dilation: as for a convolution; the padding keeps the size at stride 1.
        groups: groups of input channels that have offsets of their own.
        modulated: see above.
        bias: whether it has one.

    Shape: (B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        modulated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.padding = stride, dilation, dilation * (size // 2)
        self.moves = 2 * groups * size * size
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.offset = nn.Conv2d(
            inputs, self.moves + (groups * size * size if modulated else 0), size,
            stride=stride, padding=self.padding, dilation=dilation,
        )  # fmt: skip
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        said = self.offset(x)
        offsets, mask = said[:, : self.moves], said[:, self.moves :]
        # Both ways need one dtype for all arguments, of which mixed precision would make several; and places that are
        # rounded to half precision are off by cells.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        with without_autocast(x.device):
            bias = None if self.bias is None else self.bias.to(dtype)
            return deformed_conv(
                x.to(dtype), offsets.to(dtype), self.weight.to(dtype), bias, self.stride, self.padding, self.dilation,
                mask.to(dtype).sigmoid() if mask.shape[1] else None,
            ).to(x.dtype)  # fmt: skip


def deformed_conv(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """torchvision's ``deform_conv2d``, whose arguments these are, several times as fast on a CPU.

    Its kernel for CPUs reads value after value on one core; here every tap is an image sampled by ``grid_sample``, and
    their sum is a product of matrices. For square strides and paddings.
    """
    if x.device.type != "cpu":
        return deform_conv2d(x, offsets, weight, bias, stride, padding, dilation, mask)
    rows, columns = weight.shape[2:]
    taps = rows * columns
    (batch, channels, height, width), (out_height, out_width) = x.shape, offsets.shape[2:]
    groups = offsets.shape[1] // (2 * taps)
    moves = offsets.reshape(batch * groups, taps, 2, out_height, out_width)
    tap = torch.arange(taps)[:, None, None]
    down = moves[:, :, 0] + torch.arange(out_height)[:, None] * stride - padding + tap // columns * dilation
    across = moves[:, :, 1] + torch.arange(out_width) * stride - padding + tap % columns * dilation
    grid = torch.stack(((2 * across + 1) / width - 1, (2 * down + 1) / height - 1), -1)
    images = x.reshape(batch * groups, channels // groups, height, width)
    read = F.grid_sample(images, grid.flatten(1, 2), align_corners=False)
    read = read.view(batch, groups, channels // groups, taps, out_height * out_width)
    if mask is not None:
        read = read * mask.reshape(batch, groups, 1, taps, out_height * out_width)
    read = read.view(batch, channels * taps, out_height * out_width)
    out = torch.matmul(weight.flatten(1), read).view(batch, len(weight), out_height, out_width)
    return out if bias is None else out + bias[:, None, None]
