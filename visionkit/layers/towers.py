"""Towers: small networks that run over every level of a pyramid with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visionkit.layers.conv import ConvNormAct
from visionkit.layers.fast_conv import FastConv2d
from visionkit.layers.norm import NormName


class Tower(nn.Module):
    """3 x 3 convolutions, each followed by ReLU, over every level of a pyramid (Lin et al., ICCV 2017, section 4).

    One tower is shared over the levels; two towers share nothing. Weights start as in the paper: normal with a
    deviation of 0.01, biases 0.

    Args:
        inputs: channels of every level.
        channels: of every convolution.
        convs: how many; with 0 the levels pass through unchanged.
        norm: between convolution and ReLU; ``None`` as in the paper.

    Attributes:
        channels: of what comes out.
    """

    def __init__(self, inputs: int, channels: int, convs: int, *, norm: NormName | None = None) -> None:
        super().__init__()
        self.channels = channels if convs else inputs
        self.conv = nn.Sequential(
            *(ConvNormAct(channels if i else inputs, channels, norm=norm) for i in range(convs))
        )  # fmt: skip
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                init_small(module)

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, channels, h, w) of every level."""
        return tuple(self.conv(x) for x in levels)


class AnchorValues(FastConv2d):
    """The last layer of a tower: so many numbers for each anchor of each cell, by one 3 x 3 convolution.

    Args:
        inputs: channels of the tower.
        anchors: of a cell.
        values: numbers for an anchor.
        bias: what all of them start from.
    """

    def __init__(self, inputs: int, anchors: int, values: int, *, bias: float = 0.0) -> None:
        super().__init__(inputs, anchors * values, 3, padding=1)
        self.values = values
        init_small(self, bias)

    def of_anchors(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(B, h * w * anchors, values) float32 of every level, in the order of :mod:`visionkit.layers.anchors`."""
        return tuple(self(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values).float() for x in levels)


def init_small(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Weights from a normal distribution with a deviation of 0.01, all biases alike."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
