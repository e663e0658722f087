"""A class for a whole image: what backbones are trained with before they serve anything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.model import Head
from visionkit.numbers import FractionBelowOne, OnlyWith, PositiveFloat
from visionkit.types import (
    Batch,
    ClassPrediction,
    ClassTarget,
    Features,
    FeatureSpec,
    ImageInfo,
    LabelSet,
    Mean,
    Output,
)

Pooling = Literal["windows", "cells"]


@dataclass
class ClassOutput(Output):
    """Scores of the classes, and what auxiliary classifiers learn from.

    Attributes:
        logits: (B, classes).
        auxiliary: a map (B, channels, h, w) for each auxiliary classifier. They are scored in ``losses`` alone: a
            prediction does not pay for it.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()


class Classification(Head):
    """The mean of a level over the image, dropout and one linear layer; beside it GoogLeNet's auxiliary classifiers on
    other levels (Szegedy et al., CVPR 2015, section 5).

    What a batch pads an image with does not count for the mean.

    Args:
        spec: of the shared features.
        labels: the classes.
        level: what it reads.
        dropout: before the linear layer.
        auxiliary: level -> weight of the loss of an auxiliary classifier on it; the paper has 0.3 for each.
        auxiliary_pool: ``windows`` of 5x5 cells, three apart, as in the paper, which must give 4x4 (224 pixels at
            stride 16); ``cells``: 4x4 parts of the image, whatever its size, as torchvision has it.
        auxiliary_dropout: in the auxiliary classifiers.
        auxiliary_norm: after their convolutions; the paper has none.
        label_smoothing: this much of the truth is spread over all classes (Szegedy et al., CVPR 2016, section 7).

    Raises:
        UserError: a level that is not there, or a smoothing outside of 0 ... 1.
    """

    task = "class"
    makes = ClassPrediction
    output = ClassOutput
    loss_names = ("classification",)
    evaluators = ("classification",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        level: str = "c5",
        dropout: FractionBelowOne = 0.0,
        auxiliary: Mapping[str, PositiveFloat] | None = None,
        auxiliary_pool: Pooling = "cells",
        auxiliary_dropout: Annotated[FractionBelowOne, OnlyWith("auxiliary")] = 0.7,
        auxiliary_norm: NormName | None = None,
        label_smoothing: FractionBelowOne = 0.0,
    ) -> None:
        super().__init__(spec, labels)
        if not 0 <= label_smoothing <= 1:
            raise UserError(f"label_smoothing: {label_smoothing} is not between 0 and 1")
        self.weights, self.smoothing, self.pooling = dict(auxiliary or {}), label_smoothing, auxiliary_pool
        self.level, self.levels = level, (level, *self.weights)
        self.strides = {name: spec[name].stride for name in self.levels}
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(spec[level].channels, len(labels))
        self.auxiliary = nn.ModuleList(
            Auxiliary(spec[name].channels, len(labels), auxiliary_dropout, auxiliary_norm) for name in self.weights
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> ClassOutput:
        """Logits (B, classes), and the maps of the auxiliary levels."""
        mean = _of_images(features[self.level], self.strides[self.level], batch.info, lambda x: x.mean((2, 3)))
        return ClassOutput(self.linear(self.dropout(mean)), tuple(features[name] for name in self.weights))

    def losses(self, output: ClassOutput, batch: Batch[ClassTarget]) -> dict[str, Tensor | Mean]:
        """Cross-entropy of the images that show one of the classes."""
        labels = torch.stack([target.label for target in batch.targets]).to(output.logits.device)
        total = self._cost(output.logits, labels)
        for score, x, (name, weight) in zip(self.auxiliary, output.auxiliary, self.weights.items()):
            pooled = _of_images(x, self.strides[name], batch.info, self._cells)
            total = total + weight * self._cost(score(pooled), labels)
        return {"classification": Mean(total, (labels >= 0).sum())}

    def _cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="sum", label_smoothing=self.smoothing)

    def _cells(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, channels, 4, 4)."""
        if self.pooling == "cells":
            return F.adaptive_avg_pool2d(x, 4)
        height, width = x.shape[2:]
        if not (14 <= height <= 16 and 14 <= width <= 16):
            raise UserError(f"auxiliary_pool: windows of 5x5 cells give 4x4 on maps of 14 to 16 cells a side, not on "
                            f"{height}x{width}; 'cells' does on all")  # fmt: skip
        return F.avg_pool2d(x, 5, 3)

    def predict(self, output: ClassOutput, batch: Batch) -> list[ClassPrediction]:
        return [ClassPrediction(p) for p in output.logits.float().softmax(1).cpu()]


class Auxiliary(nn.Module):
    """A classifier on 4x4 cells of a map: a 1x1 convolution of 128 channels and two linear layers.

    Args:
        inputs: channels.
        classes: scored.
        dropout: before the last layer.
        norm: after the convolution; a batch norm has the epsilon of Inception's, 0.001.
    """

    def __init__(self, inputs: int, classes: int, dropout: float, norm: NormName | None) -> None:
        super().__init__()
        self.conv, self.hidden = ConvNormAct(inputs, 128, 1, norm=norm), nn.Linear(2048, 1024)
        self.dropout, self.score = nn.Dropout(dropout), nn.Linear(1024, classes)
        if isinstance(layer := getattr(self.conv, "norm", None), nn.BatchNorm2d):
            layer.eps = 0.001

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, 4, 4) to (B, classes)."""
        return self.score(self.dropout(F.relu(self.hidden(self.conv(x).flatten(1)))))  # type: ignore[no-any-return]


def _of_images(x: Tensor, stride: int, info: tuple[ImageInfo, ...], pool: Callable[[Tensor], Tensor]) -> Tensor:
    """``pool`` of the cells (B, channels, h, w) that lie on each image, not on what it was padded with."""
    sizes = [(-(-image.size[0] // stride), -(-image.size[1] // stride)) for image in info]
    if all(size == tuple(x.shape[2:]) for size in sizes):
        return pool(x)
    return torch.cat([pool(x[i : i + 1, :, :height, :width]) for i, (height, width) in enumerate(sizes)])
