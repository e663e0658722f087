"""A folder of images beside a folder of label maps."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

import numpy as np
import torch

from visionkit.data.base import Sample, Source
from visionkit.data.images import read_image, read_label_map
from visionkit.errors import DataError
from visionkit.types import IGNORE, ImageInfo, LabelSet, SemanticTarget

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class FolderSource(Source):
    """Images and label maps of the same names in two folders (subfolders too), for the task ``semantic``.

    A label map is a PNG of class indices (8 or 16 bit, or with a palette), or with ``palette`` an RGB image of class
    colours.

    Args:
        images: folder of images.
        masks: folder of label maps; ``None``: there are none, and the source is labelled for no task.
        classes: names of the classes 0, 1, 2 ...; with ``palette`` they may be left out.
        ignore: pixel value that counts for nothing (``None``: every value is a class).
        palette: class name -> [red, green, blue]; other colours count for nothing.
        image_suffix, mask_suffix: how the file names end; what is before it must agree. ``None`` for images: any image
            file, without its ending.

    Raises:
        DataError: a folder is missing or empty, or an image has no label map or the other way round.
    """

    def __init__(
        self,
        *,
        images: str,
        masks: str | None = None,
        classes: list[str] | None = None,
        ignore: int | None = IGNORE,
        palette: dict[str, list[int]] | None = None,
        image_suffix: str | None = None,
        mask_suffix: str = ".png",
    ) -> None:
        self._root, self.ignore = images, ignore
        found = _files(images, (image_suffix,) if image_suffix else IMAGE_ENDINGS)
        self._images = list(found.values())
        self._names = list(found)
        self.labels = {}
        self._masks: list[str] = []
        self._colors: np.ndarray | None = None
        if masks is None:
            return
        names = classes if classes is not None else list(palette or ())
        if not names:
            raise DataError(f"{masks}: label maps need 'classes', the names of the values 0, 1, 2 ...")
        if len(names) > IGNORE:
            raise DataError(f"{masks}: {len(names)} classes; a label map holds at most {IGNORE}")
        if palette is not None:
            if set(palette) != set(names) or any(len(c) != 3 for c in palette.values()):
                raise DataError(f"{masks}: 'palette' must give [red, green, blue] for each of {', '.join(names)}")
            self._colors = np.array([palette[name] for name in names], np.int64) @ (1, 256, 65536)
        maps = _files(masks, (mask_suffix,))
        for name in found:
            if name not in maps:
                raise DataError(f"{found[name]}: has no label map {os.path.join(masks, name + mask_suffix)}")
        for name in maps:
            if name not in found:
                raise DataError(f"{maps[name]}: a label map without an image in {images}")
        self._masks = [maps[name] for name in found]
        self.labels = {
            "semantic": LabelSet(
                tuple(names),
                ids=tuple(range(len(names))),
                things=(False,) * len(names),
                colors=tuple((c[0], c[1], c[2]) for c in map(palette.__getitem__, names)) if palette else (),
            )
        }

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path = self._images[index]
        image = read_image(path)
        size = (image.shape[1], image.shape[2])
        name = os.path.relpath(path, self._root)
        sample = Sample(image, ImageInfo(id=name, path=path, original_size=size, size=size))
        if "semantic" in tasks and self._masks:
            sample.targets["semantic"] = SemanticTarget(torch.from_numpy(self._label_map(self._masks[index], size)))
        return sample

    def _label_map(self, path: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 labels of one file. Raises DataError for another size, or a value that is no class."""
        pixels = read_label_map(path)
        if pixels.shape[:2] != size:
            raise DataError(f"{path}: is {pixels.shape[0]}x{pixels.shape[1]} (height x width), "
                            f"but its image is {size[0]}x{size[1]}")  # fmt: skip
        if self._colors is not None:
            return self._from_colors(path, pixels)
        if pixels.ndim == 3:
            raise DataError(f"{path}: is a colour image, not a map of class indices; colours need a 'palette'")
        classes = len(self.labels["semantic"])
        counts = np.bincount(pixels.ravel(), minlength=classes)
        for value in (np.flatnonzero(counts[classes:]) + classes).tolist():
            if value != self.ignore:
                raise DataError(f"{path}: {counts[value]} pixels of value {value}; the {classes} classes are 0 ... "
                                f"{classes - 1}, and {self.ignore} is ignored")  # fmt: skip
        if self.ignore is None or self.ignore == IGNORE:
            return pixels.astype(np.uint8)
        return np.where(pixels == self.ignore, IGNORE, pixels).astype(np.uint8)

    def _from_colors(self, path: str, pixels: np.ndarray) -> np.ndarray:
        if pixels.ndim != 3:
            raise DataError(f"{path}: is a map of indices, but a 'palette' of colours is given")
        colors = self._colors
        assert colors is not None
        order = np.argsort(colors)
        code = pixels.astype(np.int32) @ np.array((1, 256, 65536), np.int32)
        at = np.searchsorted(colors[order], code).clip(max=len(colors) - 1)
        return np.where(colors[order][at] == code, order[at], IGNORE).astype(np.uint8)

    def describe(self, index: int) -> str:
        return self._images[index]


def _files(folder: str, endings: Collection[str]) -> Mapping[str, str]:
    """Name relative to the folder, without its ending -> path; in the order of the names."""
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder")
    out: dict[str, str] = {}
    for at, folders, files in os.walk(folder):
        folders.sort()
        for file in files:
            ending = next((e for e in endings if file.lower().endswith(e.lower())), None)
            if ending is None or file.startswith("."):
                continue
            path = os.path.join(at, file)
            name = os.path.relpath(path, folder)[: -len(ending)]
            if name in out:
                raise DataError(f"{path}: has the same name as {out[name]}")
            out[name] = path
    if not out:
        raise DataError(f"{folder}: holds no files that end in {', '.join(endings)}")
    return dict(sorted(out.items()))
