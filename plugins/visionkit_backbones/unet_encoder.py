"""The contracting path of U-Net (Ronneberger et al., MICCAI 2015, figure 1)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.model import Backbone
from visionkit.numbers import FractionBelowOne, Positive
from visionkit.types import FeatureSpec, Level

MARGIN = 92
"""How much a network of five levels without padding takes off each side: 572 pixels give 388."""


class UNetEncoder(Backbone):
    """Two 3x3 convolutions on each of five levels, 2x2 max pooling between them.

    Levels are ``c0`` ... ``c4``, of stride 1 ... 16 and ``width`` ... 16 ``width`` channels.

    Args:
        levels: names of the levels that are read; ``None``: all.
        width: channels of the first level.
        margins: ``same`` keeps the size in every convolution. ``paper``: the image is mirrored by 92 pixels and no
            convolution is padded, so that the head ``unet`` with the same margins ends on the pixels of the image;
            all levels but its result are larger than the image.
        norm: after each convolution; the paper has none.
        dropout: at the end of the path.
        gray: the mean of the three colours is read, not each of them.

    Raises:
        UserError: a level that there is not.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        width: Positive = 64,
        margins: Literal["same", "paper"] = "same",
        norm: NormName | None = None,
        dropout: FractionBelowOne = 0.5,
        gray: bool = False,
    ) -> None:
        super().__init__()
        every = {f"c{i}": Level(width * 2**i, 2**i) for i in range(5)}
        if levels is not None and (unknown := sorted(set(levels) - set(every))):
            raise UserError(f"unet_encoder has no level '{unknown[0]}' (it has: {', '.join(every)})")
        self.spec = FeatureSpec({name: level for name, level in every.items() if levels is None or name in levels})
        self.margins, self.gray = margins, gray
        self.blocks = nn.ModuleList()
        before = 1 if gray else 3
        for i in range(int(list(self.spec)[-1][1:]) + 1):
            layers: list[nn.Module] = [] if i == 0 else [nn.MaxPool2d(2, ceil_mode=True)]
            layers += double_conv(before, width * 2**i, norm, margins == "same")
            layers += [nn.Dropout(dropout)] if i == 4 else []
            self.blocks.append(nn.Sequential(*layers))
            before = width * 2**i

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up, but for the paper's margins."""
        x = images.mean(1, keepdim=True) if self.gray else images
        x = with_margins(x) if self.margins == "paper" else x
        made: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = made[f"c{i}"] = block(x)
        return {name: made[name] for name in self.spec}


def double_conv(inputs: int, outputs: int, norm: NormName | None, padded: bool) -> list[nn.Module]:
    """Two 3x3 convolutions with ReLU, initialised as the paper says (He et al., ICCV 2015)."""
    layers = [ConvNormAct(inputs, outputs, norm=norm), ConvNormAct(outputs, outputs, norm=norm)]
    for layer in layers:
        conv = layer[0]
        assert isinstance(conv, nn.Conv2d)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if not padded:
            conv.padding = (0, 0)
    return list(layers)


def with_margins(images: Tensor) -> Tensor:
    """(B, C, H, W) mirrored by 92 pixels, and as far at the right and bottom as four halvings without rest need: what
    comes out then has 16 n + 4 pixels a side, the first H x W of which are the image's (figure 2)."""
    for axis in (2, 3):
        side = int(images.shape[axis])
        inside = max(-(-(side - 4) // 16), 1) * 16 + 4
        period = max(1, 2 * (side - 1))
        index = torch.arange(-MARGIN, inside + MARGIN, device=images.device) % period
        images = images.index_select(axis, torch.minimum(index, period - index))
    return images
