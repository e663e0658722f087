"""One object a sample: a source that makes a sample of every object, and the transform that cuts it out."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from visionkit.coco.annotations import CocoAnnotations
from visionkit.coco.values import describe, identifier, load_json, number, same_id
from visionkit.coco.values import field as required
from visionkit.data.base import Sample, Source, Transform
from visionkit.data.geometry import Geometry
from visionkit.data.images import as_hwc, from_hwc
from visionkit.data.pairs import built_source
from visionkit.errors import DataError, UserError
from visionkit.numbers import Fraction, FractionBelowOne, OnlyWith, Positive, PositiveFloat
from visionkit.types import IGNORE, Crop, ImageInfo, InstanceMasks, InstanceTarget, SemanticTarget, Target

TASK = "keypoints"


@dataclass(frozen=True)
class _Shown:
    """The object that a sample shows: its image, where it stands in the target (-1: in no target), and its box."""

    index: int
    object: int
    crop: Crop


class ObjectsSource(Source):
    """Every object with labelled keypoints of another source as a sample of its own.

    The image is the whole one; ``info.crop`` says which object counts, the target holds this one alone, and the
    transform ``crop_object`` cuts it out. What is predicted for the objects of one image is judged together. Crowds,
    and objects without labelled keypoints, are left out.

    Args:
        source: the other source as in a pipeline, ``{name: ..., ...}``, labelled for ``keypoints``.
        boxes: a COCO results file; samples are then its boxes, as a detector found them, without targets.
        min_score: of those boxes.

    Raises:
        UserError: the other source is unknown, refuses its arguments, or has no keypoints.
        DataError: the file of boxes is missing, wrong, or of other images.
    """

    check_args: ClassVar[Mapping[str, Any]] = {"source": {"name": "shapes", "root": "{data}", "images": 8, "size": 96}}

    def __init__(
        self, *, source: dict[str, Any], boxes: str | None = None, min_score: Annotated[float, OnlyWith("boxes")] = 0.0
    ) -> None:
        self._source = built_source("objects", source)
        if TASK not in self._source.tasks:
            raise UserError(f"objects: its source has no keypoints (it is labelled for: "
                            f"{', '.join(self._source.tasks) or 'nothing'})")  # fmt: skip
        self.labels = {TASK: self._source.labels[TASK]}
        self._objects = self._annotated() if boxes is None else self._detected(boxes, min_score)
        if not self._objects:
            raise DataError(f"objects: {boxes or 'its source'} has no object to look at")

    def _annotated(self) -> list[_Shown]:
        names = self.labels[TASK].names
        found = []
        for index in range(len(self._source)):
            target = self._source.targets(index, {TASK}).get(TASK)
            if not isinstance(target, InstanceTarget) or target.keypoints is None:
                continue
            seen = (target.keypoints[..., 2] > 0).any(1) & ~target.crowd
            for i in torch.nonzero(seen)[:, 0].tolist():
                left, top, right, bottom = target.boxes[i].tolist()
                found.append(_Shown(index, i, Crop(i, (left, top, right, bottom), names[int(target.labels[i])])))
        return found

    def _detected(self, path: str, min_score: float) -> list[_Shown]:
        labels = self.labels[TASK]
        rows = {same_id(self._source.image_id(index)): index for index in range(len(self._source))}
        names = dict(zip(map(same_id, labels.ids), labels.names))
        found = []
        entries = load_json(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: COCO results must be a list of detections, not {describe(entries)}")
        for index, entry in enumerate(entries):
            where = f"{path}: detection number {index + 1}"
            if not isinstance(entry, dict):
                raise DataError(f"{where} must be an object, not {describe(entry)}")
            image, category = (
                same_id(identifier(required(entry, key, where), f"{where}: '{key}'"))
                for key in ("image_id", "category_id")
            )
            score = number(required(entry, "score", where), f"{where}: 'score'")
            box = required(entry, "bbox", where)
            if not isinstance(box, list) or len(box) != 4:
                raise DataError(f"{where}: 'bbox' must be [left, top, width, height], not {describe(box)}")
            x, y, width, height = (number(value, f"{where}: a coordinate of 'bbox'") for value in box)
            if image not in rows:
                raise DataError(f"{where} is of image {image!r}, which is none of the {len(rows)} images of the source")
            if category in names and score >= min_score and min(width, height) > 0:
                crop = Crop(index, (x, y, x + width, y + height), names[category], score)
                found.append(_Shown(rows[image], -1, crop))
        return sorted(found, key=lambda shown: shown.index)

    def __len__(self) -> int:
        return len(self._objects)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        shown = self._objects[index]
        sample = self._source.load(shown.index, {TASK} & set(tasks))
        target = sample.targets.get(TASK)
        targets: dict[str, Target] = {}
        if isinstance(target, InstanceTarget) and shown.object >= 0:
            targets = {TASK: target.select(torch.tensor([shown.object]))}
        return replace(sample, info=replace(sample.info, crop=shown.crop), targets=targets)

    def image_id(self, index: int) -> int | str:
        return self._source.image_id(self._objects[index].index)

    def describe(self, index: int) -> str:
        shown = self._objects[index]
        return f"{self._source.describe(shown.index)}, object {shown.crop.number}"

    def coco_ground_truth(self) -> CocoAnnotations | dict[str, Any] | None:
        return self._source.coco_ground_truth()

    def problems(self) -> list[str]:
        return self._source.problems()


class CropObject(Transform):
    """Cut out the object that a sample shows, upright or turned, at one size and without changing its shape.

    The window has the middle of the object's box, the aspect ratio of ``size``, and ``padding`` times the least size at
    which the box fits in. A sample that shows no one object (any image in prediction) is kept whole. What lies outside
    the image is black.

    Args:
        size: height and width of the result, or one number for both.
        padding: see above.
        scale: the window is a random factor larger or smaller: standard deviation, and greatest difference from 1.
        rotation: it is turned by a random angle: standard deviation in degrees, and half the greatest angle.
        rotated: share of samples that are turned at all.
    """

    def __init__(
        self,
        *,
        size: Positive | list[Positive],
        padding: PositiveFloat = 1.25,
        scale: FractionBelowOne = 0.0,
        rotation: Annotated[float, Ge(0), Le(180)] = 0.0,
        rotated: Fraction = 0.6,
    ) -> None:
        sides = [size, size] if isinstance(size, int) else size
        if len(sides) != 2 or min(sides) < 1 or padding <= 0 or not 0 <= scale < 1 or rotation < 0:
            raise UserError(
                f"crop_object: size {size}, padding {padding}, scale {scale}, rotation {rotation}; sides must be at "
                "least 1 pixel, padding above 0, scale in 0 ... 1, rotation 0 or more"
            )
        if not 0 <= rotated <= 1:
            raise UserError(f"crop_object: rotated must lie in 0 ... 1, not {rotated}")
        self.height, self.width = sides
        self.padding, self.scale, self.rotation, self.rotated = padding, scale, rotation, rotated

    def __call__(self, sample: Sample) -> Sample:
        box, padding = _box_of(sample.info), self.padding
        if box is None:
            box, padding = (0.0, 0.0, float(sample.image.shape[2]), float(sample.image.shape[1])), 1.0
        padding *= 1 + self.scale * float(torch.randn(()).clamp(-1, 1))
        turned = float(torch.rand(())) < self.rotated
        angle = self.rotation * float(torch.randn(()).clamp(-2, 2)) if turned else 0.0
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        zoom = min(self.width / (box[2] - box[0]), self.height / (box[3] - box[1])) / padding
        half = self.width / zoom / 2, self.height / zoom / 2
        window = (x - half[0], y - half[1], x + half[0], y + half[1])
        geometry = TurnedWindow(window, (self.height, self.width), False, sample.swaps, angle)  # type: ignore[arg-type]
        return geometry.sample(sample)


def _box_of(info: ImageInfo) -> tuple[float, float, float, float] | None:
    """The box around the object that is shown, in pixels of the sample's image."""
    if info.crop is None:
        return None
    (a, b, tx, c, d, ty), (left, top, right, bottom) = info.affine, info.crop.box
    corners = [(a * x + b * y + tx, c * x + d * y + ty) for x in (left, right) for y in (top, bottom)]
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class TurnedWindow(Geometry):
    """A window of any place and size, perhaps reaching out of the image, turned about its middle.

    Its aspect ratio must be that of ``size``.

    Attributes:
        angle: of the turn in degrees, clockwise as it is seen.
    """

    angle: float = 0.0

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3), from x, y, 1 in the image to x, y in the result, in continuous coordinates."""
        a, tx, d, ty = self.affine
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        turn = np.array(((cos, -sin), (sin, cos)))
        middle = np.array((self.size[1] / 2, self.size[0] / 2))
        linear = turn @ np.diag((a, d))
        return np.column_stack((linear, turn @ (np.array((tx, ty)) - middle) + middle))

    def points(self, points: Tensor) -> Tensor:
        matrix = torch.from_numpy(self.matrix).to(points)
        return points @ matrix[:, :2].T + matrix[:, 2]

    def boxes(self, boxes: Tensor) -> Tensor:
        corners = self.points(boxes[:, (0, 1, 2, 1, 2, 3, 0, 3)].reshape(-1, 4, 2))
        return torch.cat((corners.amin(1), corners.amax(1)), 1)

    def info(self, info: ImageInfo) -> ImageInfo:
        a, b, tx, c, d, ty = info.affine
        old = np.array(((a, b, tx), (c, d, ty), (0.0, 0.0, 1.0)))
        new = self.matrix @ old
        return replace(info, size=self.size, affine=tuple(new.ravel().tolist()))

    def masks(self, masks: InstanceMasks) -> InstanceMasks:
        bitmaps = (self.map(mask.numpy()) for _, chunk in masks.dense_chunks() for mask in chunk)
        crops = ((0, 0, bitmap) if known else None for bitmap, known in zip(bitmaps, masks.annotated.tolist()))
        return InstanceMasks.from_crops(crops, self.size)

    def map(self, values: np.ndarray) -> np.ndarray:
        return self._warped(values, self.matrix, cv2.INTER_NEAREST, 0)

    def target(self, target: Any) -> Any:
        if isinstance(target, SemanticTarget):  # outside the image is no class
            labels = self._warped(target.labels.numpy(), self.matrix, cv2.INTER_NEAREST, IGNORE)
            return SemanticTarget(torch.from_numpy(labels))
        return super().target(target)

    def image(self, image: Tensor, *, antialias_below: float = 1.0) -> Tensor:
        """An image (3, H, W); where it becomes less than half as large, averaged over whole pixels first."""
        pixels, matrix = as_hwc(image), self.matrix
        step = int(1 / self.affine[0])
        if step > 1:
            height, width = pixels.shape[:2]
            small = cv2.resize(
                pixels, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA
            )  # fmt: skip
            matrix = matrix @ np.diag((width / small.shape[1], height / small.shape[0], 1.0))
            pixels = small
        return from_hwc(self._warped(pixels, matrix, cv2.INTER_LINEAR, 0))

    def _warped(self, pixels: np.ndarray, matrix: np.ndarray, interpolation: int, fill: int) -> np.ndarray:
        # OpenCV counts from the middle of the first pixel, not from its corner.
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
        return cv2.warpAffine(pixels, shifted, self.size[::-1], None, interpolation, cv2.BORDER_CONSTANT, (fill,) * 4)
