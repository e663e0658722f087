"""A folder of folders, one a class."""

from __future__ import annotations

import os
from collections.abc import Collection

import torch

from visionkit.data.base import Sample, Source
from visionkit.data.folder import IMAGE_ENDINGS, _files
from visionkit.data.images import read_image
from visionkit.errors import DataError
from visionkit.types import ClassTarget, ImageInfo, LabelSet


class ClassFolderSource(Source):
    """Images in folders that are named after what they show, for the task ``class``.

    Args:
        images: the folder of these folders.

    Raises:
        DataError: it is missing, or one of its folders holds no images.
    """

    def __init__(self, *, images: str) -> None:
        if not os.path.isdir(images):
            raise DataError(f"{images}: no such folder")
        names = sorted(entry.name for entry in os.scandir(images) if entry.is_dir() and not entry.name.startswith("."))
        if not names:
            raise DataError(f"{images}: holds no folders; it must hold one for each class")
        self._root = images
        self._images = [
            (path, label)
            for label, name in enumerate(names)
            for path in _files(os.path.join(images, name), IMAGE_ENDINGS).values()
        ]
        self.labels = {"class": LabelSet(tuple(names))}

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path, label = self._images[index]
        image = read_image(path)
        size = (image.shape[1], image.shape[2])
        sample = Sample(image, ImageInfo(os.path.relpath(path, self._root), path, size, size))
        if "class" in tasks:
            sample.targets["class"] = ClassTarget(torch.tensor(label))
        return sample

    def describe(self, index: int) -> str:
        return self._images[index][0]
