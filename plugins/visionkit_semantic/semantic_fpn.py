"""The semantic branch of Panoptic FPN (Kirillov et al., CVPR 2019, section 3.1, figure 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.semantic import resample, semantic_cross_entropy, semantic_predictions
from visionkit.model import Head
from visionkit.numbers import Positive, PositiveFloat
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

STRIDE = 4
"""Input pixels per cell of the logits."""


class SemanticFPN(Head):
    """Every level is brought to stride 4 by convolutions with bilinear upsampling, the levels are added, and a 1x1
    convolution scores the classes. Logits are upsampled four times more for the loss and for the label map.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        levels: what it reads; strides 4, 8, 16 ...
        channels: inside the branch.
        norm: after every 3x3 convolution; ``None`` for none.
        class_weights: weight of each class in the loss; ``None`` for equal ones.

    Raises:
        UserError: a level finer than stride 4, or a number of weights that is not the number of classes.
    """

    task = "semantic"
    makes = SemanticPrediction
    output = SemanticOutput
    loss_names = ("cross_entropy",)
    evaluators = ("semantic",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: Sequence[str] = ("p2", "p3", "p4", "p5"),
        channels: Positive = 128,
        norm: NormName | None = "group",
        class_weights: Sequence[PositiveFloat] | None = None,
    ) -> None:
        super().__init__(spec, labels)
        if class_weights is not None and len(class_weights) != len(labels):
            raise UserError(f"class_weights: {len(class_weights)} weights for {len(labels)} classes")
        self.levels = tuple(levels)
        self.strides = {name: level.stride for name, level in spec.only(levels).items()}
        self.branches = nn.ModuleDict()
        for name, level in spec.only(levels).items():
            doublings = (level.stride // STRIDE).bit_length() - 1
            if level.stride != STRIDE << max(doublings, 0):
                raise UserError(f"levels: '{name}' has stride {level.stride}; 4, 8, 16 ... can be brought to stride 4")
            self.branches[name] = nn.Sequential(
                *[ConvNormAct(channels if i else level.channels, channels, norm=norm) for i in range(max(1, doublings))]
            )
        self.score = nn.Conv2d(channels, len(labels), 1)
        self.weight: Tensor | None
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / 4, W / 4), rounded up."""
        height, width = batch.images.shape[-2:]
        total: Tensor | None = None
        for name in self.levels:
            x, stride = features[name], self.strides[name]
            for conv in self.branches[name].children():
                x = conv(x)
                if stride > STRIDE:
                    stride //= 2
                    x = resample(x, (-(-height // stride), -(-width // stride)), (2, 2))
            total = x if total is None else total + x
        return SemanticOutput(self.score(total))

    def losses(self, output: SemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Tensor | Mean]:
        """Mean cross-entropy over the labelled pixels."""
        return {"cross_entropy": semantic_cross_entropy(output.logits, batch, stride=STRIDE, weight=self.weight)}

    def predict(self, output: SemanticOutput, batch: Batch) -> list[SemanticPrediction]:
        """A label map at the original size, an image."""
        return semantic_predictions(output.logits, batch, stride=STRIDE)
