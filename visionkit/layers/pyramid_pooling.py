"""Pooling of whole maps: the pyramid of PSPNet, and the pooled branch that DeepLab shares with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.layers.norm import NormName, make_norm
from visionkit.layers.regions import adaptive_average, stretch
from visionkit.layers.upsampling import Alignment


class PooledConv(nn.Module):
    """A map averaged into ``bins`` x ``bins`` cells, then a 1x1 convolution, normalisation and ReLU.

    Where a channel has one value only (one bin, one image) a batch norm cannot tell mean from spread; it then takes
    its running statistics, so that a batch of one can be trained on.
    """

    def __init__(self, inputs: int, outputs: int, bins: int = 1, norm: NormName = "batch") -> None:
        super().__init__()
        self.bins = bins
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = make_norm(norm, outputs)

    def forward(self, x: Tensor, regions: Tensor | None = None) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, bins, bins).

        Args:
            regions: (B, 2) rows and columns that lie on each image, see :mod:`visionkit.layers.regions`; padding takes
                no part in the averages.
        """
        x = self.conv(adaptive_average(x, self.bins, regions))
        norm = self.norm
        if isinstance(norm, nn.BatchNorm2d) and x.shape[0] * self.bins**2 == 1:
            mean, variance = norm.running_mean, norm.running_var
            return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps).relu()
        return norm(x).relu()  # type: ignore[no-any-return]


class PyramidPooling(nn.Module):
    """A map beside averages of it over ever smaller cells (Zhao et al., CVPR 2017, section 3.2, figure 3).

    Each of N averages is reduced to 1 / N of the channels and brought back to the size of the map.

    Args:
        inputs: channels, a multiple of the number of bins.
        bins: cells a side of each average.
        norm: of each branch.
        align: how the averages are brought back; the paper's code aligns corners.
    """

    def __init__(
        self, inputs: int, bins: Sequence[int] = (1, 2, 3, 6), norm: NormName = "batch", align: Alignment = "corners"
    ) -> None:
        super().__init__()
        self.align = align
        self.branches = nn.ModuleList(PooledConv(inputs, inputs // len(bins), n, norm) for n in bins)
        self.outputs = inputs + inputs // len(bins) * len(bins)

    def forward(self, x: Tensor, regions: Tensor | None = None) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w): the map itself first.

        Args:
            regions: (B, 2) rows and columns that lie on each image; averages are of these, and stretched over them.
        """
        size = (int(x.shape[-2]), int(x.shape[-1]))
        # Averages have no stride that could be kept to: they are stretched over the map.
        align: Literal["stretch", "ends"] = "ends" if self.align in ("corners", "ends") else "stretch"
        return torch.cat([x, *(stretch(branch(x, regions), size, regions, align) for branch in self.branches)], 1)
