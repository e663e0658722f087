"""Images with the pictures that they are to be turned into: in pairs, in two heaps, or painted from label maps."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from torch import Tensor

from visionkit.coco.annotations import CocoAnnotations
from visionkit.data.base import Sample, Source
from visionkit.data.folder import IMAGE_ENDINGS, _files
from visionkit.data.geometry import Geometry
from visionkit.data.images import as_hwc, check_size, from_hwc, read_image
from visionkit.errors import DataError, UserError
from visionkit.plugins import PluginManager
from visionkit.types import IGNORE, ImageInfo, LabelSet, PictureTarget, SemanticTarget

NOTHING = LabelSet(())
"""Pictures have no classes."""


class PairsSource(Source):
    """Images, and beside each the picture that it is to be turned into (Isola et al., CVPR 2017).

    For the tasks ``picture``, and ``unpaired`` for heads that make no use of the pairs but can be judged by them.

    Args:
        images: folder of images; without ``pictures``, of files that hold both halves side by side.
        pictures: folder of pictures, of the same names and sizes as the images.
        reverse: turn pictures (right halves) into images (left halves).

    Raises:
        DataError: a folder is missing or empty, or an image has no picture, or one of another size.
    """

    def __init__(self, *, images: str, pictures: str | None = None, reverse: bool = False) -> None:
        self._root, self._reverse = images, reverse
        self.labels = {"picture": NOTHING, "unpaired": NOTHING}
        found = _files(images, IMAGE_ENDINGS)
        self._images = list(found.values())
        self._pictures: list[str] | None = None
        if pictures is None:
            return
        partners = _files(pictures, IMAGE_ENDINGS)
        for ours, theirs, what in ((found, partners, "picture"), (partners, found, "image")):
            for name in ours:
                if name not in theirs:
                    folder = pictures if what == "picture" else images
                    raise DataError(f"{ours[name]}: has no {what} of the same name in {folder}")
        self._pictures = [partners[name] for name in found]

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path = self._images[index]
        first = read_image(path)
        if self._pictures is None:
            first, second = _halves(first, path)
        elif self._pictures[index] == path or (not self._reverse and not set(self.tasks) & set(tasks)):
            second = first  # the same file, or nobody looks at it
        else:
            picture_path = self._pictures[index]
            second = read_image(picture_path)
            check_size(picture_path, second.shape[1:], first.shape[1:], f"its image {path} is", also=[path])
        image, picture = (second, first) if self._reverse else (first, second)
        return _sample(image, picture, path, os.path.relpath(path, self._root), tasks)

    def describe(self, index: int) -> str:
        return self._images[index]


class UnpairedSource(Source):
    """Images of two domains, in no order (Zhu et al., ICCV 2017), for the task ``unpaired``.

    An image comes with one of the other domain, always the same one. Where there are fewer images than pictures, they
    come again with others, until every picture was seen. A picture is cut in its middle to the shape of the image and
    resized to it.

    Args:
        images: folder of the first domain.
        pictures: folder of the second.
        reverse: turn the second domain into the first.

    Raises:
        DataError: a folder is missing or empty.
    """

    def __init__(self, *, images: str, pictures: str, reverse: bool = False) -> None:
        first, second = (pictures, images) if reverse else (images, pictures)
        self._root = first
        self._images, self._pictures = (list(_files(folder, IMAGE_ENDINGS).values()) for folder in (first, second))
        self._order = np.random.default_rng(0).permutation(len(self._pictures)).tolist()
        self.labels = {"unpaired": NOTHING}

    def __len__(self) -> int:
        return max(len(self._images), len(self._pictures))

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        round_, place = divmod(index, len(self._images))
        path = self._images[place]
        image, name = read_image(path), os.path.relpath(path, self._root)
        picture = image
        if "unpaired" in tasks:
            picture = read_image(self._pictures[self._order[index % len(self._pictures)]])
            picture = _cut_to(picture, (image.shape[1], image.shape[2]))
        return _sample(image, picture, path, f"{name}#{round_}" if round_ else name, tasks, paired=False)

    def describe(self, index: int) -> str:
        return self._images[index % len(self._images)]


class PaintedSource(Source):
    """Images of another source, and their label maps as pictures.

    For the tasks ``picture`` and ``unpaired``; unless in reverse, also for those of the other source.

    Args:
        source: the other source as in a pipeline, ``{name: ..., ...}``, labelled for ``semantic``; ``None``: drawn
            scenes.
        paint: each class in its colour, or the edges between them in white on black.
        reverse: turn paintings into images.

    Attributes:
        painted: the classes of the label maps.

    Raises:
        UserError: the other source is unknown, refuses its arguments, or has no label maps.
    """

    check_args: ClassVar[Mapping[str, Any]] = {"source": {"name": "shapes", "root": "{data}", "images": 8, "size": 96}}

    def __init__(
        self,
        *,
        source: dict[str, Any] | None = None,
        paint: Literal["classes", "edges"] = "classes",
        reverse: bool = False,
    ) -> None:
        self._source = built_source("painted", {"name": "shapes"} if source is None else source)
        if "semantic" not in self._source.tasks:
            raise UserError(f"painted: its source has no label maps (it is labelled for: "
                            f"{', '.join(self._source.tasks) or 'nothing'})")  # fmt: skip
        self._paint, self._reverse = paint, reverse
        self.painted = self._source.labels["semantic"]
        self._colors = colors_of(self.painted)
        self.labels = {"picture": NOTHING, "unpaired": NOTHING} | ({} if reverse else dict(self._source.labels))

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        wanted = {"picture", "unpaired"} & set(tasks)
        others = set() if self._reverse else set(tasks) - wanted
        if not wanted and not self._reverse:
            return self._source.load(index, others)
        sample = self._source.load(index, {*others, "semantic"})
        semantic = sample.targets["semantic"]
        assert isinstance(semantic, SemanticTarget)
        labels = semantic.labels.numpy()
        painting = from_hwc(edges(labels) if self._paint == "edges" else self._colors[labels])
        image, picture = (painting, sample.image) if self._reverse else (sample.image, painting)
        targets = {task: target for task, target in sample.targets.items() if task in others}
        targets |= dict.fromkeys(wanted, PictureTarget(picture, semantic if self._reverse else None))
        return replace(sample, image=image, targets=targets)

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def coco_ground_truth(self) -> CocoAnnotations | dict[str, Any] | None:
        return None if self._reverse else self._source.coco_ground_truth()

    def problems(self) -> list[str]:
        return self._source.problems()


def colors_of(labels: LabelSet) -> np.ndarray:
    """(256, 3) uint8: the colour of every label, its own or one of a circle of hues; ``IGNORE`` is black."""
    colors = np.zeros((256, 3), np.uint8)
    hues = np.arange(len(labels)) * 111 % 180  # turns of the golden angle, in OpenCV's half degrees
    circle = np.stack((hues, np.full_like(hues, 180), np.full_like(hues, 230)), -1).astype(np.uint8)
    if len(labels):
        colors[: len(labels)] = np.array(labels.colors) if labels.colors else _rgb(circle)
    colors[IGNORE] = 0
    return colors


def edges(labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8, white on both sides of every border between two labels (H, W)."""
    shape = np.ones((3, 3), np.uint8)
    border = cv2.dilate(labels.astype(np.uint8), shape) != cv2.erode(labels.astype(np.uint8), shape)
    return np.repeat((border * 255).astype(np.uint8)[..., None], 3, 2)


def _rgb(hsv: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def built_source(who: str, config: dict[str, Any]) -> Source:
    """The source that a mapping with ``name`` describes; ``who`` asks for it."""
    if not isinstance(name := config.get("name"), str):
        raise UserError(f"{who}: 'source' must say which one, as {{name: folder, ...}}, not {config}")
    try:
        source = PluginManager().load("source", name)(**{key: v for key, v in config.items() if key != "name"})
    except TypeError as error:
        raise UserError(f"{who}: source '{name}': {error}") from None
    if not isinstance(source, Source):
        raise UserError(f"{who}: '{name}' is a {type(source).__name__}, not a Source")
    return source


def _halves(both: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """The left and the right half of an image."""
    width = both.shape[2]
    if width % 2:
        raise DataError(f"{path}: is {_size(both)} (height x width); two pictures side by side have an even width")
    pixels = as_hwc(both)
    left, right = pixels[:, : width // 2], pixels[:, width // 2 :]
    return from_hwc(np.ascontiguousarray(left)), from_hwc(np.ascontiguousarray(right))


def _cut_to(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a picture, of the shape of (height, width) and resized to it."""
    height, width = picture.shape[1:]
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    return Geometry((left, top, left + columns, top + rows), size).image(picture, antialias_below=1.0)


def _sample(
    image: Tensor, picture: Tensor, path: str, name: str, tasks: Collection[str], *, paired: bool = True
) -> Sample:
    size = (image.shape[1], image.shape[2])
    targets = dict.fromkeys({"picture", "unpaired"} & set(tasks), PictureTarget(picture, paired=paired))
    return Sample(image, ImageInfo(id=name, path=path, original_size=size, size=size), {**targets})


def _size(image: Tensor) -> str:
    return f"{image.shape[1]}x{image.shape[2]}"
