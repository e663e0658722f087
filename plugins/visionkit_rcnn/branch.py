"""What the branches on a detector's boxes have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.types import Output, RegionOutput


@dataclass
class BranchOutput(Output):
    """Nothing is computed before it is known which boxes are wanted: sampled ones to learn, final ones to predict.

    Attributes:
        features: level -> (B, C, h, w).
        regions: the boxes.
    """

    features: Mapping[str, Tensor]
    regions: RegionOutput


def conv_stack(channels: int, widths: Sequence[int], norm: NormName | None = None) -> tuple[nn.Sequential, int]:
    """3 x 3 convolutions of these widths on ``channels``, each followed by ``norm`` and ReLU; and the last width."""
    layers = []
    for width in widths:
        layers.append(ConvNormAct(channels, width, norm=norm))
        channels = width
    return nn.Sequential(*layers), channels


def init_convs(module: nn.Module) -> None:
    """He initialisation of every convolution in ``module`` (He et al., ICCV 2015, with the fan out); biases are 0."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
