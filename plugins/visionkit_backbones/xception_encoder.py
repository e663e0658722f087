"""The encoder of Keras' example of image segmentation: a small net in the manner of Xception."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.separable import SeparableConv
from visionkit.model import Backbone
from visionkit.numbers import Positive, Widths
from visionkit.types import FeatureSpec, Level


class XceptionEncoder(Backbone):
    """A convolution of stride 2, then blocks of two separable convolutions and max pooling, with a shortcut each.

    As F. Chollet's example on keras.io has it (2019). Levels are ``c1`` ... ``c4``, of stride 2 ... 16.

    Args:
        levels: names of the levels that are read; ``None``: all.
        width: channels of the first level.
        widths: channels of the blocks.
        padding: where zeros stand before strides: ``tensorflow``, as there, at the right and bottom for even sides;
            ``symmetric`` at both.

    Raises:
        UserError: a level that there is not.
    """

    mean = (0.0, 0.0, 0.0)
    std = (1 / 255, 1 / 255, 1 / 255)

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        width: Positive = 32,
        widths: Widths = (64, 128, 256),
        padding: Literal["tensorflow", "symmetric"] = "tensorflow",
    ) -> None:
        super().__init__()
        every = {f"c{i + 1}": Level(channels, 2 ** (i + 1)) for i, channels in enumerate((width, *widths))}
        if levels is not None and (unknown := sorted(set(levels) - set(every))):
            raise UserError(f"xception_encoder has no level '{unknown[0]}' (it has: {', '.join(every)})")
        self.spec = FeatureSpec({name: level for name, level in every.items() if levels is None or name in levels})
        self.padding = padding
        self.entry = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width, 1e-3, 0.01))
        self.blocks, self.shortcuts = nn.ModuleList(), nn.ModuleList()
        for before, after in list(zip((width, *widths), widths))[: int(list(self.spec)[-1][1:]) - 1]:
            layers: list[nn.Module] = []
            for inputs in (before, after):
                layers += [nn.ReLU(), SeparableConv(inputs, after), nn.BatchNorm2d(after, 1e-3, 0.01)]
            self.blocks.append(nn.Sequential(*layers))
            self.shortcuts.append(nn.Conv2d(before, after, 1, 2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up."""
        x = self.entry(self._padded(images, 0.0)).relu()
        made = {"c1": x}
        for i, (block, shortcut) in enumerate(zip(self.blocks, self.shortcuts)):
            pooled = F.max_pool2d(self._padded(block(x), float("-inf")), 3, 2)
            x = made[f"c{i + 2}"] = pooled + shortcut(x)
        return {name: made[name] for name in self.spec}

    def _padded(self, x: Tensor, value: float) -> Tensor:
        """What a 3x3 window of stride 2 needs beyond the borders."""
        ends = [1 if self.padding == "symmetric" or side % 2 else 0 for side in x.shape[2:]]
        return F.pad(x, (ends[1], 1, ends[0], 1), value=value)
