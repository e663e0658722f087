"""Aligned Xception, the backbone of DeepLabv3+ (Chen et al., ECCV 2018, section 3.3, figure 4)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.separable import SeparableConv
from visionkit.model import Backbone
from visionkit.numbers import Positive
from visionkit.types import FeatureSpec, Level


class XceptionBlock(nn.Module):
    """Three separable convolutions, each after a ReLU, and a shortcut.

    Args:
        inputs: channels.
        widths: channels after each convolution.
        stride: of the last one.
        dilation: of all but the last one.
        last_dilation: of the last one; ``None``: the same as ``dilation``.
        activated: the shortcut starts behind the first ReLU, not before it.
        shortcut: whether there is one at all; needless where only :meth:`start` is used.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        last_dilation: int | None = None,
        activated: bool = False,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.activated = activated
        self.convs = nn.ModuleList()
        for i, (before, after) in enumerate(zip((inputs, *widths), widths)):
            step, rate = (stride, last_dilation or dilation) if i == len(widths) - 1 else (1, dilation)
            self.convs.append(SeparableConv(before, after, stride=step, dilation=rate, norm="batch", between="norm"))
        same = stride == 1 and inputs == widths[-1]
        self.shortcut = (
            None if same or not shortcut else ConvNormAct(inputs, widths[-1], 1, stride=stride, norm="batch", act=False)
        )

    def start(self, x: Tensor) -> Tensor:
        """The output of the second convolution: as fine as ``x``, and as wide as the block."""
        return self.convs[1](self.convs[0](x.relu()).relu())  # type: ignore[no-any-return]

    def finish(self, x: Tensor, second: Tensor) -> Tensor:
        """The output of the block from its input and that of its second convolution."""
        beside = x.relu() if self.activated else x
        beside = beside if self.shortcut is None else self.shortcut(beside)
        return beside + self.convs[2](second.relu())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.start(x))


class AlignedXception(Backbone):
    """Entry of a stem and three blocks, a middle of equal blocks, and an exit; all pooling by strides.

    Levels: ``c1`` (the stem, 64 channels), ``c2`` (see ``fine``), ``c3`` (256), ``c4`` (728, after the middle), ``c5``
    (2048).

    Args:
        levels: names of the levels that are read; ``None``: all.
        output_stride: 8, 16 or 32; deeper strides become dilations.
        middle: blocks of the middle: 16 for Xception-65, 8 for Xception-41.
        fine: where ``c2`` is taken: ``block2`` is the second convolution of the second block (256 channels), as the
            authors have it; ``block1`` the output of the first (128 channels), as pytorch-deeplab-xception has it.
        activated_shortcut: shortcuts and levels are taken behind a ReLU, as in the weights of pytorch-deeplab-xception.
            Where strides become dilations, the third convolution of the last block is not dilated there either.
        exit_act: whether a ReLU stands between the two halves of the last separable convolutions, as the authors have
            it; otherwise one stands before the first of them.

    Raises:
        UserError: an output stride that is none of these, or a level that there is not.
    """

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        output_stride: Literal[8, 16, 32] = 16,
        middle: Positive = 16,
        fine: Literal["block1", "block2"] = "block2",
        activated_shortcut: bool = False,
        exit_act: bool = True,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UserError(f"output_stride: {output_stride} is none of 8, 16, 32")
        channels = {"c1": 64, "c2": 256 if fine == "block2" else 128, "c3": 256, "c4": 728, "c5": 2048}
        if levels is not None and (unknown := sorted(set(levels) - set(channels))):
            raise UserError(f"aligned_xception has no level '{unknown[0]}' (it has: {', '.join(channels)})")
        names = [name for name in channels if levels is None or name in levels]
        strides = {name: min(2 ** int(name[1:]), output_stride) for name in channels}
        self.spec = FeatureSpec({name: Level(channels[name], strides[name]) for name in names})
        self.fine, self.activated, self.exit_act = fine, activated_shortcut, exit_act
        self.depth = int(names[-1][1:])

        fourth, fifth = strides["c4"] // strides["c3"], strides["c5"] // strides["c4"]
        middle_rate = 2 // fourth
        exit_rate = middle_rate * 2 // fifth
        self.stem = nn.Sequential(ConvNormAct(3, 32, stride=2, norm="batch"), ConvNormAct(32, 64, norm="batch"))
        self.blocks = nn.ModuleList()
        if self.depth >= 2:
            self._add(64, (128,) * 3, 2, 1)
        if self.depth >= 3:
            self._add(128, (256,) * 3, 2, 1)
        elif self.depth == 2 and fine == "block2":
            self._add(128, (256,) * 2, 1, 1, shortcut=False)  # only the start of this block is read
        if self.depth >= 4:
            self._add(256, (728,) * 3, fourth, 1)
            for _ in range(middle):
                self._add(728, (728,) * 3, 1, middle_rate)
        self.exit = nn.Sequential()
        if self.depth >= 5:
            self._add(728, (728, 1024, 1024), fifth, middle_rate, last_dilation=1 if activated_shortcut else None)
            between = "norm_act" if exit_act else "norm"
            for before, after in ((1024, 1536), (1536, 1536), (1536, 2048)):
                self.exit.append(
                    SeparableConv(before, after, dilation=exit_rate, norm="batch", between=between, act=True)
                )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _add(self, inputs: int, widths: tuple[int, ...], stride: int, dilation: int, **options: Any) -> None:
        self.blocks.append(
            XceptionBlock(inputs, widths, stride=stride, dilation=dilation, activated=self.activated, **options)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up."""
        made: dict[str, Tensor] = {}
        x = made["c1"] = self.stem(images)
        last = len(self.blocks) - (self.depth >= 5)
        for i, block in enumerate(self.blocks):
            if i == 1 and self.fine == "block2":
                made["c2"] = block.start(x)  # type: ignore[operator]
                if self.depth == 2:
                    break
                x = block.finish(x, made["c2"])  # type: ignore[operator]
            else:
                x = block(x)
            if i == 0 and self.fine == "block1":
                made["c2"] = x
            elif i == 1:
                made["c3"] = x
            elif i == last - 1:
                made["c4"] = x
        if self.activated:
            made = {name: level.relu() for name, level in made.items()}
        if self.depth >= 5:
            made["c5"] = self.exit(x if self.exit_act else x.relu())
        return {name: made[name] for name in self.spec}
