"""Pictures that are made from pictures: the targets of image translation, and what its heads say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.types.batch import ImageInfo
from visionkit.types.labels import LabelSet
from visionkit.types.predictions import Prediction
from visionkit.types.targets import SemanticTarget, Target

if TYPE_CHECKING:
    from visionkit.data.geometry import Geometry

GREY = 128
"""What pictures are padded with: the byte nearest to the 0 that normalised images are padded with."""


@dataclass
class PictureTarget(Target):
    """What an image is to be turned into: the target of the task ``picture``, or an example of another domain, that of
    the task ``unpaired``.

    Attributes:
        picture: (3, H, W) uint8 RGB, of the size of its image.
        shows: what is to be seen in it where, if the image that it is made of says so; for scores of what was made.
        paired: whether it is what this image is to become, and no mere example.
    """

    picture: Tensor
    shows: SemanticTarget | None = None
    paired: bool = True

    def __post_init__(self) -> None:
        if self.picture.ndim != 3 or self.picture.shape[0] != 3 or self.picture.dtype != torch.uint8:
            raise ValueError(f"a picture must be uint8 of shape (3, H, W), not {self.picture.dtype} "
                             f"{tuple(self.picture.shape)}")  # fmt: skip

    def moved(self, geometry: Geometry) -> PictureTarget:
        """Resized like an image, and averaged where it shrinks. What it shows is left out: nothing learns from it."""
        return PictureTarget(geometry.image(self.picture, antialias_below=1.0), paired=self.paired)

    def padded(self, size: tuple[int, int]) -> PictureTarget:
        height, width = self.picture.shape[1:]
        padded = F.pad(self.picture, (0, size[1] - width, 0, size[0] - height), value=GREY)
        return PictureTarget(padded, paired=self.paired)

    def signed(self) -> Tensor:
        """(3, H, W) float32 in -1 ... 1, the range of generators that end in tanh."""
        return self.picture.float() / 127.5 - 1.0

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        return _in_place_of(image, self.picture)


@dataclass
class PicturePrediction(Prediction):
    """A picture in place of an image, at its original size.

    Attributes:
        picture: (3, H, W) float32 RGB in 0 ... 1.
    """

    covers = True

    picture: Tensor

    def __post_init__(self) -> None:
        if self.picture.ndim != 3 or self.picture.shape[0] != 3 or not self.picture.is_floating_point():
            raise ValueError(f"a picture must be floats of shape (3, H, W), not {self.picture.dtype} "
                             f"{tuple(self.picture.shape)}")  # fmt: skip

    @classmethod
    def from_signed(cls, picture: Tensor, info: ImageInfo) -> Self:
        """From what a generator made of an image in a batch.

        Args:
            picture: (3, h, w) in -1 ... 1 in input pixels, with the padding of the batch.
            info: of the image.
        """
        seen = (picture[None, :, : info.size[0], : info.size[1]].float() + 1.0) / 2.0
        if info.size != info.original_size:
            shrinks = info.size[0] > info.original_size[0] or info.size[1] > info.original_size[1]
            seen = F.interpolate(seen, size=info.original_size, mode="bilinear", antialias=shrinks)
        return cls(seen[0].clamp(0.0, 1.0).cpu())

    @classmethod
    def from_target(cls, target: PictureTarget, info: ImageInfo, labels: LabelSet) -> Self:
        return cls(target.picture.float() / 255.0)

    def bytes(self) -> Tensor:
        """(3, H, W) uint8, rounded."""
        return (self.picture * 255.0).round().clamp(0, 255).to(torch.uint8)

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        return _in_place_of(image, self.bytes())

    def files(self) -> dict[str, np.ndarray]:
        return {"": np.ascontiguousarray(self.bytes().permute(1, 2, 0).cpu().numpy())}


def _in_place_of(image: np.ndarray, picture: Tensor) -> np.ndarray:
    """A picture (3, H, W) uint8 as an image (H, W, 3) of the size of another."""
    pixels = np.ascontiguousarray(picture.permute(1, 2, 0).cpu().numpy())
    size = (image.shape[1], image.shape[0])
    return pixels if pixels.shape == image.shape else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
