"""Iterative deep aggregation of a DLA's levels, upwards to the finest (Yu et al., CVPR 2018; CenterNet, 2019)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from itertools import pairwise

from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.deform import DeformConv
from visionkit.model import Neck
from visionkit.types import Features, FeatureSpec, Level
from visionkit_backbones.deconv import fill_bilinear


class DLAUp(Neck):
    """All levels joined in one of the finest stride, as CenterNet has it on DLA-34.

    First every level is brought to the next finer one, from the coarsest pair up to all of them; then what was found at
    each stride is joined in the same way. A level joins by a 3 x 3 convolution, bilinear upsampling that is learnt,
    addition, and another 3 x 3 convolution; both convolutions have batch norm and ReLU.

    Args:
        spec: of the backbone.
        levels: names of the levels that are read (``None``: all); there is only ``p2``, for the input ``c2``.
        inputs: the backbone levels, finest first, each of twice the stride of the one before.
        deformable: whether the 3 x 3 convolutions are modulated deformable ones, as in CenterNet's weights.

    Raises:
        UserError: an input that the backbone does not have, a stride that is not doubled, a level that there is not.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        levels: Collection[str] | None = None,
        inputs: tuple[str, ...] = ("c2", "c3", "c4", "c5"),
        deformable: bool = True,
    ) -> None:
        super().__init__()
        if missing := [name for name in inputs if name not in spec]:
            raise UserError(f"inputs: the backbone has no level '{missing[0]}' (it has: {', '.join(spec)})")
        strides = [spec[name].stride for name in inputs]
        if len(inputs) < 2 or any(b != 2 * a for a, b in pairwise(strides)):
            raise UserError(f"inputs: two levels or more, each of twice the stride of the one before, not {strides}")
        self.level = f"p{inputs[0][1:]}"
        if levels is not None and (unknown := sorted(set(levels) - {self.level})):
            raise UserError(f"the aggregation has no level '{unknown[0]}' (it has: {self.level})")
        self.reads = self.inputs = inputs
        channels = [spec[name].channels for name in inputs]
        self.spec = FeatureSpec({self.level: Level(channels[0], strides[0])})
        # Stage i joins the last i + 2 levels; all but the first of them are as wide as the stage before made them.
        self.stages = nn.ModuleList(
            Join(channels[j], [channels[j + 1]] * (len(channels) - j - 1), 1, deformable)
            for j in reversed(range(len(channels) - 1))
        )
        self.last = Join(channels[0], channels[1:-1], None, deformable)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """``p2``, of the channels and the stride of ``c2``."""
        layers = [features[name] for name in self.inputs]
        found: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            first = len(layers) - i - 2
            layers[first:] = stage(layers[first:])
            found.insert(0, layers[-1])
        return {self.level: self.last(found)[-1]}


class Join(nn.Module):
    """Each level but the first, brought to the first one's size and joined with what came before it.

    Args:
        channels: of the first level, and of all that comes out.
        others: channels of the other levels.
        octaves: by how many doublings each of them grows; ``None``: the first by one, the second by two ...
        deformable: whether convolutions are deformable.
    """

    def __init__(self, channels: int, others: Sequence[int], octaves: int | None, deformable: bool) -> None:
        super().__init__()
        self.project = nn.ModuleList(_conv(width, channels, deformable) for width in others)
        self.grow = nn.ModuleList(_grow(channels, 2 ** (octaves or i + 1)) for i in range(len(others)))
        self.node = nn.ModuleList(_conv(channels, channels, deformable) for _ in others)

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        joined = [layers[0]]
        for layer, project, grow, node in zip(layers[1:], self.project, self.grow, self.node):
            joined.append(node(grow(project(layer)) + joined[-1]))
        return joined


def _conv(inputs: int, outputs: int, deformable: bool) -> nn.Module:
    if not deformable:
        return ConvNormAct(inputs, outputs, 3, norm="batch")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = DeformConv(inputs, outputs, modulated=True)
    layers["norm"] = nn.BatchNorm2d(outputs)
    layers["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _grow(channels: int, factor: int) -> nn.ConvTranspose2d:
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, stride=factor, padding=factor // 2, groups=channels, bias=False
    )
    fill_bilinear(layer)
    return layer
