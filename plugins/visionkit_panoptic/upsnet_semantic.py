"""UPSNet's semantic head (Xiong et al., CVPR 2019, section 3.2): one deformable subnet for every level of a pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit import Head
from visionkit.layers.deform import DeformConv
from visionkit.layers.roi import common_channels
from visionkit.layers.semantic import resample, semantic_cross_entropy, semantic_predictions
from visionkit.numbers import Widths
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


class UPSNetSemantic(Head):
    """A class for every pixel. The subnet is shared; what it makes of each level is upsampled to the finest, joined,
    and scored by a 1 x 1 convolution. With 256 channels it has 1,204,667 parameters for 133 classes, 1,146,185 for 19.

    Args:
        spec, labels: as for every head.
        levels: pyramid levels, finest first.
        channels: widths of the deformable 3 x 3 convolutions.
    """

    task = "semantic"
    makes = SemanticPrediction
    output = SemanticOutput
    loss_names = ("cross_entropy",)
    evaluators = ("semantic",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p2", "p3", "p4", "p5"),
        channels: Widths = (256, 128, 128),
    ) -> None:
        super().__init__(spec, labels)
        self.levels = levels
        self.stride = spec[levels[0]].stride
        self.factors = {level: spec[level].stride / self.stride for level in levels}
        width = common_channels(spec, levels)
        self.subnet = nn.ModuleList()
        for out in channels:
            self.subnet.append(DeformConv(width, out))
            width = out
        self.score = nn.Conv2d(width * len(levels), len(labels), 1)
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride) at the stride of the finest level."""
        size = (features[self.levels[0]].shape[-2], features[self.levels[0]].shape[-1])
        joined: list[Tensor] = []
        for level in self.levels:
            x = features[level]
            for conv in self.subnet:
                x = F.relu(conv(x))
            joined.append(resample(x, size, (self.factors[level],) * 2))
        return SemanticOutput(self.score(torch.cat(joined, 1)))

    def losses(self, output: SemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Tensor | Mean]:
        return {"cross_entropy": semantic_cross_entropy(output.logits, batch, stride=self.stride)}

    def predict(self, output: SemanticOutput, batch: Batch) -> list[SemanticPrediction]:
        return semantic_predictions(output.logits, batch, stride=self.stride)
