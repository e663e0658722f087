"""Augmentation and resizing of samples.

Images stay uint8 until they are normalised; sizes and coordinates are kept exact in ``sample.info``. Where OpenCV does
the same in less time than torchvision's transforms v2, it is used; any photometric one of v2 can be named:
``torchvision.transforms.v2:Class``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le

from visionkit.data.base import Sample, Transform
from visionkit.data.geometry import Geometry, whole_image
from visionkit.data.images import as_hwc, check_resized, from_hwc
from visionkit.errors import DataError, UserError
from visionkit.numbers import Ascending, Fraction, NonNegative, Positive, PositiveFloat, RGBScale


def apply_transforms(transforms: Sequence[Transform], sample: Sample) -> Sample:
    """The sample after all of them, in order.

    Raises:
        DataError: OpenCV or the memory has no room for what a transform makes of this image; the message names it.
    """
    for transform in transforms:
        try:
            sample = transform(sample)
        except (cv2.error, MemoryError) as error:
            height, width = sample.image.shape[-2:]
            reason = " ".join(str(error).split()) or "not enough memory"
            raise DataError(f"{sample.info.path or sample.info.id}: {type(transform).__name__} cannot be applied to an "
                            f"image of {height}x{width} (height x width): {reason}") from None  # fmt: skip
    return sample


class Resize(Transform):
    """Resize to a short side, a long side, both (whichever is reached first), or an exact size.

    Args:
        short: the shorter side in pixels; a list: one of them at random.
        long: the longer side may not exceed this; without ``short``, it becomes this.
        size: height and width (or one number for both), whatever the aspect ratio.
        antialias: average over what falls together where the image shrinks.
        exact: as torchvision's detectors resize: no antialiasing, sides rounded down, and values normalised before
            (by ``normalize``), so that none is rounded to a whole number. Needed for numbers equal to theirs.
    """

    def __init__(
        self,
        *,
        short: Positive | list[Positive] | None = None,
        long: Positive | None = None,
        size: Positive | tuple[Positive, Positive] | None = None,
        antialias: bool = True,
        exact: bool = False,
    ) -> None:
        if (size is None) == (short is None and long is None):
            raise UserError("resize needs either 'size', or 'short', 'long' or both")
        self.short = [short] if isinstance(short, int) else short
        self.long = long
        self.fixed = (size, size) if isinstance(size, int) else tuple(size) if size is not None else None
        self.antialias, self.exact = antialias, exact
        if any(side < 1 for side in (*(self.short or (1,)), long or 1, *(self.fixed or (1,)))):
            raise UserError(f"resize: sides must be at least 1 pixel, not short {short}, long {long}, size {size}")

    def __call__(self, sample: Sample) -> Sample:
        geometry = whole_image(sample, self.size((sample.image.shape[1], sample.image.shape[2])))
        if geometry.size[0] * geometry.size[1] > sample.image.shape[1] * sample.image.shape[2]:
            check_resized(str(sample.info.path or sample.info.id), geometry.size)
        if not self.exact:
            return geometry.sample(sample, geometry.image(sample.image, antialias_below=float(self.antialias)))
        if not sample.image.is_floating_point():
            raise UserError("resize: exact: true resizes normalised values; put the transform 'normalize' before it")
        image = F.interpolate(sample.image[None], size=geometry.size, mode="bilinear", align_corners=False)[0]
        return geometry.sample(sample, image)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of this height and width is resized to."""
        if self.fixed is not None:
            return self.fixed[0], self.fixed[1]
        scales = []
        if self.short is not None:
            scales.append(self.short[_below(len(self.short))] / min(size))
        if self.long is not None:
            scales.append(self.long / max(size))
        side = math.floor if self.exact else round
        return max(1, side(size[0] * min(scales))), max(1, side(size[1] * min(scales)))


class Normalize(Transform):
    """Values 0 ... 255 as float, ``(x / 255 - mean) / std``, here and not after batching.

    Needed only where a later transform is to work on normalised values, in numbers equal to torchvision's: without it
    the model normalises what it is given by the statistics of its backbone, which costs less. All sources of a batch
    must agree.

    Args:
        mean: of each channel (RGB), in 0 ... 1; ImageNet's unless given.
        std: likewise.
    """

    def __init__(
        self,
        *,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: RGBScale = (0.229, 0.224, 0.225),
    ) -> None:
        if min(std) <= 0:
            raise UserError(f"normalize: std must be above 0, not {list(std)}")
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __call__(self, sample: Sample) -> Sample:
        if sample.image.is_floating_point():
            raise UserError("normalize: the image is normalised already")
        return replace(sample, image=(sample.image / 255 - self.mean) / self.std)


class ScaleJitterCrop(Transform):
    """Resize by a random factor, then cut out a window at a random place (Ghiasi et al. 2021, large scale jitter).

    An image that is smaller than the window after resizing is kept whole; the batch pads it.

    Args:
        size: height and width of the window in pixels, or one number for both.
        scale: least and greatest factor, drawn uniformly.
        fit: count the factor from the size at which the whole image just fits into the window, not from its own size.
    """

    def __init__(
        self,
        *,
        size: Positive | list[Positive],
        scale: Annotated[tuple[PositiveFloat, PositiveFloat], Ascending] = (0.1, 2.0),
        fit: bool = False,
    ) -> None:
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.low, self.high = scale
        self.fit = fit
        if not 0 < self.low <= self.high or min(self.height, self.width) < 1:
            raise UserError(f"scale_jitter_crop: size {size} and scale {list(scale)}; sizes must be at least 1 and "
                            "0 < least <= greatest")  # fmt: skip

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample.image.shape[1:]
        scale = _uniform(self.low, self.high)
        if self.fit:
            scale *= min(self.height / height, self.width / width)
        # Cut first, in whole pixels of the image, and resize only what is kept.
        rows, top = _window(height, self.height / scale)
        columns, left = _window(width, self.width / scale)
        size = min(self.height, max(1, round(rows * scale))), min(self.width, max(1, round(columns * scale)))
        geometry = Geometry((left, top, left + columns, top + rows), size, swaps=sample.swaps)
        # Down to half the size, bilinear interpolation looks at every pixel anyway.
        return geometry.sample(sample, geometry.image(sample.image, antialias_below=0.5))


def _window(length: int, wanted: float) -> tuple[int, int]:
    """Length and random start of a window along one axis."""
    kept = min(length, max(1, round(wanted)))
    return kept, _below(length - kept + 1)


class HorizontalFlip(Transform):
    """Exchange left and right, of keypoints too: a mirrored left eye is a right eye.

    Args:
        probability: of doing it.
    """

    def __init__(self, *, probability: Fraction = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"hflip: probability must lie in 0 ... 1, not {probability}")
        self.probability = probability

    def __call__(self, sample: Sample) -> Sample:
        if _uniform(0.0, 1.0) >= self.probability:
            return sample
        return whole_image(sample, mirror=True).sample(sample)


class ColorJitter(Transform):
    """Random brightness, contrast, saturation and hue, as one affine map of colours.

    Each factor is drawn from ``1 - value ... 1 + value``. Hue turns the chroma plane of YIQ, which unlike a turn in HSV
    is linear; so all four together are one product a pixel, without rounding or clipping in between.

    Args:
        brightness: of the factor that all is multiplied with.
        contrast: of the factor of the distance from the image's mean grey.
        saturation: of the factor of the distance from each pixel's grey.
        hue: greatest turn, as a part of the circle (0 ... 0.5).
    """

    def __init__(
        self,
        *,
        brightness: NonNegative = 0.0,
        contrast: NonNegative = 0.0,
        saturation: NonNegative = 0.0,
        hue: Annotated[float, Ge(0), Le(0.5)] = 0.0,
    ) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if value < 0:
                raise UserError(f"color_jitter: {name} must be 0 or more, not {value}")
        if not 0 <= hue <= 0.5:
            raise UserError(f"color_jitter: hue must lie in 0 ... 0.5, not {hue}")
        self.ranges = brightness, contrast, saturation
        self.hue = hue

    def __call__(self, sample: Sample) -> Sample:
        brightness, contrast, saturation = (_uniform(max(0.0, 1 - r), 1 + r) for r in self.ranges)
        pixels = as_hwc(sample.image)
        colors = color_matrix(brightness, contrast, saturation, _uniform(-self.hue, self.hue), cv2.mean(pixels)[:3])
        return replace(sample, image=from_hwc(cv2.transform(pixels, colors)))


_GREY = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
_YIQ = np.array((_GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))


def color_matrix(
    brightness: float, contrast: float, saturation: float, hue: float, mean: Sequence[float]
) -> np.ndarray:
    """(3, 4) matrix that maps (r, g, b, 1) in 0 ... 255; ``mean`` is the mean colour of the image."""
    angle = 2 * math.pi * hue
    turn = np.eye(3)
    turn[1:, 1:] = (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))
    linear = np.linalg.inv(_YIQ) @ turn @ _YIQ
    linear = linear @ (saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), _GREY))
    # Hue and saturation leave greys as they are, so the shift of the contrast can be added last.
    shift = (1 - contrast) * brightness * float(_GREY @ np.asarray(mean))
    return np.column_stack((brightness * contrast * linear, np.full(3, shift)))


class TorchvisionTransform(Transform):
    """A transform of torchvision (v2) that changes colours and moves no pixels.

    Those that move pixels are refused: v2 places keypoints by pixel centres and boxes by pixel edges, so that neither
    the affine map of an image nor its left and right keypoints could be told from what it does.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.name = type(transform).__name__

    def __call__(self, sample: Sample) -> Sample:
        from torchvision import tv_tensors

        size = (sample.image.shape[1], sample.image.shape[2])
        corners = torch.tensor(((0.0, 0.0), (size[1] - 1.0, 0.0), (0.0, size[0] - 1.0), (size[1] - 1.0, size[0] - 1.0)))
        points = tv_tensors.KeyPoints(corners.clone(), canvas_size=size)
        image, moved = self.transform(tv_tensors.Image(sample.image), points)
        image = image.as_subclass(torch.Tensor)
        if tuple(image.shape[1:]) != size or not torch.equal(moved.as_subclass(torch.Tensor), corners):
            raise UserError(f"transform '{self.name}' of torchvision moves pixels; only those that change colours can "
                            "be used (to resize, crop or mirror: resize, scale_jitter_crop, hflip)")  # fmt: skip
        if image.dtype != sample.image.dtype or image.shape[0] != 3:
            raise UserError(f"transform '{self.name}' of torchvision makes {image.dtype} images of {image.shape[0]} "
                            f"channels; they must stay {sample.image.dtype} RGB")  # fmt: skip
        return replace(sample, image=image)


def as_transform(transform: Any) -> Transform:
    """The transform itself, or the wrapper of one of torchvision's."""
    return transform if isinstance(transform, Transform) else TorchvisionTransform(transform)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def _below(end: int) -> int:
    """0 ... end - 1."""
    return int(torch.randint(end, ()))
