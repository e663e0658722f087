"""One class for a whole image, and pictures of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.types.batch import ImageInfo
from visionkit.types.labels import LabelSet
from visionkit.types.predictions import Prediction
from visionkit.types.targets import Target

if TYPE_CHECKING:
    from visionkit.data.geometry import Geometry


@dataclass
class ClassTarget(Target):
    """What an image shows: the target of the task ``class``.

    Attributes:
        label: () int64; -1 where it is none of the classes.
    """

    label: Tensor

    def __post_init__(self) -> None:
        if self.label.ndim or self.label.is_floating_point():
            raise ValueError(f"a label must be one integer, not {self.label.dtype} {tuple(self.label.shape)}")

    def relabel(self, table: Tensor) -> ClassTarget:
        """The mapped class; -1 stays -1."""
        return self if int(self.label) < 0 else ClassTarget(table.to(self.label.device)[self.label])

    def moved(self, geometry: Geometry) -> ClassTarget:
        return self

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        """The name of the class in the upper left corner."""
        return _written(image, [labels.names[int(self.label)] if int(self.label) >= 0 else "-"])


@dataclass
class ClassPrediction(Prediction):
    """How likely an image shows each of the classes.

    Attributes:
        probabilities: (classes,) float32 in 0 ... 1.
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 1 or not self.probabilities.is_floating_point():
            raise ValueError(f"probabilities must be floats of shape (classes,), not {self.probabilities.dtype} "
                             f"{tuple(self.probabilities.shape)}")  # fmt: skip

    def best(self, count: int) -> list[tuple[int, float]]:
        """The likeliest classes and their probabilities, the surest first; of equal ones the first."""
        values, labels = self.probabilities.cpu().sort(descending=True, stable=True)
        return list(zip(labels[:count].tolist(), values[:count].tolist()))

    @classmethod
    def from_target(cls, target: ClassTarget, info: ImageInfo, labels: LabelSet) -> Self:
        probabilities = torch.zeros(len(labels))
        if int(target.label) >= 0:
            probabilities[int(target.label)] = 1.0
        return cls(probabilities)

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        """The five likeliest classes, a record each, without a region."""
        return [
            {"image_id": image_id, "category_id": labels.ids[label], "score": probability}
            for label, probability in self.best(5)
        ]

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        """The three likeliest classes in the upper left corner."""
        return _written(image, [f"{labels.names[label]} {probability:.0%}" for label, probability in self.best(3)])


def _written(image: np.ndarray, lines: list[str]) -> np.ndarray:
    """(H, W, 3) with lines of text in the upper left corner."""
    image = image.copy()
    for row, line in enumerate(lines):
        for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(image, line, (2, 12 + 14 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, width, cv2.LINE_AA)
    return image


@dataclass
class ClassPictures(Prediction):
    """A picture of every class.

    Attributes:
        pictures: (classes, 3, H, W) float32 RGB in 0 ... 1, of any size.
        names: of the classes, for files.
    """

    covers, located = True, False

    pictures: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[1] != 3 or len(self.pictures) != len(self.names):
            raise ValueError(f"pictures of {len(self.names)} classes must have shape ({len(self.names)}, 3, H, W), not "
                             f"{tuple(self.pictures.shape)}")  # fmt: skip

    def bytes(self) -> Tensor:
        """(classes, 3, H, W) uint8, rounded."""
        return (self.pictures * 255.0).round().clamp(0, 255).to(torch.uint8).cpu()

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        """All of them as tiles in place of the image."""
        columns = max(1, round(len(self.pictures) ** 0.5 + 0.49))
        rows = -(-len(self.pictures) // columns)
        count, channels, height, width = self.pictures.shape
        tiles = torch.zeros(rows * columns, channels, height, width, dtype=torch.uint8)
        tiles[:count] = self.bytes()
        whole = tiles.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
        pixels = whole.reshape(rows * height, columns * width, channels).numpy()
        larger = image.shape[0] > len(pixels) or image.shape[1] > pixels.shape[1]
        way = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
        return cv2.resize(pixels, (image.shape[1], image.shape[0]), interpolation=way)

    def files(self) -> dict[str, np.ndarray]:
        """A file a class, by its name."""
        pixels = self.bytes().permute(0, 2, 3, 1).numpy()
        names = ["".join(c if c.isalnum() else "_" for c in name) for name in self.names]
        return {f"_{i}_{name}": np.ascontiguousarray(pixels[i]) for i, name in enumerate(names)}
