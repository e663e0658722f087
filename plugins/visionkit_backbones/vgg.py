"""VGG16 (Simonyan & Zisserman, ICLR 2015) in the forms that semantic segmentation gave it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model import Backbone
from visionkit.model.importing import read_state
from visionkit.numbers import FractionBelowOne
from visionkit.types import FeatureSpec, Level

Form = Literal["plain", "fcn", "largefov", "dilated"]
WIDTHS = (64, 128, 256, 512, 512)
CONVS = (2, 2, 3, 3, 3)
CAFFE = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)
# Positions of the convolutions of each block in torchvision's list of layers.
TORCHVISION = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class VGG16(Backbone):
    """Five blocks of 3x3 convolutions, each with a pooling after it, and the first two fully connected layers as
    convolutions.

    Levels are ``c1`` ... ``c5``, behind the poolings, and ``fc7``, but in the plain form.

    - ``plain``: strides to 32, no fully connected layers.
    - ``fcn``: ``fc6`` is a 7x7 convolution (Long et al., CVPR 2015).
    - ``largefov``: strides to 8; ``fc6`` is a 3x3 convolution of 1024 channels with dilation 12 (Chen et al., ICLR
      2015, section 4.1); poolings are 3x3.
    - ``dilated``: strides to 8, without the last two poolings; ``fc6`` has dilation 4 (Yu & Koltun, ICLR 2016).

    Args:
        levels: names of the levels that are read; ``None``: all.
        form: one of these.
        margins: ``same`` keeps the size in every convolution. ``paper`` is, for ``fcn``, 100 zeros around the image and
            none at ``fc6``, so that levels overlap the image (the head ``fcn`` crops them); for ``dilated``, the image
            mirrored by 186 pixels and no zeros anywhere, which only ``fc7`` fits the image after.
        dropout: after ``fc6`` and ``fc7``.
        pretrained: a file with torchvision's VGG16; its fully connected layers are made convolutions.
        pixels: ``imagenet`` for the mean and spread of ImageNet, ``caffe`` for values 0 ... 255 less Caffe's mean.

    Raises:
        UserError: a level that the form has not, margins that it has not, weights of another model.
    """

    def __init__(
        self,
        *,
        levels: Collection[str] | None = None,
        form: Form = "plain",
        margins: Literal["same", "paper"] = "same",
        dropout: FractionBelowOne = 0.5,
        pretrained: str | None = None,
        pixels: Literal["imagenet", "caffe"] = "imagenet",
    ) -> None:
        super().__init__()
        if margins == "paper" and form not in ("fcn", "dilated"):
            raise UserError(f"margins: the form '{form}' has none of its own; 'fcn' and 'dilated' have")
        self.form, self.margins = form, margins
        every = _levels(form, margins)
        if levels is not None and (unknown := sorted(set(levels) - set(every))):
            raise UserError(f"vgg16 ({form}) has no level '{unknown[0]}' (it has: {', '.join(every)})")
        self.spec = FeatureSpec({name: level for name, level in every.items() if levels is None or name in levels})
        if pixels == "caffe":
            self.mean, self.std = CAFFE, (1 / 255, 1 / 255, 1 / 255)

        deepest = list(self.spec)[-1]
        self.blocks = nn.ModuleList()
        for i in range(5 if deepest == "fc7" else int(deepest[1:])):
            self.blocks.append(self._block(i))
        self.fc = _fully_connected(form, margins, dropout) if deepest == "fc7" else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if pretrained is not None and torch.get_default_device().type != "meta":
            self._load(Path(pretrained))

    def _block(self, i: int) -> nn.Sequential:
        dilation = 2 if i == 4 and self.form in ("largefov", "dilated") else 1
        padding = 0 if self.form == "dilated" and self.margins == "paper" else dilation
        layers: list[nn.Module] = []
        for j in range(CONVS[i]):
            inputs = WIDTHS[i] if j else (WIDTHS[i - 1] if i else 3)
            first = i == j == 0 and self.form == "fcn" and self.margins == "paper"
            conv = nn.Conv2d(inputs, WIDTHS[i], 3, padding=100 if first else padding, dilation=dilation)
            layers += [conv, nn.ReLU(inplace=True)]
        if self.form == "largefov":
            layers.append(nn.MaxPool2d(3, 2 if i < 3 else 1, 1))
        elif self.form != "dilated" or i < 3:
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up, but for FCN's margins."""
        x = mirrored(images, 186, 8) if self.form == "dilated" and self.margins == "paper" else images
        made: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = made[f"c{i + 1}"] = block(x)
        if self.fc is not None:
            made["fc7"] = self.fc(x)
        return {name: made[name] for name in self.spec}

    def _load(self, path: Path) -> None:
        given = read_state(path, {f"features.{position}.weight" for places in TORCHVISION for position in places})
        state: dict[str, Tensor] = {}
        try:
            for block, positions in zip(range(len(self.blocks)), TORCHVISION):
                for j, position in enumerate(positions):
                    for part in ("weight", "bias"):
                        state[f"blocks.{block}.{2 * j}.{part}"] = given[f"features.{position}.{part}"]
            if self.fc is not None:
                state |= {f"fc.{name}": tensor for name, tensor in fc_to_conv(given, self.form).items()}
            self.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise UserError(f"{path}: not the weights of torchvision's VGG16: {error}") from None


def _levels(form: Form, margins: str) -> dict[str, Level]:
    deepest = 8 if form in ("largefov", "dilated") else 32
    levels = {f"c{i + 1}": Level(width, min(2 ** (i + 1), deepest)) for i, width in enumerate(WIDTHS)}
    if form != "plain":
        levels["fc7"] = Level(1024 if form == "largefov" else 4096, deepest)
    return {"fc7": levels["fc7"]} if form == "dilated" and margins == "paper" else levels


def _fully_connected(form: Form, margins: str, dropout: float) -> nn.Sequential:
    """``fc6`` and ``fc7`` as convolutions."""
    kernel, dilation, width = {"fcn": (7, 1, 4096), "dilated": (7, 4, 4096)}.get(form, (3, 12, 1024))
    padding = 0 if margins == "paper" else dilation * (kernel // 2)
    layers: list[nn.Module] = [nn.Conv2d(512, width, kernel, padding=padding, dilation=dilation)]
    layers += [nn.ReLU(inplace=True), nn.Dropout(dropout)]
    layers += [nn.Conv2d(width, width, 1), nn.ReLU(inplace=True), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def fc_to_conv(state: Mapping[str, Tensor], form: Form) -> dict[str, Tensor]:
    """The first two fully connected layers of torchvision's VGG16 as convolutions: ``0.*`` and ``3.*``.

    A layer on 512 channels of 7x7 cells is a 7x7 convolution. For LargeFOV every third row and column of that is
    kept, and every fourth channel (Chen et al., ICLR 2015, section 4.1: the filters are subsampled).

    Args:
        state: with ``classifier.0.*`` and ``classifier.3.*``.
        form: of the network.
    """
    weight, bias = state["classifier.0.weight"].view(4096, 512, 7, 7), state["classifier.0.bias"]
    last, last_bias = state["classifier.3.weight"].view(4096, 4096, 1, 1), state["classifier.3.bias"]
    if form == "largefov":
        weight, bias = weight[::4, :, ::3, ::3], bias[::4]
        last, last_bias = last[::4, ::4], last_bias[::4]
    return {"0.weight": weight, "0.bias": bias, "3.weight": last, "3.bias": last_bias}


def mirrored(x: Tensor, margin: int, multiple: int = 1) -> Tensor:
    """(B, C, H, W) with ``margin`` more cells at each side, mirrored at the outermost ones as often as it takes; at
    the right and bottom more, so that without the margins the sides are multiples of ``multiple``."""
    for axis in (2, 3):
        side = int(x.shape[axis])
        inside = -(-side // multiple) * multiple
        period = max(1, 2 * (side - 1))
        index = torch.arange(-margin, inside + margin, device=x.device) % period
        x = x.index_select(axis, torch.minimum(index, period - index))
    return x
