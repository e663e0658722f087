"""Networks that make pictures: the U-Net of pix2pix, the ResNet of CycleGAN, and a decoder on shared features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.types import FeatureSpec

Norm = Literal["batch", "image", "instance"]
"""``batch``: batch norm. ``image``: batch norm with the statistics of each image by itself, in training and later: what
batch norm is in a batch of one, of which Isola et al. make use in testing too. ``instance``: the same without scale and
shift; the convolutions before it keep their biases, as in CycleGAN's published networks."""


def norm_of(norm: Norm, channels: int) -> nn.Module:
    """A normalisation layer."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels, affine=norm == "image")


def initialise(network: nn.Module) -> None:
    """Weights from N(0, 0.02), scales from N(1, 0.02), biases 0 (Isola et al., CVPR 2017, section 6.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class StandingDropout(nn.Module):
    """Dropout that goes on after training, as the noise that a picture is made from.

    In training every value has a chance of its own. In evaluation the chances are drawn once from a seed and are those
    of every image, so that a picture depends neither on its neighbours nor on what was asked before.

    Args:
        probability: of a value becoming 0.
        seed: of the noise in evaluation.
    """

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(probability)
        self.seed = seed

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout.training or not self.dropout.p:
            return self.dropout(x)
        share = 1.0 - self.dropout.p
        chance = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        return x * ((chance < share) / share).to(x)


class UNet(nn.Module):
    """Convolutions down to one cell and up again, where every step up also sees what the step down beside it saw
    (Isola et al., CVPR 2017, section 6.1.1).

    Dropout stands in the three innermost steps up, as in the paper and its first release.

    Args:
        inputs: channels of the images that come in.
        downs: steps down; sides are filled up to a multiple of 2 to the power of this.
        width: channels of the first step; they double to at most eight times as many.
        norm: of all steps but the first down, the innermost down and the last up.
        dropout: probability.
        seed: of the noise in evaluation.
    """

    def __init__(
        self,
        inputs: int = 3,
        *,
        downs: int = 8,
        width: int = 64,
        norm: Norm = "image",
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(downs)]
        bias = norm == "instance"
        self.multiple = 2**downs
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (before, after) in enumerate(zip([inputs, *widths], widths)):
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if i else []
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=bias))
            layers += [norm_of(norm, after)] if 0 < i < downs - 1 else []
            self.down.append(nn.Sequential(*layers))
        for i in reversed(range(downs)):
            before, last = widths[i] * (1 if i == downs - 1 else 2), i == 0
            after = 3 if last else widths[i - 1]
            layers = [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias or last)]
            layers += [nn.Tanh()] if last else [norm_of(norm, after)]
            layers += [StandingDropout(dropout, seed + i)] if downs - 4 < i and not last else []
            self.up.append(nn.Sequential(*layers))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1 ... 1 from images (B, inputs, H, W) of any size."""
        size = images.shape[-2:]
        x, seen = fill_up(images, self.multiple), []
        for step in self.down:
            x = step(x)
            seen.append(x)
        x = self.up[0](seen.pop())
        for step in self.up[1:]:
            x = step(torch.cat((seen.pop(), x), 1))
        return x[..., : size[0], : size[1]]


ENCODER = 10
"""Layers of :class:`ResNetGenerator` before its residual blocks."""


class ResNetGenerator(nn.Module):
    """Two steps down, residual blocks, two steps up, with mirrored borders (Zhu et al., ICCV 2017, section 7.2, after
    Johnson et al., ECCV 2016).

    Args:
        inputs: channels of the images that come in.
        blocks: residual blocks; the paper has 6 for pictures of 128 pixels and 9 from 256 on.
        width: channels before the first step down.
        norm: of all layers but the last.
    """

    def __init__(self, inputs: int = 3, *, blocks: int = 9, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        bias = norm == "instance"
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3), nn.Conv2d(inputs, width, 7, bias=bias), norm_of(norm, width), nn.ReLU(),
            *_halved(width, norm), *_halved(2 * width, norm),
            *(ResidualBlock(4 * width, norm) for _ in range(blocks)),
            *_doubled(4 * width, norm), *_doubled(2 * width, norm),
            nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh(),
        )  # fmt: skip
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in -1 ... 1 from images (B, inputs, H, W) of any size from 8 on."""
        return self.layers(fill_up(images, 4))[..., : images.shape[-2], : images.shape[-1]]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with mirrored borders beside the identity.

    Args:
        channels: in and out.
        norm: after each convolution.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        bias = norm == "instance"
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm_of(norm, channels), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm_of(norm, channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _halved(channels: int, norm: Norm) -> tuple[nn.Module, ...]:
    """Half the size, twice the channels."""
    conv = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=norm == "instance")
    return conv, norm_of(norm, 2 * channels), nn.ReLU()


def _doubled(channels: int, norm: Norm) -> tuple[nn.Module, ...]:
    """Twice the size, half the channels."""
    conv = nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1, bias=norm == "instance")
    return conv, norm_of(norm, channels // 2), nn.ReLU()


class FeatureDecoder(nn.Module):
    """Pictures from features that other heads read too: from the coarsest level up, each step repeats the cells and
    convolves them beside the level of its size. Repetition before convolution leaves no checkerboard (Odena et al.,
    Distill 2016).

    Args:
        spec: of the features.
        levels: that are read, in any order; the finest of them ends the steps that read one.
        channels: of every step.
        norm: of every step.
        dropout: probability, in the three coarsest steps.
        seed: of the noise in evaluation.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        levels: Sequence[str],
        *,
        channels: int = 64,
        norm: Norm = "image",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.at = {spec[level].stride: level for level in levels}
        bias = norm == "instance"
        coarsest = max(self.at)
        self.lateral = nn.ModuleDict({level: nn.Conv2d(spec[level].channels, channels, 1) for level in levels})
        self.steps = nn.ModuleList()
        for i in range(coarsest.bit_length() - 1):
            layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=bias), norm_of(norm, channels), nn.ReLU()]
            self.steps.append(nn.Sequential(*layers, *([StandingDropout(dropout, seed + i)] if i < 3 else [])))
        self.last = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.Tanh())
        self.coarsest = coarsest
        initialise(self)

    def forward(self, features: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Pictures (B, 3, height, width) in -1 ... 1."""
        stride = self.coarsest
        x = self.lateral[self.at[stride]](features[self.at[stride]])
        for step in self.steps:
            stride //= 2
            cells = -(-size[0] // stride), -(-size[1] // stride)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")[..., : cells[0], : cells[1]]
            if stride in self.at:
                x = x + self.lateral[self.at[stride]](features[self.at[stride]])
            x = step(x)
        return self.last(x)


def fill_up(images: Tensor, multiple: int) -> Tensor:
    """Images whose height and width are multiples of a number; their last row and column are repeated for that."""
    down, right = (-side % multiple for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images
