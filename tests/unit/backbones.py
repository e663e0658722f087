"""Small backbones for tests of heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.model import Backbone
from visionkit.types import FeatureSpec, Level


class Levels(Backbone):
    """One convolution of the image, averaged to the levels of a pyramid that are all as wide."""

    def __init__(self, spec: FeatureSpec, kernel: int = 1) -> None:
        super().__init__()
        self.spec = spec
        (width,) = {level.channels for level in spec.values()}
        self.stem = nn.Conv2d(3, width, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)
        # Rounded up, as a network with padded strides does.
        return {name: F.avg_pool2d(x, level.stride, ceil_mode=True) for name, level in self.spec.items()}


class Small(Backbone):
    """The image itself, made small."""

    spec = FeatureSpec({"p2": Level(3, 4), "p3": Level(3, 8)})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: F.avg_pool2d(images, level.stride) for name, level in self.spec.items()}
