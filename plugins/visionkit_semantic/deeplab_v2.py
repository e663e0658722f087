"""DeepLabv2 (Chen et al., TPAMI 2018): the scores of several dilations, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionkit.layers.aspp import SummedASPP, rates_at
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.upsampling import Alignment, resize
from visionkit.numbers import OpenFraction, Positive
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    Mean,
    SemanticOutput,
    SemanticTarget,
)
from visionkit_semantic.parts import Scores, SegmentationHead


@dataclass
class ScaledSemanticOutput(SemanticOutput):
    """The largest scores over copies of the image.

    Attributes:
        each: the scores (B, classes, h, w) of every copy; empty where there is one alone.
    """

    each: tuple[Tensor, ...] = ()


class DeepLabV2(SegmentationHead):
    """Four dilated 3x3 convolutions straight to scores, added up (section 3.2, figure 4).

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's has stride 8.
        rates: dilations at stride 8; half as large at 16.
        scales: of the smaller copies of the image that the backbone looks at too (0.75 and 0.5 in the paper); the
            largest score over all copies counts, and every copy learns by itself as well (section 4.1.2).
        hidden: the VGG form: two layers of so many channels in every branch (1024 in the paper).
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input.
    """

    output = ScaledSemanticOutput

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        rates: Sequence[Positive] = (6, 12, 18, 24),
        scales: Sequence[OpenFraction] = (),
        hidden: Positive | None = None,
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read = spec[level]
        self.levels = (level, *(f"{level}@{scale:g}" for scale in scales))
        spec.only(self.levels)  # says which one is missing
        self.aspp = SummedASPP(read.channels, len(labels), rates_at(read.stride, rates, of=8), hidden)
        self.scores = Scores(len(labels), read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> ScaledSemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up."""
        scores = self.aspp(features[self.levels[0]])
        if len(self.levels) == 1:
            return ScaledSemanticOutput(self.scores(scores, batch))
        size = (int(scores.shape[-2]), int(scores.shape[-1]))
        smaller = [resize(self.aspp(features[name]), size, align="stretch") for name in self.levels[1:]]
        each = (scores, *smaller)
        return ScaledSemanticOutput(self.scores(torch.stack(each).amax(0), batch), each)

    def losses(self, output: ScaledSemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled pixel, upsampled to the input first: of the scores, and of those of each copy."""
        loss = self.scores.losses(output, batch)["segmentation"]
        total = loss.total
        for scores in output.each:
            total = total + self.scores.losses(SemanticOutput(self.scores(scores, batch)), batch)["segmentation"].total
        return {"segmentation": Mean(total, loss.count)}
