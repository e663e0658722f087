"""What heads that make pictures share: their output, what they are to make, and how far they are from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visionkit.types import Batch, Output, PicturePrediction, PictureTarget


@dataclass
class PictureOutput(Output):
    """Port: a picture of every image.

    Attributes:
        picture: (B, 3, H, W) in -1 ... 1, in input pixels.
    """

    picture: Tensor


def wanted(batch: Batch[PictureTarget]) -> Tensor:
    """The pictures of the targets, (B, 3, H, W) in -1 ... 1, padded as the images are."""
    size = (batch.images.shape[2], batch.images.shape[3])
    return torch.stack([target.padded(size).signed() for target in batch.targets]).to(batch.images.dtype)


def inside(batch: Batch) -> Tensor:
    """(B, 1, H, W) float: 1 on the images, 0 on their padding."""
    height, width = batch.images.shape[-2:]
    known = torch.zeros(len(batch), 1, height, width, device=batch.images.device)
    for row, info in enumerate(batch.info):
        known[row, :, : info.size[0], : info.size[1]] = 1.0
    return known


def mean_absolute(one: Tensor, other: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute differences of (B, 3, H, W) where ``known`` (B, 1, H, W) is 1: their sum, and how many there are."""
    return ((one.float() - other.float()).abs() * known).sum(), known.sum() * one.shape[1]


def predictions(pictures: Tensor, batch: Batch) -> list[PicturePrediction]:
    """Pictures (B, 3, H, W) in -1 ... 1 at the original sizes of their images."""
    return [PicturePrediction.from_signed(picture, info) for picture, info in zip(pictures.detach(), batch.info)]
