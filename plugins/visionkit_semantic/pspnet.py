"""PSPNet (Zhao et al., CVPR 2017): dilated features beside averages of them over ever larger regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from visionkit.errors import UserError
from visionkit.layers.norm import NormName
from visionkit.layers.pyramid_pooling import PyramidPooling
from visionkit.layers.regions import blank_padding, image_regions
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.upsampling import Alignment
from visionkit.numbers import FractionBelowOne, OnlyWith, Positive, PositiveFloat
from visionkit.types import Batch, Features, FeatureSpec, LabelSet
from visionkit_semantic.parts import AuxiliaryHead, DeepSemanticOutput, ScoreBranch, Scores, initialise


class PSPNet(AuxiliaryHead):
    """Pyramid pooling on one level, a 3x3 convolution and scores; beside it, in training, scores of a level before.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's has stride 8.
        bins: cells a side of each average.
        hidden: channels of the 3x3 convolution.
        norm: after every convolution.
        dropout: before the scores.
        auxiliary: the level whose scores are learnt beside; ``None`` for none.
        auxiliary_hidden: channels of its 3x3 convolution.
        auxiliary_weight: of their loss.
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input; the paper's code aligns corners, for sides of 8 n + 1.

    Raises:
        UserError: more bins than channels.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        bins: Sequence[Positive] = (1, 2, 3, 6),
        hidden: Positive = 512,
        norm: NormName = "batch",
        dropout: FractionBelowOne = 0.1,
        auxiliary: str | None = "c4",
        auxiliary_hidden: Annotated[Positive, OnlyWith("auxiliary")] = 256,
        auxiliary_weight: Annotated[PositiveFloat, OnlyWith("auxiliary")] = 0.4,
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read, classes = spec[level], len(labels)
        if len(bins) > read.channels:
            raise UserError(f"bins: {len(bins)} averages cannot share the {read.channels} channels of '{level}'")
        self.level, self.levels, self.stride = level, (level,), read.stride
        self.pool = PyramidPooling(read.channels, bins, norm, align)
        self.branch = ScoreBranch(self.pool.outputs, hidden, classes, norm, dropout)
        self.learn_beside(spec, auxiliary, auxiliary_weight, hidden=auxiliary_hidden, norm=norm, dropout=dropout)
        initialise(self)
        self.scores = Scores(classes, read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> DeepSemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up; of the input's size where corners are aligned."""
        regions = image_regions(batch.info, self.stride, features[self.level])
        scores = self.branch(blank_padding(self.pool(features[self.level], regions), regions))
        return DeepSemanticOutput(self.scores(scores, batch), self.beside(features))
