"""What the semantic heads share: the last layers, their loss, and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.regions import continue_edges, image_regions
from visionkit.layers.segmentation_losses import LossName, LossOptions, SegmentationLoss
from visionkit.layers.semantic import semantic_predictions, stack_labels
from visionkit.layers.upsampling import Alignment, resize
from visionkit.model import Head
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    Mean,
    SemanticOutput,
    SemanticPrediction,
    SemanticTarget,
)


class ScoreBranch(nn.Sequential):
    """A 3x3 convolution with normalisation and ReLU, dropout, and the scores of the classes."""

    def __init__(
        self, inputs: int, hidden: int, classes: int, norm: NormName | None = "batch", dropout: float = 0.1
    ) -> None:
        super().__init__(ConvNormAct(inputs, hidden, norm=norm), nn.Dropout(dropout), nn.Conv2d(hidden, classes, 1))


def input_size(batch: Batch) -> tuple[int, int]:
    """(height, width) of the images of a batch."""
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


class Scores(nn.Module):
    """How scores get to the pixels of the input, and what is learnt there.

    With ``align="cells"`` scores stay as coarse as they are and are enlarged where they are needed, band by band.
    The other alignments depend on the size of the whole map, so that scores are enlarged at once.

    Args:
        classes: scored.
        stride: input pixels per cell of the scores.
        loss: see :class:`~visionkit.layers.segmentation_losses.SegmentationLoss`.
        align: how scores lie on the input, see :data:`~visionkit.layers.upsampling.Alignment`.
    """

    def __init__(
        self, classes: int, stride: int, loss: LossName | LossOptions = "cross_entropy", align: Alignment = "cells"
    ) -> None:
        super().__init__()
        self.loss = SegmentationLoss(classes, loss)
        self.align, self.coarse = align, stride
        self.stride = stride if align == "cells" else 1
        """Input pixels per cell of what :meth:`forward` returns."""

    def forward(self, scores: Tensor, batch: Batch) -> Tensor:
        """Scores (B, classes, h, w) as the head's output has them.

        On what images were padded with, the scores at their edges are repeated, so that the enlarged scores of an image
        are the same in any batch.
        """
        scores = continue_edges(scores, image_regions(batch.info, self.coarse, scores))
        return scores if self.align == "cells" else resize(scores, input_size(batch), self.coarse, self.align)

    def losses(
        self,
        output: SemanticOutput,
        batch: Batch[SemanticTarget],
        auxiliary: tuple[Tensor, int] | None = None,
        weight: float = 0.4,
    ) -> dict[str, Mean]:
        """The loss at every labelled pixel of the input, with ``weight`` times that of the auxiliary scores.

        Args:
            auxiliary: scores (B, classes, h, w) and input pixels per cell of them.
        """
        main = self._loss(output.logits, batch, self.stride, "cells")
        if auxiliary is None:
            return {"segmentation": main}
        scores, stride = auxiliary
        extra = self._loss(scores, batch, stride, self.align)
        return {"segmentation": Mean(main.total + weight * extra.value() * main.count, main.count)}

    def _loss(self, logits: Tensor, batch: Batch[SemanticTarget], stride: int, align: Alignment) -> Mean:
        size = input_size(batch)
        if tuple(logits.shape[-2:]) != size:
            logits = resize(logits, size, stride, align)
        return self.loss(logits, stack_labels(batch.targets, size))  # type: ignore[no-any-return]


class SegmentationHead(Head):
    """A head that scores the classes of every pixel, and sets ``scores`` to what brings them there."""

    task = "semantic"
    makes = SemanticPrediction
    output: ClassVar[type[SemanticOutput]] = SemanticOutput
    loss_names = ("segmentation",)
    evaluators = ("semantic",)
    exportable = True

    scores: Scores

    def losses(self, output: Any, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled pixel, upsampled to the input first."""
        return self.scores.losses(output, batch)

    def predict(self, output: SemanticOutput, batch: Batch) -> list[SemanticPrediction]:
        """A label map at the original size, an image."""
        return semantic_predictions(output.logits, batch, stride=self.scores.stride)


@dataclass
class DeepSemanticOutput(SemanticOutput):
    """Scores, and the map that an auxiliary branch learns from.

    Attributes:
        auxiliary: (B, channels, h, w) features, or ``None`` where there is no such branch. They are scored in
            ``losses`` alone: a prediction does not pay for it.
    """

    auxiliary: Tensor | None = None


class AuxiliaryHead(SegmentationHead):
    """One that learns from the scores of another level too."""

    output = DeepSemanticOutput

    def learn_beside(
        self,
        spec: FeatureSpec,
        level: str | None,
        weight: float,
        *,
        hidden: int | None = None,
        norm: NormName | None = "batch",
        dropout: float = 0.1,
    ) -> None:
        """Make the branch that scores ``level``, one more of ``levels``; ``None`` for no branch.

        Args:
            spec: of the shared features.
            weight: of its loss.
            hidden: channels before its scores; ``None`` for a quarter of the level's.
            norm, dropout: see :class:`ScoreBranch`.
        """
        self.auxiliary_level, self.auxiliary_weight = level, weight
        self.auxiliary: ScoreBranch | None = None
        if level is not None:
            read = spec[level]
            self.levels, self.auxiliary_stride = (*self.levels, level), read.stride
            width = read.channels // 4 if hidden is None else hidden
            self.auxiliary = ScoreBranch(read.channels, width, len(self.labels), norm, dropout)

    def beside(self, features: Features) -> Tensor | None:
        """What the branch reads."""
        return None if self.auxiliary_level is None else features[self.auxiliary_level]

    def losses(self, output: DeepSemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled pixel, upsampled to the input first, and that of the auxiliary scores."""
        if self.auxiliary is None:
            return super().losses(output, batch)
        side = (self.auxiliary(output.auxiliary), self.auxiliary_stride)
        return self.scores.losses(output, batch, side, self.auxiliary_weight)


def initialise(module: nn.Module) -> None:
    """He's initialisation of every convolution (He et al., ICCV 2015), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
