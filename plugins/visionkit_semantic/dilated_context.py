"""DilatedNet's context module (Yu & Koltun, ICLR 2016): scores that look further and further around."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.upsampling import Alignment
from visionkit.numbers import OnlyWith, Positive
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    SemanticOutput,
)
from visionkit_semantic.parts import Scores, SegmentationHead

WIDTHS = {"basic": (1, 1, 1, 1, 1, 1, 1), "large": (2, 2, 4, 8, 16, 32, 32)}
"""Channels behind each 3x3 convolution, in multiples of the classes (table 1)."""


class ContextModule(nn.Module):
    """3x3 convolutions of growing dilation on maps of scores, then a 1x1 one; it starts as the identity (equation 4).

    The map is surrounded by zeros once, as far as the module sees, and no convolution adds any.

    Args:
        classes: channels in and out.
        form: ``basic`` keeps the channels, ``large`` has up to 32 times as many.
        dilations: of the 3x3 convolutions; beyond seven, widths go on as the last.
        noise: standard deviation of what is added to the identity.
    """

    def __init__(
        self,
        classes: int,
        form: Literal["basic", "large"] = "basic",
        dilations: Sequence[int] = (1, 1, 2, 4, 8, 16, 1),
        noise: float = 0.01,
    ) -> None:
        super().__init__()
        widths = [*WIDTHS[form], *[WIDTHS[form][-1]] * (len(dilations) - 7)][: len(dilations)]
        channels = [classes, *(width * classes for width in widths)]
        self.margin = sum(dilations)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, dilation=dilation)
            for (before, after), dilation in zip(itertools.pairwise(channels), dilations)
        )
        self.last = nn.Conv2d(channels[-1], classes, 1)
        for conv in [*self.convs, self.last]:
            identity_(conv, classes, noise)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes, h, w) to the same."""
        x = F.pad(x, (self.margin,) * 4)
        for conv in self.convs:
            x = conv(x).relu()
        return self.last(x)  # type: ignore[no-any-return]


@torch.no_grad()
def identity_(conv: nn.Conv2d, classes: int, noise: float) -> None:
    """Let a convolution hand on its input, each class to the channels that stand for it, with some noise (equation 5).

    With c channels in and d out, the middle of the kernel from a to b is ``classes / d`` where both stand for the same
    class, so that a chain of them that ends with as many channels as it began with is the identity.
    """
    into = torch.arange(conv.in_channels) * classes // conv.in_channels
    out = torch.arange(conv.out_channels) * classes // conv.out_channels
    same = (out[:, None] == into).to(conv.weight) * classes / conv.out_channels
    nn.init.normal_(conv.weight, std=noise * classes / conv.out_channels)
    middle = conv.kernel_size[0] // 2
    conv.weight[:, :, middle, middle] += same
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]


class DilatedContext(SegmentationHead):
    """Scores of the classes on one level, and the context module on them.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's is ``fc7`` of ``vgg16`` in the form ``dilated``, of stride 8.
        context: the form of the module; ``none`` is the front end alone.
        dilations: of its 3x3 convolutions; for Cityscapes the authors put 32 and 64 behind the 16.
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        context: Literal["none", "basic", "large"] = "basic",
        dilations: Annotated[Sequence[Positive], OnlyWith(context=("basic", "large"))] = (1, 1, 2, 4, 8, 16, 1),
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read = spec[level]
        self.level, self.levels = level, (level,)
        self.score = nn.Conv2d(read.channels, len(labels), 1)
        nn.init.normal_(self.score.weight, std=0.001)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        self.context = nn.Identity() if context == "none" else ContextModule(len(labels), context, dilations)
        self.scores = Scores(len(labels), read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up."""
        return SemanticOutput(self.scores(self.context(self.score(features[self.level])), batch))
