"""A folder of images beside a folder of label maps."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from visionkit.data.base import Sample, Source
from visionkit.data.images import check_size, image_header, read_image, read_label_map
from visionkit.data.label_maps import (
    Palette,
    ValueTable,
    check_names,
    in_words,
    inspect_binary_masks,
    palette_problems,
    value_labels,
)
from visionkit.errors import DataError
from visionkit.numbers import Count
from visionkit.types import IGNORE, ImageInfo, LabelSet, SemanticTarget, Target

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class FolderSource(Source):
    """Images and label maps of the same names in two folders (subfolders too), for the task ``semantic``.

    A label map is an image of class indices (8 or 16 bit, or with a palette), or with ``palette`` an RGB image of class
    colors. Both are rotated as their EXIF orientation says, and must then have the same size.

    In masks of two classes, 255 is the second class if none of the masks holds the value 1, else it is ignored. This is
    decided once for the whole folder, from a sample; ``visionkit validate`` says what was decided. ``ignore`` or
    ``values`` make it explicit.

    Args:
        images: folder of images.
        masks: folder of label maps; ``None``: there are none, and the source is labelled for no task.
        classes: names of the classes 0, 1, 2 ...; with ``palette`` or ``values`` they may be left out.
        ignore: pixel value that is ignored. ``auto``: 255, unless it is a class (see above); ``None``: every value is a
            class.
        palette: class name -> [red, green, blue]. Pixels of other colors are ignored where they are few (antialiased
            borders), and counted.
        ignore_colors: with ``palette``, further colors [red, green, blue] that are ignored, however frequent they are.
        values: pixel value -> class name, or null for a value that is ignored, such as ``{0: background, 255: swan}``.
        image_suffix, mask_suffix: how the file names end; what is before it must agree. ``None`` for images: any image
            file, without its ending.

    Raises:
        DataError: a folder is missing or empty, an image has no label map or the other way round, ``values`` or
            ``palette`` contradict the classes, or the label maps contradict them.
    """

    def __init__(
        self,
        *,
        images: str,
        masks: str | None = None,
        classes: list[str] | None = None,
        ignore: Count | Literal["auto"] | None = "auto",
        palette: dict[str, list[int]] | None = None,
        ignore_colors: list[list[int]] | None = None,
        values: dict[int, str | None] | None = None,
        image_suffix: str | None = None,
        mask_suffix: str = ".png",
    ) -> None:
        self._root = images
        files = _files(images, (image_suffix,) if image_suffix else IMAGE_ENDINGS)
        self._images = list(files.values())
        self.labels = {}
        self._masks: list[str] = []
        self._problems: list[str] = []
        if masks is None:
            return
        if palette is not None and values is not None:
            raise DataError(f"{masks}: 'palette' and 'values' exclude each other")
        if values is not None:
            names, table = value_labels(values, classes, masks)
        else:
            names = classes if classes is not None else list(palette or ())
        if not names:
            raise DataError(f"{masks}: label maps need 'classes', the names of the values 0, 1, 2 ...")
        check_names(names, masks)
        self._masks = _partners(files, _files(masks, (mask_suffix,)), images, masks, mask_suffix)
        self._lookup: Palette | ValueTable
        if palette is not None:
            self._lookup = _palette(palette, names, ignore_colors or [], masks)
            self._problems = palette_problems(self._lookup, self._masks, masks)
        elif values is not None:
            self._lookup = _table(table, names, ignore, masks)
        else:
            self._lookup = self._indices(names, ignore, masks)
        self.labels = {
            "semantic": LabelSet(
                tuple(names),
                ids=tuple(range(len(names))),
                things=(False,) * len(names),
                colors=tuple((c[0], c[1], c[2]) for c in map(palette.__getitem__, names)) if palette else (),
            )
        }

    def _indices(self, names: list[str], ignore: int | str | None, where: str) -> ValueTable:
        """The table of the values 0, 1, 2 ..., and of 255 in binary masks."""
        classes = len(names)
        table = dict(zip(range(classes), range(classes)))
        known = f"the {classes} classes are 0 ... {classes - 1}"
        if ignore == "auto" and classes <= 2:
            masks = inspect_binary_masks(self._masks, names, where)
            self._problems = [masks.note] if masks.note else []
            if masks.foreground:
                known = f"0 is '{names[0]}', and 255 is '{names[1]}', because other masks do not hold the value 1"
                return ValueTable({0: 0, IGNORE: 1}, f"{known} (set ignore: 255, or values: {{0: {names[0]}, ...}})")
            if masks.foreground is None:
                return ValueTable(table, f"{known}, and no other mask holds 255 (set ignore: 255, or values: ...)")
        if ignore == "auto":
            ignore = IGNORE
        if ignore is None:
            return ValueTable(table, f"{known}, and none is ignored")
        hint = "" if classes > 2 else f" (other values are listed as values: {{0: {names[0]}, VALUE: {names[-1]}}})"
        return ValueTable(table | {int(ignore): IGNORE}, f"{known}, and {ignore} is ignored{hint}")

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path = self._images[index]
        image = read_image(path)
        size = (image.shape[1], image.shape[2])
        name = os.path.relpath(path, self._root)
        sample = Sample(image, ImageInfo(id=name, path=path, original_size=size, size=size))
        return replace(sample, targets=self._targets(index, tasks, size))

    def targets(self, index: int, tasks: Collection[str]) -> dict[str, Target]:
        return self._targets(index, tasks, image_header(self._images[index]).size)

    def _targets(self, index: int, tasks: Collection[str], size: tuple[int, int]) -> dict[str, Target]:
        if "semantic" not in tasks or not self._masks:
            return {}
        path = self._masks[index]
        pixels = read_label_map(path)
        check_size(path, pixels.shape[:2], size, "its image is", also=[self._images[index]])
        if pixels.ndim == 3 and isinstance(self._lookup, ValueTable):
            raise DataError(f"{path}: is a colour image, not a map of class indices; colours need a 'palette'")
        if pixels.ndim == 2 and isinstance(self._lookup, Palette):
            raise DataError(f"{path}: is a map of indices, but a 'palette' of colours is given")
        return {"semantic": SemanticTarget(torch.from_numpy(self._lookup(path, pixels)))}

    def problems(self) -> list[str]:
        return list(self._problems)

    def describe(self, index: int) -> str:
        return self._images[index]


def _palette(
    palette: Mapping[str, Sequence[int]], names: Sequence[str], ignored: Sequence[Sequence[int]], where: str
) -> Palette:
    for name, color in palette.items():
        if len(color) != 3 or not all(0 <= value <= 255 for value in color):
            raise DataError(
                f"{where}: 'palette' gives '{name}' the color {color}; it must be [red, green, blue] in 0 ... 255"
            )
    if set(palette) != set(names):
        raise DataError(f"{where}: 'palette' must give [red, green, blue] for each of {', '.join(names)}")
    colors = [*(palette[name] for name in names), *ignored]
    hint = "; store label maps without lossy compression, and list colors that are to be ignored in 'ignore_colors'"
    return Palette(colors, [*range(len(names)), *[IGNORE] * len(ignored)], names, hint)


def _table(table: dict[int, int], names: Sequence[str], ignore: int | str | None, where: str) -> ValueTable:
    """The table of ``values``, with the value that ``ignore`` adds to it."""
    if isinstance(ignore, int) and table.get(ignore, IGNORE) != IGNORE:
        raise DataError(f"{where}: 'values' gives {ignore} the class '{names[table[ignore]]}', and 'ignore' ignores it")
    added = {IGNORE: IGNORE} if ignore == "auto" else {int(ignore): IGNORE} if ignore is not None else {}
    complete = added | table
    return ValueTable(complete, in_words(complete, names))


def _partners(files: Mapping[str, str], maps: Mapping[str, str], images: str, masks: str, suffix: str) -> list[str]:
    """The label map of every image."""
    for name in files:
        if name not in maps:
            raise DataError(f"{files[name]}: has no label map {os.path.join(masks, name + suffix)}")
    for name in maps:
        if name not in files:
            raise DataError(f"{maps[name]}: a label map without an image in {images}")
    return [maps[name] for name in files]


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
