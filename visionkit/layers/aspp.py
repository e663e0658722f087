"""Atrous spatial pyramid pooling: one map seen through several dilations at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.pyramid_pooling import PooledConv
from visionkit.layers.regions import blank_padding
from visionkit.layers.separable import SeparableConv


def rates_at(stride: int, rates: Sequence[int], of: int = 16) -> tuple[int, ...]:
    """Dilations that span the same pixels at another output stride: twice as large at 8 as at 16.

    Args:
        stride: input pixels per cell.
        rates: dilations at stride ``of``.
    """
    return tuple(max(1, rate * of // stride) for rate in rates)


class ASPP(nn.Module):
    """A 1x1 convolution, dilated 3x3 ones and the average of the whole map, concatenated and projected (Chen et al.,
    DeepLabv3, 2017, section 3.3, figure 5).

    Args:
        inputs, outputs: channels; every branch has ``outputs``.
        rates: dilation of each 3x3 branch.
        norm: after every convolution.
        separable: the 3x3 convolutions are separable (DeepLabv3+).
        dropout: after the projection.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        norm: NormName = "batch",
        separable: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(inputs, outputs, 1, norm=norm)])
        for rate in rates:
            branch: nn.Module = ConvNormAct(inputs, outputs, dilation=rate, norm=norm)
            if separable:
                branch = SeparableConv(inputs, outputs, dilation=rate, norm=norm, act=True)
            self.branches.append(branch)
        self.pool = PooledConv(inputs, outputs, norm=norm)
        self.project = ConvNormAct((len(rates) + 2) * outputs, outputs, 1, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, regions: Tensor | None = None) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w).

        Args:
            regions: (B, 2) rows and columns that lie on each image, see :mod:`visionkit.layers.regions`; nothing
                outside of them is read.
        """
        x = blank_padding(x, regions)
        found = [branch(x) for branch in self.branches]
        found.append(self.pool(x, regions).expand(-1, -1, *x.shape[-2:]))
        return self.dropout(self.project(torch.cat(found, 1)))  # type: ignore[no-any-return]


class SummedASPP(nn.Module):
    """Dilated 3x3 convolutions straight to the scores of the classes, added up (Chen et al., DeepLabv2, TPAMI 2018,
    section 3.2, figure 4). There is no average of the whole map and no normalisation.

    Args:
        inputs: channels.
        classes: scored.
        rates: dilation of each branch, at the stride of the map.
        hidden: for the VGG form, the channels of two layers in every branch before the score; ``None`` for none.
    """

    def __init__(
        self, inputs: int, classes: int, rates: Sequence[int] = (6, 12, 18, 24), hidden: int | None = None
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(self._branch(inputs, classes, rate, hidden) for rate in rates)

    @staticmethod
    def _branch(inputs: int, classes: int, rate: int, hidden: int | None) -> nn.Module:
        if hidden is None:
            score = nn.Conv2d(inputs, classes, 3, padding=rate, dilation=rate)
            nn.init.normal_(score.weight, std=0.01)
            nn.init.zeros_(score.bias)  # type: ignore[arg-type]
            return score
        layers: list[nn.Module] = [ConvNormAct(inputs, hidden, dilation=rate), nn.Dropout(0.5)]
        layers += [ConvNormAct(hidden, hidden, 1), nn.Dropout(0.5), nn.Conv2d(hidden, classes, 1)]
        nn.init.normal_(layers[-1].weight, std=0.01)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to scores (B, classes, h, w)."""
        total: Tensor = self.branches[0](x)
        for branch in list(self.branches)[1:]:
            total = total + branch(x)
        return total
