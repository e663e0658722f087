"""GoogLeNet (Szegedy et al., CVPR 2015), the first network of Inception modules."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.conv import ConvNormAct
from visionkit.model import Backbone
from visionkit.types import FeatureSpec, Level

Form = Literal["paper", "torchvision"]
# Channels of each module: of the 1x1, before and of the 3x3, before and of the 5x5, after the pooling (paper, table 1).
MODULES = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
LEVELS = {
    "c1": ("conv1", Level(64, 2)),
    "c2": ("conv3", Level(192, 4)),
    "c3": ("inception_3b", Level(480, 8)),
    "inception_4a": ("inception_4a", Level(512, 16)),
    "inception_4d": ("inception_4d", Level(528, 16)),
    "c4": ("inception_4e", Level(832, 16)),
    "c5": ("inception_5b", Level(1024, 32)),
}
"""Level -> the layer whose output it is."""


class GoogLeNet(Backbone):
    """Nine modules of four branches side by side.

    Levels are ``c1`` ... ``c5``, each before the pooling to the next, and ``inception_4a`` and ``inception_4d``, which
    the auxiliary classifiers of the paper read. Layers behind the deepest level that is read are not built.

    Args:
        levels: names of the levels that are read; ``None``: all.
        form: ``paper`` has biases, local response norms beside the second pooling and 5x5 kernels; ``torchvision`` has
            batch norms, 3x3 kernels in place of 5x5 and a last pooling of 2x2.
        pixels: what pixels are reduced to: by ImageNet's mean and spread, 0 ... 255 less Caffe's mean (``caffe``), or
            to -1 ... 1 (``signed``, as torchvision's published weights have it).

    Raises:
        UserError: a level that it does not have.
    """

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        form: Form = "paper",
        pixels: Literal["imagenet", "caffe", "signed"] = "imagenet",
    ) -> None:
        super().__init__()
        if levels is not None and (unknown := sorted(set(levels) - set(LEVELS))):
            raise UserError(f"googlenet has no level '{unknown[0]}' (it has: {', '.join(LEVELS)})")
        read = {name: at for name, at in LEVELS.items() if levels is None or name in levels}
        if not read:
            raise UserError(f"levels: none of googlenet is read (it has: {', '.join(LEVELS)})")
        self.spec = FeatureSpec({name: level for name, (_, level) in read.items()})
        self.places = {name: layer for name, (layer, _) in read.items()}
        if pixels == "caffe":
            self.mean, self.std = (122.675 / 255, 116.669 / 255, 104.008 / 255), (1 / 255, 1 / 255, 1 / 255)
        elif pixels == "signed":
            self.mean = self.std = (0.5, 0.5, 0.5)
        self.layers = nn.ModuleDict()
        for name, layer in _layers(form).items():
            self.layers[name] = layer
            if name == list(self.places.values())[-1]:
                break
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up."""
        made: dict[str, Tensor] = {}
        x = images
        for name, layer in self.layers.items():
            x = made[name] = layer(x)
        return {name: made[layer] for name, layer in self.places.items()}


class Inception(nn.Module):
    """Four branches on one map, side by side (paper, figure 2b).

    Args:
        inputs: channels.
        widths: as in :data:`MODULES`.
        form: of the network.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int], form: Form) -> None:
        super().__init__()
        one, before_three, three, before_five, five, pooled = widths
        large = 5 if form == "paper" else 3
        self.branch1 = unit(inputs, one, 1, form)
        self.branch2 = nn.Sequential(unit(inputs, before_three, 1, form), unit(before_three, three, 3, form))
        self.branch3 = nn.Sequential(unit(inputs, before_five, 1, form), unit(before_five, five, large, form))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, pooled, 1, form))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), 1)


class Pool(nn.Module):
    """The greatest of windows, two apart from the upper left corner on, so that sides are halved and rounded up."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        odd = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), value=float("-inf"))
        return F.max_pool2d(odd, self.kernel, 2, ceil_mode=True)


def unit(inputs: int, outputs: int, kernel: int, form: Form, stride: int = 1) -> ConvNormAct:
    """A convolution with ReLU, in torchvision's form with a batch norm of its epsilon."""
    layer = ConvNormAct(inputs, outputs, kernel, stride=stride, norm="batch" if form == "torchvision" else None)
    if isinstance(norm := getattr(layer, "norm", None), nn.BatchNorm2d):
        norm.eps = 0.001
    return layer


def _layers(form: Form) -> dict[str, nn.Module]:
    """Every layer by name, from the image on."""
    local = (lambda: [nn.LocalResponseNorm(5, 1e-4, 0.75)]) if form == "paper" else list
    layers: dict[str, nn.Module] = {
        "conv1": unit(3, 64, 7, form, stride=2),
        "pool1": nn.Sequential(Pool(), *local()),
        "conv2": unit(64, 64, 1, form),
        "conv3": nn.Sequential(unit(64, 192, 3, form), *local()),
        "pool2": Pool(),
    }
    inputs = 192
    for name, widths in MODULES.items():
        if name in ("inception_4a", "inception_5a"):
            layers[f"pool{int(name[10]) - 1}"] = Pool(2 if name == "inception_5a" and form == "torchvision" else 3)
        layers[name] = Inception(inputs, widths, form)
        inputs = widths[0] + widths[2] + widths[4] + widths[5]
    return layers
