"""``class_shapes``: drawn images of one shape each, to try out what makes or tells apart pictures of classes."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np
import torch

from visionkit.data.base import Sample, Source
from visionkit.data.images import from_hwc
from visionkit.errors import UserError
from visionkit.numbers import Count, Positive
from visionkit.types import ClassTarget, ImageInfo, LabelSet

CLASSES = ("circle", "ring", "square", "triangle", "star", "cross")
_FINE = 4  # bits behind the point in the coordinates that OpenCV draws


class ClassShapesSource(Source):
    """One bright shape on black an image: a circle, ring, square, triangle, star or cross, for the task ``class``.

    Place, size, turn and brightness differ from image to image; the classes take turns.

    Args:
        images: how many.
        seed: of the drawings; the same seed gives the same images.
        size: height and width in pixels.

    Raises:
        UserError: fewer than one image, or less than 16 pixels.
    """

    def __init__(self, *, images: Positive = 600, seed: Count = 0, size: Positive = 28) -> None:
        if images < 1 or size < 16:
            raise UserError(f"class_shapes: {images} images of {size} pixels; at least 1 of 16 are needed")
        self._count, self._seed, self._size = images, seed, size
        self.labels = {"class": LabelSet(CLASSES)}

    def __len__(self) -> int:
        return self._count

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        label = index % len(CLASSES)
        pixels = _draw(CLASSES[label], np.random.default_rng((self._seed, index)), self._size)
        size = (self._size, self._size)
        sample = Sample(from_hwc(pixels), ImageInfo(f"{self._seed}_{index}", "", size, size))
        if "class" in tasks:
            sample.targets["class"] = ClassTarget(torch.tensor(label))
        return sample


def _draw(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    radius = rng.uniform(0.25, 0.36) * size
    centre = size / 2 + rng.uniform(-0.06, 0.06, 2) * size
    turn, grey = rng.uniform(-0.25, 0.25), float(rng.uniform(180, 255))
    picture = np.zeros((size, size), np.uint8)
    if kind in ("circle", "ring"):
        _ellipse(picture, centre, radius, grey)
        if kind == "ring":
            _ellipse(picture, centre, 0.55 * radius, 0.0)
    else:
        cv2.fillPoly(picture, [_fixed(centre + radius * _outline(kind, turn))], grey, cv2.LINE_AA, _FINE)
    return np.repeat(picture[..., None], 3, 2)


def _ellipse(picture: np.ndarray, centre: np.ndarray, radius: float, grey: float) -> None:
    x, y = _fixed(centre).tolist()
    cv2.circle(picture, (x, y), round(radius * 2**_FINE), grey, -1, cv2.LINE_AA, _FINE)


def _outline(kind: str, turn: float) -> np.ndarray:
    """(N, 2) corners about the origin, within a distance of 1 to 1.3."""
    if kind == "cross":
        a, b = 0.28, 1.05
        corners = np.array([(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
                            (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)])  # fmt: skip
    else:
        points, inner, start = {"square": (4, 0.0, 0.25), "triangle": (3, 0.0, 0.5), "star": (5, 0.42, 0.5)}[kind]
        steps = points * (2 if inner else 1)
        angles = 2 * np.pi * (np.arange(steps) / steps) + start * np.pi + np.pi * (kind != "square")
        lengths = 1.15 * np.where(np.arange(steps) % 2 == 1, inner or 1.0, 1.0)
        corners = lengths[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
    cos, sin = np.cos(turn), np.sin(turn)
    return corners @ np.array(((cos, sin), (-sin, cos)))


def _fixed(points: np.ndarray) -> np.ndarray:
    return np.round(points * 2**_FINE).astype(np.int32)
