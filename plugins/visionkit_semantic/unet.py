"""U-Net's expanding path (Ronneberger et al., MICCAI 2015, figure 1), on its own encoder or any levels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.border_weights import border_weights
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.norm import NormName
from visionkit.layers.segmentation_losses import LossName, LossOptions
from visionkit.layers.semantic import stack_labels
from visionkit.layers.upsampling import Upsampling, make_upsampling, resize
from visionkit.numbers import Positive, PositiveFloat
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
from visionkit_semantic.parts import Scores, SegmentationHead, initialise, input_size


class UNet(SegmentationHead):
    """From the coarsest level on: enlarge by 2, concatenate the next finer level, two 3x3 convolutions; at last scores.

    Args:
        spec: of the shared features.
        labels: one class a region, background included.
        levels: what it reads, coarsest first, each twice as fine as the one before.
        channels: of the convolutions on each level but the coarsest; ``None``: as many as that level has, which is the
            paper's.
        upsampling: ``conv2x2`` is the paper's transposed convolution of 2x2; or any other way of enlarging.
        narrow: enlarging brings the channels down to those of the level, as the paper has it; else only the
            convolutions behind it do.
        last: channels of one more step, to twice the size, with no level beside it; ``None`` for none.
        kernel: of the convolution that scores.
        margins: ``paper`` where the backbone is ``unet_encoder`` with the margins of the paper: no convolution is
            padded, and levels are cropped to their middle.
        norm: after each 3x3 convolution; the paper has none.
        loss: the name of a loss, or a mapping with its settings.
        border: for cross-entropy, how much more the background counts in narrow gaps between objects: the largest
            weight and the width in pixels (10 and 5 in the paper); ``None`` for no more.

    Raises:
        UserError: levels that are not each twice as fine, as many widths as there are not levels, a last step beyond
            the size of the image, or a border with another loss than cross-entropy.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: Sequence[str] = ("c5", "c4", "c3", "c2", "c1"),
        channels: Sequence[Positive] | None = None,
        upsampling: Upsampling | Literal["conv2x2"] = "conv2x2",
        narrow: bool = True,
        last: Positive | None = None,
        kernel: Literal[1, 3] = 1,
        margins: Literal["same", "paper"] = "same",
        norm: NormName | None = None,
        loss: LossName | LossOptions = "cross_entropy",
        border: tuple[PositiveFloat, PositiveFloat] | None = None,
    ) -> None:
        super().__init__(spec, labels)
        read = [spec[name] for name in levels]
        strides = [level.stride for level in read]
        if any(coarse != 2 * fine for coarse, fine in zip(strides, strides[1:])):  # noqa: RUF007
            raise UserError(f"levels: strides {', '.join(map(str, strides))}; each must be half of the one before")
        widths = [level.channels for level in read[1:]] if channels is None else list(channels)
        if len(widths) != len(read) - 1:
            raise UserError(f"channels: {len(widths)} widths for the {len(read) - 1} levels but the coarsest")
        self.levels, self.margins = tuple(levels), margins
        self.up, self.convs = nn.ModuleList(), nn.ModuleList()
        stride, before = read[-1].stride, read[0].channels
        steps = [(level.channels, width) for level, width in zip(read[1:], widths)]
        if last is not None:
            if stride % 2:
                raise UserError(f"last: '{levels[-1]}' has stride {stride}, and cannot be made twice as fine")
            stride, steps = stride // 2, [*steps, (0, last)]
        for beside, width in steps:
            larger = width if narrow else before
            if upsampling == "conv2x2":
                self.up.append(nn.ConvTranspose2d(before, larger, 2, 2))
            else:
                self.up.append(make_upsampling(upsampling, before, larger))
            first = ConvNormAct(larger + beside, width, norm=norm)
            self.convs.append(nn.Sequential(first, ConvNormAct(width, width, norm=norm)))
            before = width
        self.score = nn.Conv2d(before, len(labels), kernel, padding=kernel // 2)
        initialise(self.convs)
        if margins == "paper":
            for module in self.convs.modules():
                if isinstance(module, nn.Conv2d):
                    module.padding = (0, 0)
        self.scores, self.border = Scores(len(labels), stride, loss), border
        if border is not None and self.scores.loss.name != "cross_entropy":
            raise UserError(f"border: weights of pixels go with cross_entropy, not with {self.scores.loss.name}")

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        """Logits (B, classes, H / stride, W / stride) at the finest level or the last step, rounded up."""
        x = features[self.levels[0]]
        for name, up, convs in itertools.zip_longest(self.levels[1:], self.up, self.convs):
            x = up(x)
            if name is not None:
                beside = features[name]
                if self.margins == "paper":
                    beside = middle(beside, x)
                else:  # sizes were rounded up on the way down
                    x = x[..., : beside.shape[2], : beside.shape[3]]
                x = torch.cat([beside, x], 1)
            x = convs(x)
        height, width = (-(-side // self.scores.stride) for side in input_size(batch))
        return SemanticOutput(self.score(x)[..., :height, :width])

    def losses(self, output: SemanticOutput, batch: Batch[SemanticTarget]) -> dict[str, Mean]:
        """The loss at every labelled pixel, upsampled to the input first; with a border, more in narrow gaps."""
        losses = self.scores.losses(output, batch)
        if self.border is None:
            return losses
        size, (w0, sigma) = input_size(batch), self.border
        labels = stack_labels(batch.targets, size)
        more = torch.stack([border_weights(one, w0=w0, sigma=sigma) for one in labels])
        logits = resize(output.logits.float(), size, self.scores.stride)
        error = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
        plain = losses["segmentation"]
        return {"segmentation": Mean(plain.total + (more * error).sum(), plain.count)}


def middle(x: Tensor, like: Tensor) -> Tensor:
    """The middle of a map, as large as another one."""
    height, width = int(like.shape[2]), int(like.shape[3])
    top, left = (int(x.shape[2]) - height) // 2, (int(x.shape[3]) - width) // 2
    return x[..., top : top + height, left : left + width]
