"""A small conditional translation head: photo -> painted label map, by a generator on the shared features and a
discriminator of its own (after Isola et al., CVPR 2017). It stands for all heads that are trained in phases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit import Component, Head, hookimpl
from visionkit.types import Output, Prediction

PAINT = torch.tensor([[(i * 37 % 255) / 127.5 - 1, (i * 91 % 255) / 127.5 - 1, (i * 53 % 255) / 127.5 - 1]
                      for i in range(256)])  # fmt: skip


@dataclass
class PictureOutput(Output):
    picture: Tensor  # (B, 3, H, W) in -1 ... 1


@dataclass
class PicturePrediction(Prediction):
    picture: Tensor  # (3, H, W) in -1 ... 1

    def draw(self, image, labels):
        small = ((self.picture.permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(small)


class Translate(Head):
    """Paints the label map.

    Args:
        level: the feature level that is read.
        width: channels of generator and discriminator.
        weight: of the L1 loss.
        batch_norm: or group norm, in which an image does not depend on the others.
    """

    task = "semantic"
    makes = PicturePrediction
    output = PictureOutput
    loss_names = ("gan", "l1")
    phase_loss_names = {"discriminator": ("real", "fake")}

    def __init__(
        self, spec, labels, *, level: str = "p2", width: int = 8, weight: float = 10.0, batch_norm: bool = True
    ):
        super().__init__(spec, labels)
        norm = nn.BatchNorm2d if batch_norm else lambda channels: nn.GroupNorm(2, channels)
        self.levels, self.weight = (level,), weight
        self.generator = nn.Sequential(
            nn.Conv2d(spec[level].channels, width, 3, padding=1), norm(width), nn.ReLU(),
            nn.Upsample(scale_factor=spec[level].stride), nn.Conv2d(width, 3, 3, padding=1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 4, 2, 1), norm(width), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, 1, 1),
        )  # fmt: skip

    def forward(self, features, batch, upstream):
        return PictureOutput(self.generator(features[self.levels[0]]))

    def phases(self):
        return {"main": self.generator.parameters(), "discriminator": self.discriminator.parameters()}

    def losses(self, output, batch):
        fake = self.discriminator(torch.cat((batch.images, output.picture), 1))
        truth = torch.stack([paint(target.labels) for target in batch.targets])
        return {
            "gan": F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake)),
            "l1": self.weight * F.l1_loss(output.picture, truth),
        }

    def phase_losses(self, phase, output, batch):
        if phase == "main":
            return self.losses(output, batch)
        truth = torch.stack([paint(target.labels) for target in batch.targets])
        real = self.discriminator(torch.cat((batch.images, truth), 1))
        fake = self.discriminator(torch.cat((batch.images, output.picture), 1))
        return {
            "real": F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) / 2,
            "fake": F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)) / 2,
        }

    def predict(self, output, batch):
        whole = [
            F.interpolate(p[None, :, : i.size[0], : i.size[1]], size=i.original_size)[0]
            for p, i in zip(output.picture, batch.info)
        ]
        return [PicturePrediction(p.float().cpu()) for p in whole]


def paint(labels: Tensor) -> Tensor:
    """A label map (H, W) as a picture (3, H, W)."""
    return PAINT.to(labels.device)[labels.long()].permute(2, 0, 1)


@hookimpl
def visionkit_components():
    return [Component("head", "translate", ":Translate", "paints the label map")]
