"""The conditional GAN (Mirza and Osindero, 2014): pictures of a class from noise, by fully connected layers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit import Head
from visionkit.numbers import FractionBelowOne, Positive, PositiveFloat
from visionkit.types import Batch, ClassPictures, ClassTarget, Features, FeatureSpec, LabelSet, Mean, Output
from visionkit.types.device import to_device


@dataclass
class NoiseOutput(Output):
    """What pictures are made from.

    Attributes:
        noise: (B, noise) in 0 ... 1, which follows the id of each image.
    """

    noise: Tensor


class Maxout(nn.Module):
    """The largest of several linear maps, value by value (Goodfellow et al., ICML 2013).

    Args:
        inputs, outputs: channels.
        pieces: maps among which the largest is taken.
    """

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)


class Generator(nn.Module):
    """Noise and class -> values in 0 ... 1; the widths are those of the paper, which does not say how it starts.

    As layers start elsewhere, noise is hardly heard beside the class, and stays so: all pictures of a class get alike.
    It starts louder here.

    Args:
        noise, classes, values: of the noise, of a class as 0 and 1, and of a picture.
        dropout: probability, in training.
        loudness: deviation of what the first layer makes of noise, in the beginning.
    """

    def __init__(self, noise: int, classes: int, values: int, dropout: float, loudness: float) -> None:
        super().__init__()
        self.noise, self.label = nn.Linear(noise, 200), nn.Linear(classes, 1000)
        self.joint, self.last = nn.Linear(1200, 1200), nn.Linear(1200, values)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():  # the variance of a value in 0 ... 1 is 1 / 12, its mean 1 / 2
            nn.init.normal_(self.noise.weight, std=loudness * (12 / noise) ** 0.5)
            self.noise.bias.copy_(-self.noise.weight.sum(1) / 2)

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        x = self.dropout(torch.cat((F.relu(self.noise(noise)), F.relu(self.label(label))), 1))
        return self.last(self.dropout(F.relu(self.joint(x)))).sigmoid()


class Judge(nn.Module):
    """Values and class -> whether a picture is a real one of that class (B,)."""

    def __init__(self, classes: int, values: int, dropout: float) -> None:
        super().__init__()
        self.values, self.label = Maxout(values, 240, 5), Maxout(classes, 50, 5)
        self.joint, self.last = Maxout(290, 240, 4), nn.Linear(240, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, label: Tensor) -> Tensor:
        x = self.dropout(torch.cat((self.values(values), self.label(label)), 1))
        return self.last(self.dropout(self.joint(x)))[:, 0]


class ConditionalGAN(Head):
    """Pictures of every class, from noise. It learns from images with their class, and looks at none to make pictures.

    The generator pays for what the discriminator does not take for real, instead of being paid for what it does. With
    the images of MNIST it has the size of the paper's.

    Args:
        size: height and width (or one number for both) of the pictures that are made, to which images are resized.
        gray: one channel instead of three.
        noise: values that a picture is made from, uniform in 0 ... 1.
        dropout: probability, in training.
        loudness: how much noise counts in the beginning, see :class:`Generator`.
    """

    task = "class"
    makes = ClassPictures
    output = NoiseOutput
    loss_names = ("gan",)
    phase_loss_names = {"discriminator": ("real", "fake")}

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        size: Positive | tuple[Positive, Positive] = (28, 28),
        gray: bool = True,
        noise: Positive = 100,
        dropout: FractionBelowOne = 0.5,
        loudness: PositiveFloat = 2.0,
    ) -> None:
        super().__init__(spec, labels)
        self.size = (size, size) if isinstance(size, int) else size
        self.noise = noise
        self.channels: Literal[1, 3] = 1 if gray else 3
        values = self.channels * self.size[0] * self.size[1]
        self.generator = Generator(noise, len(labels), values, dropout, loudness)
        self.discriminator = Judge(len(labels), values, dropout)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> NoiseOutput:
        """Noise that is an image's own, so that it gets the same pictures in any batch and at any time."""
        seeds = (torch.Generator().manual_seed(zlib.crc32(str(info.id).encode())) for info in batch.info)
        noise = torch.stack([torch.rand(self.noise, generator=seed) for seed in seeds]).to(batch.images.dtype)
        return NoiseOutput(to_device([noise], batch.images.device)[0])

    def phases(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"main": self.generator.parameters(), "discriminator": self.discriminator.parameters()}

    def losses(self, output: NoiseOutput, batch: Batch[ClassTarget]) -> dict[str, Tensor | Mean]:
        label, known = self._labels(batch)
        cost = F.softplus(-self.discriminator(self._made(label), label).float())
        return {"gan": Mean((cost * known).sum(), known.sum())}

    def phase_losses(self, phase: str, output: NoiseOutput, batch: Batch[ClassTarget]) -> Mapping[str, Any]:
        """Paper, equation 2, with the signs of a cost. Noise is new in every phase, as in the paper."""
        if phase == "main":
            return self.losses(output, batch)
        label, known = self._labels(batch)
        with torch.no_grad():
            made = self._made(label)
        real = F.softplus(-self.discriminator(self._real(batch), label).float())
        fake = F.softplus(self.discriminator(made, label).float())
        return {"real": Mean((real * known).sum(), known.sum()), "fake": Mean((fake * known).sum(), known.sum())}

    def _labels(self, batch: Batch[ClassTarget]) -> tuple[Tensor, Tensor]:
        """Classes as (B, classes) of 0 and 1, and 1 where there is one."""
        label = torch.stack([target.label for target in batch.targets])
        one_hot = F.one_hot(label.clamp(min=0), len(self.labels)).to(batch.images)
        return one_hot, (label >= 0).float()

    def _made(self, label: Tensor) -> Tensor:
        """New pictures of these classes, as values."""
        return self.generator(torch.rand(len(label), self.noise, device=label.device), label)

    def _real(self, batch: Batch) -> Tensor:
        """The images as values in 0 ... 1, at the size of pictures and without padding."""
        images = (batch.signed() + 1.0) / 2.0
        parts = []
        for image, info in zip(images, batch.info):
            part = image[None, :, : info.size[0], : info.size[1]]
            if info.size != tuple(self.size):
                part = F.interpolate(part, size=tuple(self.size), mode="bilinear", antialias=True)
            parts.append(part.mean(1, keepdim=True) if self.channels == 1 else part)
        return torch.cat(parts).flatten(1)

    def predict(self, output: NoiseOutput, batch: Batch) -> list[ClassPictures]:
        """All classes from the same noise, in their own size."""
        classes = torch.eye(len(self.labels), device=output.noise.device, dtype=output.noise.dtype)
        found = []
        for noise in output.noise:
            values = self.generator(noise.expand(len(classes), -1), classes).detach().float()
            pictures = values.view(len(classes), self.channels, *self.size).expand(-1, 3, -1, -1)
            found.append(ClassPictures(pictures.clamp(0.0, 1.0).cpu(), self.labels.names))
        return found
