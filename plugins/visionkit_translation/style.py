"""Fast style transfer (Johnson et al., ECCV 2016): one network paints every image in the style of one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from visionkit import Head
from visionkit.data.images import check_resized, read_image
from visionkit.errors import UserError
from visionkit.numbers import Count, NonNegative, Positive
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean, PicturePrediction, PictureTarget
from visionkit_translation.generators import fill_up
from visionkit_translation.perceptual import (
    VGG16,
    Convention,
    content_cost,
    gram,
    style_cost,
    total_variation,
)
from visionkit_translation.pictures import PictureOutput, predictions, wanted

REACH = 150.0 / 127.5
"""What the last tanh is multiplied by, so that black and white can be reached."""


class TransformNet(nn.Module):
    """Two steps down, five residual blocks, two steps up, as in the authors' program: a mirrored margin at the start,
    and no padding in the blocks, whose shortcuts are cut instead.

    Instance norm follows Ulyanov et al., 2016, as in that program; the paper has batch norm.

    Args:
        width: channels before the first step down.
        blocks: residual blocks; each cuts off 8 pixels, for which the margin is made.
    """

    def __init__(self, *, width: int = 32, blocks: int = 5) -> None:
        super().__init__()
        self.margin = 8 * blocks
        self.layers = nn.Sequential(
            *_normed(nn.Conv2d(3, width, 9, 1, 4)),
            *_normed(nn.Conv2d(width, 2 * width, 3, 2, 1)),
            *_normed(nn.Conv2d(2 * width, 4 * width, 3, 2, 1)),
            *(CutBlock(4 * width) for _ in range(blocks)),
            *_normed(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, output_padding=1)),
            *_normed(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1)),
            nn.Conv2d(width, 3, 9, 1, 4), nn.Tanh(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), nearly in -1 ... 1, from images (B, 3, H, W) of any size."""
        size = images.shape[-2:]
        x = fill_up(images, 4)
        mode = "reflect" if min(x.shape[-2:]) > self.margin else "replicate"  # a mirror shows no more than there is
        x = self.layers(F.pad(x, (self.margin,) * 4, mode=mode))
        return REACH * x[..., : size[0], : size[1]]


class CutBlock(nn.Module):
    """Two 3x3 convolutions without padding, beside the middle of what came in.

    Args:
        channels: in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        second = nn.Conv2d(channels, channels, 3)
        self.layers = nn.Sequential(
            *_normed(nn.Conv2d(channels, channels, 3)), second, nn.InstanceNorm2d(channels, affine=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 2:-2, 2:-2] + self.layers(x)


def _normed(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[nn.Module, ...]:
    return conv, nn.InstanceNorm2d(conv.out_channels, affine=True), nn.ReLU()


class StyleTransfer(Head):
    """Every image in the style of one picture.

    It learns from images alone: give it the source ``pairs`` with the same folder twice, so that each image is its own
    target. The default weights of the losses are the authors', for a VGG-16 with their convention of pixels; weights of
    torchvision see smaller numbers, and take about ``style_weight: 100000``.

    Args:
        style: the picture, a file; ``None``: drawn waves, to try things out.
        style_size: what its shorter side is resized to, in pixels.
        width: channels of the first layer of the network.
        blocks: residual blocks.
        vgg: a file of weights of VGG-16, ``imagenet`` to have torchvision download them, or ``None`` for random ones.
        convention: of the pixels that those weights were trained on.
        vgg_width: channels of the first layer of VGG-16; other than 64 without weights only.
        content_layer: what the content is compared by.
        style_layers: what the style is compared by.
        content: weight of the content.
        style_weight: weight of the style, of each layer.
        variation: weight of the squared differences of neighbours, summed over a picture.
    """

    task = "picture"
    check_args = {"width": 4, "blocks": 1, "vgg_width": 4, "style_size": 64}
    makes = PicturePrediction
    output = PictureOutput
    loss_names = ("content", "style", "variation")
    evaluators = ("pictures",)
    starts_from = ("style", "vgg")

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        style: str | None = None,
        style_size: Annotated[int, Ge(16)] = 256,
        width: Positive = 32,
        blocks: Count = 5,
        vgg: str | None = None,
        convention: Convention = "caffe",
        vgg_width: Positive = 64,
        content_layer: str = "relu3_3",
        style_layers: tuple[str, ...] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        content: NonNegative = 1.0,
        style_weight: NonNegative = 5.0,
        variation: NonNegative = 1e-6,
    ) -> None:
        super().__init__(spec, labels)
        if not style_layers:
            raise UserError("style_transfer: style_layers is empty; name at least one layer of VGG-16")
        self.content_layer, self.style_layers = content_layer, style_layers
        self.content, self.style, self.variation = content, style_weight, variation
        self.network = TransformNet(width=width, blocks=blocks)
        self.vgg = VGG16({content_layer, *style_layers}, weights=vgg, convention=convention, width=vgg_width)
        picture = waves(style_size) if style is None else _resized(read_image(style), style_size, style)
        with torch.no_grad():
            seen = self.vgg(picture[None])
        for layer in style_layers:
            self.register_buffer(f"gram_{layer}", gram(seen[layer])[0])

    def problems(self) -> list[str]:
        return self.vgg.problems()

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PictureOutput:
        return PictureOutput(self.network(batch.signed()))

    def phases(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"main": self.network.parameters()}

    def losses(self, output: PictureOutput, batch: Batch[PictureTarget]) -> dict[str, Tensor | Mean]:
        """Paper, section 3.2: near the image in what is seen, near the picture in what goes with what, and smooth."""
        seen = self.vgg(output.picture)
        with torch.no_grad():
            truth = self.vgg(wanted(batch))[self.content_layer]
        styles = [style_cost(seen[layer], self.get_buffer(f"gram_{layer}")) for layer in self.style_layers]
        return {
            "content": self.content * content_cost(seen[self.content_layer], truth),
            "style": self.style * torch.stack(styles).sum(),
            "variation": self.variation * total_variation(output.picture),
        }

    def predict(self, output: PictureOutput, batch: Batch) -> list[PicturePrediction]:
        return predictions(output.picture, batch)


def waves(side: int) -> Tensor:
    """A picture (3, side, side) in -1 ... 1 of coloured waves."""
    at = torch.linspace(0.0, 1.0, side)
    y, x = torch.meshgrid(at, at, indexing="ij")
    bent = x + 0.1 * torch.sin(9.0 * y)
    return torch.stack([torch.sin(40.0 * bent + phase) * torch.cos(12.0 * y - phase) for phase in (0.0, 2.1, 4.2)])


def _resized(picture: Tensor, short: int, path: str) -> Tensor:
    """A picture (3, H, W) uint8 in -1 ... 1, of this shorter side. Raises ``DataError`` naming it if it gets huge."""
    scale = short / min(picture.shape[1:])
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    check_resized(path, (size[0], size[1]))
    return F.interpolate(picture[None].float() / 127.5 - 1.0, size=size, mode="bilinear", antialias=True)[0]
