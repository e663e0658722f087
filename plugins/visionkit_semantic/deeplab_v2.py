"""DeepLabv2 (Chen et al., TPAMI 2018): the scores of several dilations, added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visionkit.layers.aspp import SummedASPP, rates_at
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.semantic import semantic_predictions
from visionkit.layers.upsampling import Alignment
from visionkit.model import Head
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    Mean,
    SemanticOutput,
    SemanticPrediction,
    SemanticTarget,
)
from visionkit_semantic.parts import Scores, level_of


class DeepLabV2(Head):
    """Four dilated 3x3 convolutions straight to scores, added up (section 3.2, figure 4).

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's has stride 8.
        rates: dilations at stride 8; half as large at 16.
        hidden: the VGG form: two layers of so many channels in every branch (1024 in the paper).
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input.
    """

    task = "semantic"
    makes = SemanticPrediction
    output = SemanticOutput
    loss_names = ("segmentation",)
    evaluators = ("semantic",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        rates: Sequence[int] = (6, 12, 18, 24),
        hidden: int | None = None,
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read = level_of(spec, level)
        self.level, self.levels = level, (level,)
        self.aspp = SummedASPP(read.channels, len(labels), rates_at(read.stride, rates, of=8), hidden)
        self.scores = Scores(len(labels), read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up."""
        return SemanticOutput(self.scores(self.aspp(features[self.level]), batch))

    def losses(self, output: SemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled pixel, upsampled to the input first."""
        return self.scores.losses(output, batch)

    def predict(self, output: SemanticOutput, batch: Batch) -> list[SemanticPrediction]:
        """A label map at the original size, an image."""
        return semantic_predictions(output.logits, batch, stride=self.scores.stride)
