"""Deconvolutions from the coarsest level down to stride 4 (Xiao et al., "Simple Baselines", ECCV 2018)."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.deform import DeformConv
from visionkit.model import Neck
from visionkit.numbers import Widths
from visionkit.types import Features, FeatureSpec, Level


class DeconvNeck(Neck):
    """4 x 4 transposed convolutions of stride 2, each with batch norm and ReLU: from C5 to P4, P3, P2.

    With ``deformable``, a modulated deformable 3 x 3 convolution, batch norm and ReLU before each, and transposed
    convolutions that start as bilinear upsampling (CenterNet's ResNets, Zhou et al., 2019).

    Args:
        spec: of the backbone.
        levels: names of the levels that are read (``None``: all); ``c5`` leads to ``p4``, ``p3``, ``p2``.
        source: the backbone level that it starts from.
        channels: of each deconvolution.
        deformable: see above.

    Raises:
        UserError: a level that the backbone does not have, more deconvolutions than it can have, a level that there
            is not.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        levels: Collection[str] | None = None,
        source: str = "c5",
        channels: Widths = (256, 256, 256),
        deformable: bool = False,
    ) -> None:
        super().__init__()
        if source not in spec:
            raise UserError(f"source: the backbone has no level '{source}' (it has: {', '.join(spec)})")
        names = _names(source, len(channels))
        if levels is not None and (unknown := sorted(set(levels) - set(names))):
            raise UserError(f"the deconvolutions give no level '{unknown[0]}' (they give: {', '.join(names[::-1])})")
        wanted = [name for name in names if levels is None or name in levels]
        if not wanted:
            raise UserError(f"no level of the deconvolutions is read (they give: {', '.join(names[::-1])})")
        self.reads, self.source = (source,), source
        before, stride = spec[source].channels, spec[source].stride
        self.steps, made = nn.ModuleDict(), {}
        for name, width in zip(names[: names.index(wanted[-1]) + 1], channels):
            stride //= 2
            self.steps[name] = _step(before, width, deformable)
            made[name], before = Level(width, stride), width
        self.spec = FeatureSpec({name: made[name] for name in reversed(wanted)})

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Levels ``pN``, each twice as large as the one before."""
        made, x = {}, features[self.source]
        for name, step in self.steps.items():
            made[name] = x = step(x)
        return {name: made[name] for name in self.spec}


def _names(source: str, count: int) -> list[str]:
    """``p4``, ``p3``, ``p2`` after ``c5``."""
    first = int(source[1:]) if source[1:].isdigit() else 0
    if not 1 <= count <= first:
        raise UserError(f"channels: from '{source}' there may be 1 to {first} deconvolutions, not {count}")
    return [f"p{first - 1 - i}" for i in range(count)]


def _step(inputs: int, outputs: int, deformable: bool) -> nn.Sequential:
    grow = nn.ConvTranspose2d(outputs if deformable else inputs, outputs, 4, stride=2, padding=1, bias=False)
    nn.init.normal_(grow.weight, std=0.001)
    layers: list[nn.Module] = [grow, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    if deformable:
        fill_bilinear(grow)
        layers = [
            DeformConv(inputs, outputs, modulated=True), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), *layers
        ]  # fmt: skip
    return nn.Sequential(*layers)


@torch.no_grad()
def fill_bilinear(grow: nn.ConvTranspose2d) -> None:
    """Make a transposed convolution a bilinear upsampling by its stride, channel by channel.

    Its kernel is twice as large as its stride (Long et al., CVPR 2015, section 3.3). Where channels mix, only equal
    ones are joined.
    """
    size, stride = grow.kernel_size[0], grow.stride[0]
    position = torch.arange(size) - (size - 1) / 2
    line = 1 - position.abs() / stride
    kernel = line[:, None] * line
    grow.weight.zero_()
    for channel in range(grow.in_channels):
        grow.weight[channel, channel if grow.groups == 1 else 0] = kernel.to(grow.weight)
