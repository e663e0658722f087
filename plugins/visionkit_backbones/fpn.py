"""Feature pyramid network (Lin et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.model import Neck
from visionkit.numbers import Positive
from visionkit.types import Features, FeatureSpec, Level


class FPN(Neck):
    """Top-down pyramid: 1x1 laterals, upsampling and addition, 3x3 output convolutions.

    Level ``cN`` becomes ``pN``. Equal to torchvision's ``FeaturePyramidNetwork`` with the same weights; on C2 ... C5 of
    ResNet-50 it has 3,344,384 parameters.

    Args:
        spec: of the backbone.
        levels: names of the pyramid's levels that are read (``None``: all). Only their output convolutions are built,
            and only the laterals that lead to them.
        channels: of every level.
        inputs: the backbone levels it is made from, finest first.
        extra: levels beyond the coarsest input. ``"pool"``: one, every second cell of the coarsest output (Mask R-CNN's
            P6); ``"conv_c5"`` and ``"conv_p5"``: two, by 3x3 convolutions of stride 2 on the coarsest input or output,
            with ReLU between them (RetinaNet); ``"none"``.
        norm: normalisation after every lateral and output convolution; ``None`` as in the paper.
        upsample: how a level grows to the size of the finer one; ``"nearest"`` as in the paper.
        relu: ``"extras"``: between the convolutions of ``extra``; ``"outputs"``: after each output convolution instead
            (YOLACT).
        context: add the mean of the coarsest input over the image, by a 1x1 convolution, to its lateral (UPSNet).

    Raises:
        UserError: an input that the backbone does not have, or a level that it would not yield.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        *,
        levels: Collection[str] | None = None,
        channels: Positive = 256,
        inputs: Sequence[str] = ("c2", "c3", "c4", "c5"),
        extra: Literal["none", "pool", "conv_c5", "conv_p5"] = "pool",
        norm: NormName | None = None,
        upsample: Literal["nearest", "bilinear"] = "nearest",
        relu: Literal["extras", "outputs"] = "extras",
        context: bool = False,
    ) -> None:
        super().__init__()
        everything = pyramid_spec(spec, inputs, channels, extra)
        wanted = [name for name in everything if levels is None or name in levels]
        if levels is not None and (unknown := sorted(set(levels) - set(everything))):
            raise UserError(f"the pyramid has no level '{unknown[0]}' (it has: {', '.join(everything)})")
        if not wanted:
            raise UserError(f"no level of the pyramid is read (it has: {', '.join(everything)})")
        self.spec = everything.only(wanted)

        coarsest = inputs[-1]
        outputs = {_p(c) for c in inputs} & set(wanted)
        extras = [name for name in everything if name not in {_p(c) for c in inputs}]
        while extras and extras[-1] not in wanted:  # P7 is made from P6, so that one stays where only P7 is read
            extras.pop()
        if extras and extra != "conv_c5":
            outputs.add(_p(coarsest))
        finest = next((i for i, c in enumerate(inputs) if _p(c) in outputs), len(inputs))
        self.inputs = tuple(inputs[finest:])
        self.reads = self.inputs or (coarsest,)
        self.extra, self.coarsest = extra, coarsest
        self.upsample, self.relu = upsample, relu

        self.lateral = nn.ModuleDict({c: _conv(spec[c].channels, channels, 1, norm) for c in self.inputs})
        self.output = nn.ModuleDict({_p(c): _conv(channels, channels, 3, norm) for c in inputs if _p(c) in outputs})
        self.context = nn.Conv2d(spec[coarsest].channels, channels, 1) if context and self.inputs else None
        self.extras = nn.ModuleDict()
        if extra.startswith("conv"):
            source = spec[coarsest].channels if extra == "conv_c5" else channels
            for name, width in zip(extras, (source, channels)):
                self.extras[name] = nn.Conv2d(width, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Levels ``pN``, each (B, channels, H / stride, W / stride), rounded up."""
        made: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(self.inputs):
            x = self.lateral[name](features[name])
            if above is None and self.context is not None:
                x = x + self.context(features[name].mean((2, 3), keepdim=True))
            if above is not None:
                # To the size of the finer map, not simply twice as large: maps of odd sizes occur.
                x = x + F.interpolate(above, size=x.shape[-2:], mode=self.upsample)
            above = x
            if _p(name) in self.output:
                y = self.output[_p(name)](x)
                made[_p(name)] = F.relu(y) if self.relu == "outputs" else y
        made.update(self._extra_levels(features, made))
        return {name: made[name] for name in self.spec}

    def _extra_levels(self, features: Features, made: Features) -> dict[str, Tensor]:
        if self.extra == "pool" and _p(self.coarsest) in made:
            return {_p(self.coarsest, 1): made[_p(self.coarsest)][:, :, ::2, ::2]}
        extra: dict[str, Tensor] = {}
        x: Tensor | None = None
        for name, conv in self.extras.items():
            if x is None:
                x = features[self.coarsest] if self.extra == "conv_c5" else made[_p(self.coarsest)]
            elif self.relu == "extras":
                x = F.relu(x)
            extra[name] = x = conv(x)
        return extra


def pyramid_spec(spec: FeatureSpec, inputs: Sequence[str], channels: int, extra: str) -> FeatureSpec:
    """Every level that a pyramid on these inputs could yield."""
    if not inputs:
        raise UserError("inputs: a pyramid needs one backbone level or more")
    if missing := [name for name in inputs if name not in spec]:
        raise UserError(f"inputs: the backbone has no level '{missing[0]}' (it has: {', '.join(spec)})")
    if list(inputs) != [name for name in spec if name in inputs]:
        raise UserError(f"inputs: must be different levels, finest first, not {', '.join(inputs)}")
    levels = {_p(name): Level(channels, spec[name].stride) for name in inputs}
    for i in range({"none": 0, "pool": 1}.get(extra, 2)):
        levels[_p(inputs[-1], i + 1)] = Level(channels, spec[inputs[-1]].stride * 2 ** (i + 1))
    return FeatureSpec(levels)


def _p(name: str, beyond: int = 0) -> str:
    """``p5`` for ``c5``, ``p6`` one beyond it."""
    if not name[1:].isdigit():
        raise UserError(f"inputs: a pyramid is made from levels such as c2 ... c5, not '{name}'")
    return f"p{int(name[1:]) + beyond}"


def _conv(inputs: int, outputs: int, kernel: int, norm: NormName | None) -> nn.Module:
    if norm is None:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    return ConvNormAct(inputs, outputs, kernel, norm=norm, act=False)
