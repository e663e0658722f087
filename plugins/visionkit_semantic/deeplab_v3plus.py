"""DeepLabv3+ (Chen et al., ECCV 2018): DeepLabv3, and a decoder that finds outlines on a fine level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from visionkit.errors import UserError
from visionkit.layers.aspp import ASPP, rates_at
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.regions import blank_padding, image_regions
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.separable import SeparableConv
from visionkit.layers.upsampling import Alignment, resize
from visionkit.numbers import FractionBelowOne, Positive
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    SemanticOutput,
)
from visionkit_semantic.parts import Scores, SegmentationHead, initialise


class DeepLabV3Plus(SegmentationHead):
    """The pyramid of dilations on a coarse level is enlarged to a fine one, put beside a few channels of that, and
    refined (section 3.1, figure 2).

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what the pyramid reads; the paper's has stride 16 or 8.
        fine: what the decoder reads; the paper's has stride 4.
        channels: of the pyramid and of the decoder.
        fine_channels: that are left of the fine level.
        rates: dilations at stride 16; they are twice as large at stride 8.
        convs: 3x3 convolutions of the decoder.
        separable: the 3x3 convolutions are separable, as the paper has them with Xception.
        between: one more 3x3 convolution between the pyramid and the decoder; segmentation_models.pytorch has it.
        norm: after every convolution.
        dropout: after the pyramid, and after each convolution of the decoder.
        loss: the name of a loss, or a mapping with its settings.
        align: how coarse cells lie on fine ones.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        fine: str = "c2",
        channels: Positive = 256,
        fine_channels: Positive = 48,
        rates: Sequence[Positive] = (6, 12, 18),
        convs: Positive = 2,
        separable: bool = False,
        between: bool = False,
        norm: NormName = "batch",
        dropout: tuple[FractionBelowOne, FractionBelowOne] = (0.1, 0.1),
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        coarse, low = spec[level], spec[fine]
        if coarse.stride < low.stride:
            raise UserError(f"fine: '{fine}' has stride {low.stride}, more than the {coarse.stride} of '{level}'")
        self.level, self.fine, self.levels, self.align = level, fine, (level, fine), align
        self.stride, self.scale = coarse.stride, coarse.stride / low.stride
        self.aspp = ASPP(coarse.channels, channels, rates_at(coarse.stride, rates), norm, separable, dropout[0])

        def conv(inputs: int) -> nn.Module:
            if separable:
                return SeparableConv(inputs, channels, norm=norm, act=True)
            return ConvNormAct(inputs, channels, norm=norm)

        self.between = conv(channels) if between else None
        self.reduce = ConvNormAct(low.channels, fine_channels, 1, norm=norm)
        decoder: list[nn.Module] = []
        for i in range(convs):
            decoder += [conv(channels if i else channels + fine_channels), nn.Dropout(dropout[1])]
        self.decoder = nn.Sequential(*decoder)
        self.score = nn.Conv2d(channels if convs else channels + fine_channels, len(labels), 1)
        initialise(self)
        self.scores = Scores(len(labels), low.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride) at the fine level, rounded up."""
        regions = image_regions(batch.info, self.stride, features[self.level])
        x, low = self.aspp(features[self.level], regions), self.reduce(features[self.fine])
        if self.between is not None:
            x = self.between(blank_padding(x, regions))
        x = resize(x, (int(low.shape[-2]), int(low.shape[-1])), self.scale, self.align)
        return SemanticOutput(self.scores(self.score(self.decoder(torch.cat([x, low], 1))), batch))
