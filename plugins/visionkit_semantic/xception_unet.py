"""The decoder of Keras' example of image segmentation, which is called U-Net there, but has no links across."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn

from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.numbers import Widths
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    SemanticOutput,
)
from visionkit_semantic.parts import Scores, SegmentationHead


class XceptionUNet(SegmentationHead):
    """Blocks of two transposed 3x3 convolutions and nearest-neighbour enlarging, each with a shortcut; then a 3x3
    convolution to scores. It reads one level, and nothing of the finer ones.

    As F. Chollet's example on keras.io has it (2019), on the backbone ``xception_encoder``.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the example's has stride 16.
        channels: of the blocks, each of which doubles the size.
        loss: the name of a loss, or a mapping with its settings.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c4",
        channels: Widths = (256, 128, 64, 32),
        loss: LossName | LossOptions = "cross_entropy",
    ) -> None:
        super().__init__(spec, labels)
        read = spec[level]
        self.level, self.levels = level, (level,)
        self.blocks, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        before, doublings = read.channels, 0
        for width in channels:
            layers: list[nn.Module] = []
            for inputs in (before, width):
                transposed = nn.ConvTranspose2d(inputs, width, 3, padding=1)
                layers += [nn.ReLU(), transposed, nn.BatchNorm2d(width, 1e-3, 0.01)]
            self.blocks.append(nn.Sequential(*layers))
            self.shortcuts.append(nn.Conv2d(before, width, 1))
            before, doublings = width, doublings + 1
        self.score = nn.Conv2d(before, len(labels), 3, padding=1)
        self.scores = Scores(len(labels), max(1, read.stride >> doublings), loss)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H, W), or coarser with fewer blocks than the level has doublings."""
        x = features[self.level]
        for block, shortcut in zip(self.blocks, self.shortcuts):
            x = F.interpolate(block(x) + shortcut(x), scale_factor=2.0)
        height, width = (-(-int(side) // self.scores.stride) for side in batch.images.shape[2:])
        return SemanticOutput(self.score(x)[..., :height, :width])
