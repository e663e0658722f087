"""The stacked hourglass network (Newell et al., ECCV 2016): down to 4 x 4 and up again, several times over."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.model import Backbone
from visionkit.numbers import Count, Positive, Widths
from visionkit.types import FeatureSpec, Level


class StackedHourglass(Backbone):
    """Hourglasses one after the other; each yields its features, and maps that are fed into the next one.

    Levels ``stack1``, ``stack2`` ... are the features of each hourglass, ``maps1`` ... the maps that it makes of them
    by a 1 x 1 convolution: heatmaps, once a head learns them. Both go back into the features by 1 x 1 convolutions
    (section 3.2). Heads should supervise every stack. All levels have stride 4; pixels are used as they are, 0 ... 1.

    With 16 maps, all levels of 1, 2, 4 or 8 stacks have 3,426,448, 6,570,400, 12,858,304 or 25,434,112 parameters.
    The authors' PyTorch version has more: shortcuts that it never uses.

    Args:
        levels: names of the levels that are read (``None``: all); later stacks are not built.
        stacks: how many hourglasses.
        channels: of every stack's features.
        maps: how many maps each stack makes; 0 for none, and heads of their own on the features.
        depth: how many times an hourglass halves its input.

    Raises:
        UserError: a level that there is not, or no level at all.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        stacks: Positive = 2,
        channels: Positive = 256,
        maps: Count = 16,
        depth: Positive = 4,
    ) -> None:
        super().__init__()
        every = {f"stack{i + 1}": Level(channels, 4) for i in range(stacks)}
        every |= {f"maps{i + 1}": Level(maps, 4) for i in range(stacks) if maps}
        self.spec = chosen(every, levels)
        self.count = max(int(name.lstrip("stackmp")) for name in self.spec)
        self.stem = nn.Sequential(
            _conv(3, 64, 7, stride=2),
            Residual(64, 128),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            Residual(128, 128),
            Residual(128, channels),
        )
        self.stacks = nn.ModuleList(Hourglass(channels, depth) for _ in range(self.count))
        self.features = nn.ModuleList(
            nn.Sequential(Residual(channels, channels), _conv(channels, channels, 1)) for _ in range(self.count)
        )
        made = self.count if f"maps{self.count}" in self.spec else self.count - 1
        self.maps = nn.ModuleList(nn.Conv2d(channels, maps, 1) for _ in range(made if maps else 0))
        self.merge_features = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(self.count - 1))
        self.merge_maps = nn.ModuleList(nn.Conv2d(maps, channels, 1) for _ in range(self.count - 1 if maps else 0))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels or maps, H / 4, W / 4), rounded up."""
        made: dict[str, Tensor] = {}
        x = self.stem(images)
        for i, (stack, features) in enumerate(zip(self.stacks, self.features)):
            made[f"stack{i + 1}"] = found = features(stack(x))
            if i < len(self.maps):
                made[f"maps{i + 1}"] = self.maps[i](found)
            if i < self.count - 1:
                x = x + self.merge_features[i](found)
            if i < len(self.merge_maps):
                x = x + self.merge_maps[i](made[f"maps{i + 1}"])
        return {name: made[name] for name in self.spec}


class Hourglass(nn.Module):
    """Down by max pooling, further down inside, and up by repetition; what was there before is added at each size."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.beside = Residual(channels, channels)
        self.down = Residual(channels, channels)
        self.inside = Hourglass(channels, depth - 1) if depth > 1 else Residual(channels, channels)
        self.up = Residual(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(self.inside(self.down(F.max_pool2d(x, 2, 2, ceil_mode=True))))
        return self.beside(x) + F.interpolate(inner, size=x.shape[-2:])


class Residual(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 at half the width, each after batch norm and ReLU (He et al., "Identity mappings", 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, half, 1),
            nn.BatchNorm2d(half), nn.ReLU(inplace=True), nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half), nn.ReLU(inplace=True), nn.Conv2d(half, outputs, 1),
        )  # fmt: skip
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.layers(x)


class CornerHourglass(Backbone):
    """The hourglass of CornerNet (Law & Deng, ECCV 2018, section 3.5): plain residual blocks, strides for pooling.

    Levels ``stack1``, ``stack2`` ... are the features of each hourglass after a 3 x 3 convolution, at stride 4. Two
    stacks are Hourglass-104, one is Hourglass-52. Sizes that are multiples of 128 halve without a rest.

    Args:
        levels: names of the levels that are read (``None``: all); later stacks are not built.
        stacks: how many hourglasses.
        stem: channels after the first convolution.
        channels: at each size, from stride 4 down.
        blocks: residual blocks at each size.
        outputs: channels of every level.

    Raises:
        UserError: a level that there is not, or no level at all; not as many channels as blocks.
    """

    # What the authors say of blue, green and red, in the order of our pixels.
    mean = (0.47026115, 0.44719302, 0.40789654)
    std = (0.27809835, 0.27408164, 0.28863828)

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        stacks: Positive = 2,
        stem: Positive = 128,
        channels: Widths = (256, 256, 384, 384, 384, 512),
        blocks: Widths = (2, 2, 2, 2, 2, 4),
        outputs: Positive = 256,
    ) -> None:
        super().__init__()
        if len(channels) != len(blocks) or len(channels) < 2:
            raise UserError(f"channels and blocks: one for each of two sizes or more, not {len(channels)} "
                            f"and {len(blocks)}")  # fmt: skip
        self.spec = chosen({f"stack{i + 1}": Level(outputs, 4) for i in range(stacks)}, levels)
        count = max(int(name.removeprefix("stack")) for name in self.spec)
        width = channels[0]
        self.stem = nn.Sequential(ConvNormAct(3, stem, 7, stride=2, norm="batch"), Block(stem, width, 2))
        self.stacks = nn.ModuleList(BlockHourglass(channels, blocks) for _ in range(count))
        self.features = nn.ModuleList(ConvNormAct(width, outputs, norm="batch") for _ in range(count))
        self.between = nn.ModuleList(Between(width, outputs) for _ in range(count - 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, outputs, H / 4, W / 4), rounded up."""
        made: dict[str, Tensor] = {}
        x = self.stem(images)
        for i, (stack, features) in enumerate(zip(self.stacks, self.features)):
            made[f"stack{i + 1}"] = found = features(stack(x))
            if i < len(self.between):
                x = self.between[i](x, found)
        return {name: made[name] for name in self.spec}


class BlockHourglass(nn.Module):
    """Down by a block of stride 2, further down inside, and up by repetition; a row of blocks at each size."""

    def __init__(self, channels: tuple[int, ...], blocks: tuple[int, ...]) -> None:
        super().__init__()
        here, below, count = channels[0], channels[1], blocks[0]
        self.beside = row(here, here, count)
        self.down = nn.Sequential(Block(here, below, 2), *(Block(below, below) for _ in range(count - 1)))
        deeper = len(channels) > 2
        self.inside = BlockHourglass(channels[1:], blocks[1:]) if deeper else row(below, below, blocks[1])
        self.up = nn.Sequential(*(Block(below, below) for _ in range(count - 1)), Block(below, here))

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(x) + F.interpolate(self.up(self.inside(self.down(x))), size=x.shape[-2:])


class Between(nn.Module):
    """What an hourglass was given, joined with what it made of it, for the next one."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.given = ConvNormAct(channels, channels, 1, norm="batch", act=False)
        self.made = ConvNormAct(features, channels, 1, norm="batch", act=False)
        self.block = Block(channels, channels)

    def forward(self, given: Tensor, made: Tensor) -> Tensor:
        return self.block(F.relu(self.given(given) + self.made(made)))


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = ConvNormAct(inputs, outputs, stride=stride, norm="batch")
        self.second = ConvNormAct(outputs, outputs, norm="batch", act=False)
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else ConvNormAct(inputs, outputs, 1, stride=stride, norm="batch", act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


def row(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """So many blocks one after the other."""
    return nn.Sequential(Block(inputs, outputs), *(Block(outputs, outputs) for _ in range(count - 1)))


def chosen(every: dict[str, Level], levels: Collection[str] | None) -> FeatureSpec:
    """The spec of those levels that are read."""
    if levels is not None and (unknown := sorted(set(levels) - set(every))):
        raise UserError(f"the hourglass has no level '{unknown[0]}' (it has: {', '.join(every)})")
    wanted = {name: level for name, level in every.items() if levels is None or name in levels}
    if not wanted:
        raise UserError(f"no level of the hourglass is read (it has: {', '.join(every) or 'none'})")
    return FeatureSpec(wanted)


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution that has a bias although batch norm follows, as the authors' have it; then ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
