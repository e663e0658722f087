"""DeepLab-LargeFOV (Chen et al., ICLR 2015): one dilated convolution with a large field of view, and scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.layers.aspp import rates_at
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.semantic import stack_labels
from visionkit.layers.upsampling import Alignment
from visionkit.numbers import FractionBelowOne, OnlyWith, Positive
from visionkit.types import (
    IGNORE,
    Batch,
    Features,
    FeatureSpec,
    LabelSet,
    Mean,
    SemanticOutput,
    SemanticTarget,
)
from visionkit_semantic.parts import Scores, SegmentationHead, input_size


class DeepLabLargeFOV(SegmentationHead):
    """A dilated 3x3 convolution, a 1x1 one and scores (section 4.1).

    On the backbone ``vgg16`` in the form ``largefov`` the first two are its ``fc6`` and ``fc7``: read level ``fc7`` and
    leave ``hidden`` out.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        level: what it reads; the paper's has stride 8.
        hidden: channels of the two convolutions before the scores; ``None`` for none.
        rate: dilation of the first at stride 8.
        dropout: after each of the two.
        learn_at: ``cells`` compares scores with the label at each cell, as the paper does; ``pixels`` enlarges them
            to the input first.
        loss: the name of a loss, or a mapping with its settings.
        align: how scores lie on the input.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        hidden: Positive | None = 1024,
        rate: Annotated[Positive, OnlyWith("hidden")] = 12,
        dropout: Annotated[FractionBelowOne, OnlyWith("hidden")] = 0.5,
        learn_at: Literal["cells", "pixels"] = "cells",
        loss: LossName | LossOptions = "cross_entropy",
        align: Alignment = "cells",
    ) -> None:
        super().__init__(spec, labels)
        read = spec[level]
        self.level, self.levels, self.learn_at = level, (level,), learn_at
        self.fc = nn.Sequential()
        if hidden is not None:
            dilation = rates_at(read.stride, (rate,), of=8)[0]
            self.fc.extend([ConvNormAct(read.channels, hidden, dilation=dilation), nn.Dropout(dropout)])
            self.fc.extend([ConvNormAct(hidden, hidden, 1), nn.Dropout(dropout)])
        self.score = nn.Conv2d(hidden or read.channels, len(labels), 1)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        self.scores = Scores(len(labels), read.stride, loss, align)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride), rounded up."""
        return SemanticOutput(self.scores(self.score(self.fc(features[self.level])), batch))

    def losses(self, output: SemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled cell, or pixel."""
        if self.learn_at == "pixels":
            return self.scores.losses(output, batch)
        labels = labels_at_cells(stack_labels(batch.targets, input_size(batch)), self.scores.coarse, self.scores.align)
        logits = output.logits
        if self.scores.stride == 1:  # enlarged with corners aligned: every stride-th pixel is a cell again
            logits = logits[..., :: self.scores.coarse, :: self.scores.coarse]
        return {"segmentation": self.scores.loss(logits, labels)}


def labels_at_cells(labels: Tensor, stride: int, align: Alignment = "cells") -> Tensor:
    """Labels (B, H, W) at the centre of every cell of ``stride`` pixels, (B, H / stride, W / stride) rounded up."""
    first = stride // 2 if align == "cells" else 0
    height, width = (-(-int(side) // stride) for side in labels.shape[1:])
    labels = labels[:, first::stride, first::stride]
    return F.pad(labels, (0, width - labels.shape[2], 0, height - labels.shape[1]), value=IGNORE)
