"""Making maps larger: how cells are aligned, and learnt upsampling that leaves no checkerboard."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError

Alignment = Literal["cells", "corners", "stretch", "ends"]
"""How a small map lies on a larger one. ``cells``: the corner of the first cell on that of the image, every cell as
large as its stride. ``corners``: centres of the corner cells coincide, as padded convolutions of stride 2 lie on images
of 8 n + 1 pixels; what other images have beyond is filled with the last cell. ``stretch``: corners of the maps
coincide, whatever the stride was. ``ends``: centres of the corner cells lie on those of the corner pixels, whatever the
stride was."""

Upsampling = Literal["transposed", "resize_conv", "pixel_shuffle", "bilinear", "nearest"]


def resize(x: Tensor, size: tuple[int, int], scale: float | None = None, align: Alignment = "cells") -> Tensor:
    """Bilinear interpolation of (B, C, h, w) to (B, C, *size).

    Args:
        size: (height, width) of the result.
        scale: result pixels per cell; ``cells`` and ``corners`` need it.
        align: see :data:`Alignment`.
    """
    if align in ("stretch", "ends"):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align == "ends")
    if scale is None:
        raise ValueError(f"{align} can only be aligned where the scale is known")
    if align == "cells":
        return torch.ops.aten.upsample_bilinear2d(x, list(size), False, scale, scale)
    height, width = (round((int(side) - 1) * scale) + 1 for side in x.shape[2:])
    x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)[..., : size[0], : size[1]]
    return F.pad(x, (0, max(0, size[1] - width), 0, max(0, size[0] - height)), mode="replicate")


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) weights with which a transposed convolution of stride ``ceil(size / 2)`` interpolates bilinearly.

    A row of size 4 is (0.25, 0.75, 0.75, 0.25). (Long et al., CVPR 2015, section 3.3.)
    """
    factor = (size + 1) // 2
    centre = factor - (1.0 if size % 2 else 0.5)
    row = 1 - (torch.arange(size) - centre).abs() / factor
    return row[:, None] * row


def bilinear_deconv(channels: int, factor: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear upsampling of each channel: kernel 2 ``factor``, no bias.

    Nothing is cut off: (n - 1) ``factor`` + 2 ``factor`` cells come from n. As FCN has it.
    """
    layer = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = bilinear_kernel(2 * factor).to(layer.weight)
    return layer


def make_upsampling(name: Upsampling, inputs: int, outputs: int, scale: int = 2) -> nn.Module:
    """A layer that makes (B, outputs, scale h, scale w) of (B, inputs, h, w).

    None of them, as it starts, turns a constant map into a checkerboard (Odena et al., Distill 2016): kernels are
    multiples of their stride, and the weights of all positions in a cell start alike.

    Args:
        name: ``transposed``: a transposed convolution of kernel 2 ``scale`` that interpolates bilinearly at first;
            ``resize_conv``: nearest neighbours, then a 3x3 convolution; ``pixel_shuffle``: a 3x3 convolution to
            ``scale`` squared times the channels, rearranged (Shi et al., CVPR 2016); ``bilinear``,
            ``nearest``: interpolation, and a 1x1 convolution before it where the channels change.
        inputs, outputs: channels.
        scale: 2 or more.

    Raises:
        UserError: a scale below 2.
    """
    if scale < 2:
        raise UserError(f"scale: {scale} does not make a map larger; 2 or more does")
    if name == "transposed":
        return _transposed(inputs, outputs, scale)
    if name == "resize_conv":
        return nn.Sequential(nn.Upsample(scale_factor=scale), nn.Conv2d(inputs, outputs, 3, padding=1))
    if name == "pixel_shuffle":
        return _pixel_shuffle(inputs, outputs, scale)
    reduce: list[nn.Module] = [] if inputs == outputs else [nn.Conv2d(inputs, outputs, 1)]
    mixed = {"align_corners": False} if name == "bilinear" else {}
    return nn.Sequential(*reduce, nn.Upsample(scale_factor=scale, mode=name, **mixed))


def _transposed(inputs: int, outputs: int, scale: int) -> nn.Module:
    layer = nn.ConvTranspose2d(
        inputs, outputs, 2 * scale, scale, padding=math.ceil(scale / 2), output_padding=scale % 2
    )
    mixing = torch.empty(inputs, outputs, 1, 1)
    if inputs == outputs:
        mixing.copy_(torch.eye(inputs)[:, :, None, None])
    else:
        nn.init.normal_(mixing, std=math.sqrt(2 / inputs))
    kernel = bilinear_kernel(2 * scale)
    # With an odd scale the kernel of even size lies half a pixel off; its phases still add up to the same.
    with torch.no_grad():
        layer.weight.copy_(mixing * kernel)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _pixel_shuffle(inputs: int, outputs: int, scale: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs * scale**2, 3, padding=1)
    with torch.no_grad():  # all positions of a cell start with the same kernel (Aitken et al., 2017)
        conv.weight.copy_(conv.weight[:: scale**2].repeat_interleave(scale**2, 0))
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.PixelShuffle(scale))
