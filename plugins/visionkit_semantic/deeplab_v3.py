"""DeepLabv3 (Chen et al., arXiv:1706.05587): dilated features, and a pyramid of dilations on top of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import nn

from visionkit.layers.aspp import ASPP, rates_at
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.regions import blank_padding, image_regions
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.upsampling import Alignment
from visionkit.numbers import FractionBelowOne, OnlyWith, Positive, PositiveFloat
from visionkit.types import Batch, Features, FeatureSpec, LabelSet
from visionkit_semantic.parts import AuxiliaryHead, DeepSemanticOutput, Scores, initialise


class DeepLabV3(AuxiliaryHead):
    """Atrous spatial pyramid pooling on one level, and a 1x1 convolution to scores.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's has stride 16 or 8.
        channels: of every branch and of their projection.
        rates: dilations at stride 16; they are twice as large at stride 8.
        hidden: whether a 3x3 convolution follows the projection; torchvision's models have it, the paper has not.
        norm: after every convolution.
        dropout: after the projection.
        auxiliary: a level whose scores are learnt beside; ``None`` for none.
        auxiliary_weight: of their loss.
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        channels: Positive = 256,
        rates: Sequence[Positive] = (6, 12, 18),
        hidden: bool = False,
        norm: NormName = "batch",
        dropout: FractionBelowOne = 0.5,
        auxiliary: str | None = None,
        auxiliary_weight: Annotated[PositiveFloat, OnlyWith("auxiliary")] = 0.4,
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read, classes = spec[level], len(labels)
        self.level, self.levels, self.stride = level, (level,), read.stride
        self.aspp = ASPP(read.channels, channels, rates_at(read.stride, rates), norm, dropout=dropout)
        self.hidden = ConvNormAct(channels, channels, norm=norm) if hidden else None
        self.score = nn.Conv2d(channels, classes, 1)
        self.learn_beside(spec, auxiliary, auxiliary_weight, norm=norm)
        initialise(self)
        self.scores = Scores(classes, read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> DeepSemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up."""
        regions = image_regions(batch.info, self.stride, features[self.level])
        x = self.aspp(features[self.level], regions)
        if self.hidden is not None:
            x = self.hidden(blank_padding(x, regions))
        return DeepSemanticOutput(self.scores(self.score(x), batch), self.beside(features))
