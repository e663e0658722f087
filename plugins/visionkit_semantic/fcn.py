"""Fully convolutional networks (Long et al., CVPR 2015): scores on one or more levels, enlarged and added."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.norm import NormName
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.upsampling import bilinear_deconv
from visionkit.numbers import FractionBelowOne, OnlyWith, Positive, PositiveFloat
from visionkit.types import Batch, Features, FeatureSpec, LabelSet
from visionkit_semantic.parts import AuxiliaryHead, DeepSemanticOutput, ScoreBranch, Scores, input_size


class FCN(AuxiliaryHead):
    """A 1x1 convolution scores the classes on each level; coarse scores are enlarged by bilinear kernels, cropped to
    the finer ones and added to them (figure 3).

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        levels: what it reads, coarsest first: one for FCN-32s, two for 16s, three for 8s on VGG16.
        scales: what the features of each level are multiplied by; the at-once form has 1, 0.01, 0.0001.
        hidden: channels of a 3x3 convolution with a norm before the scores of the coarsest level; torchvision's models
            have it, the paper has not.
        norm: after that convolution.
        dropout: after that convolution.
        enlarge: ``transposed``: transposed convolutions that start as bilinear kernels, up to the pixels of the input;
            ``bilinear``: the same without parameters, and scores stay at the stride of the finest level.
        learn_kernels: whether transposed convolutions between levels are trained; the last one never is. The paper
            says so, but in the published models none is.
        margins: ``paper`` where the backbone has the 100 zeros of the paper around the image: levels are then cropped
            to where they lie on each other.
        auxiliary: a level whose scores are learnt beside; ``None`` for none.
        auxiliary_weight: of their loss.
        loss: the name of a loss, or a mapping with its settings.

    Raises:
        UserError: levels that do not get finer by factors of two or more, as many scales as there are not levels,
            or margins without transposed convolutions.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: Sequence[str] = ("c5", "c4", "c3"),
        scales: Sequence[PositiveFloat] | None = None,
        hidden: Positive | None = None,
        norm: Annotated[NormName | None, OnlyWith("hidden", "auxiliary")] = "batch",
        dropout: Annotated[FractionBelowOne, OnlyWith("hidden", "auxiliary")] = 0.1,
        enlarge: Literal["transposed", "bilinear"] = "transposed",
        learn_kernels: Annotated[bool, OnlyWith(enlarge="transposed")] = False,
        margins: Literal["same", "paper"] = "same",
        auxiliary: str | None = None,
        auxiliary_weight: Annotated[PositiveFloat, OnlyWith("auxiliary")] = 0.5,
        loss: LossName | LossOptions = "cross_entropy",
    ) -> None:
        super().__init__(spec, labels)
        classes, read = len(labels), [spec[name] for name in levels]
        self.names, self.levels = tuple(levels), tuple(levels)
        self.factors = scales or [1.0] * len(read)
        if len(self.factors) != len(read):
            raise UserError(f"scales: {len(self.factors)} factors for {len(read)} levels")
        if margins == "paper" and enlarge == "bilinear":
            raise UserError("margins: only transposed convolutions bring levels with the margins of the paper together")
        strides = [level.stride for level in read]
        if any(coarse % fine or coarse <= fine for coarse, fine in itertools.pairwise(strides)):
            raise UserError(f"levels: their strides {', '.join(map(str, strides))} do not get finer by whole factors")
        self.strides, self.offsets = strides, crop_offsets(strides, margins)

        self.score = nn.ModuleList(nn.Conv2d(level.channels, classes, 1) for level in read)
        if hidden is not None:
            self.score[0] = ScoreBranch(read[0].channels, hidden, classes, norm, dropout)
        elif margins == "paper":
            for layer in self.score:
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.learn_beside(spec, auxiliary, auxiliary_weight, norm=norm, dropout=dropout)

        self.enlarge = enlarge
        self.kernels = nn.ModuleList()
        if enlarge == "transposed":
            for coarse, fine in zip(strides, [*strides[1:], 1]):
                kernel = bilinear_deconv(classes, coarse // fine)
                kernel.weight.requires_grad_(learn_kernels and fine > 1)
                self.kernels.append(kernel)
        self.scores = Scores(classes, 1 if enlarge == "transposed" else strides[-1], loss)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> DeepSemanticOutput:
        """Logits (B, classes, H, W), or at the stride of the finest level where there are no transposed
        convolutions."""
        parts = [layer(features[name] * by) for layer, name, by in zip(self.score, self.names, self.factors)]
        total = parts[0]
        for i, part in enumerate(parts[1:]):
            total, offset = self._larger(i, total), self.offsets[i]
            total, part = (
                total[..., max(-offset, 0) :, max(-offset, 0) :],
                part[..., max(offset, 0) :, max(offset, 0) :],
            )
            height, width = (min(total.shape[axis], part.shape[axis]) for axis in (2, 3))
            total = total[..., :height, :width] + part[..., :height, :width]
        if self.enlarge == "transposed":
            offset, (height, width) = -self.offsets[-1], input_size(batch)
            total = self.kernels[-1](total)[..., offset : offset + height, offset : offset + width]
        return DeepSemanticOutput(total, self.beside(features))

    def _larger(self, i: int, x: Tensor) -> Tensor:
        """Scores of level ``i`` with the cells of the next one, and half a kernel more at each side."""
        if self.enlarge == "transposed":
            return self.kernels[i](x)  # type: ignore[no-any-return]
        factor = self.strides[i] // self.strides[i + 1]
        x = F.interpolate(F.pad(x, (1, 1, 1, 1), mode="replicate"), scale_factor=factor, mode="bilinear")
        half = factor // 2
        return x[..., half : x.shape[2] - half, half : x.shape[3] - half]


def crop_offsets(strides: Sequence[int], margins: str) -> list[int]:
    """How many cells to crop where scores, enlarged by a transposed convolution, meet the next finer level, and at last
    the input: of the finer level if positive, of the enlarged scores if negative.

    With the margins of the paper the first convolution adds 99 pixels at each side, and the coarsest level, behind a
    7x7 convolution without padding, begins three cells later. For VGG16 that gives the paper's 19 (32s), 5 and 27
    (16s), 5, 9 and 31 (8s), the last of each with a minus.

    Args:
        strides: of the levels, coarsest first.
        margins: ``same`` or ``paper``.
    """
    # Where the centre of the first cell of each level lies, in pixels from the centre of the first pixel.
    starts = [(stride - 1) / 2 - (99 if margins == "paper" else 0) for stride in strides]
    if margins == "paper":
        starts[0] += 3 * strides[0]
    offsets, start = [], starts[0]
    for coarse, fine, other in zip(strides, [*strides[1:], 1], [*starts[1:], 0.0]):
        start -= coarse - fine / 2  # the first of 2 f cells of a kernel lies f - 1/2 of them before its centre
        offsets.append(round((start - other) / fine))
        start = max(start, other)
    return offsets
