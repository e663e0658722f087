"""The folders of PASCAL VOC, Cityscapes, ADE20K and CamVid, as they are unpacked."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from visionkit.data.base import Sample, Source
from visionkit.data.folder import _files as files_below
from visionkit.data.images import check_size, image_header, read_image, read_label_map
from visionkit.data.label_maps import Palette, ValueTable, palette_problems
from visionkit.data.segmentation_classes import ADE20K, CAMVID, CAMVID_COLORS, CITYSCAPES, VOC
from visionkit.errors import DataError
from visionkit.types import IGNORE, ImageInfo, LabelSet, SemanticTarget, Target

CAMVID_VOID = (0, 0, 0)


@dataclass(frozen=True)
class Item:
    """An image, its label map, and its name in the data set."""

    name: str
    image: str
    labels: str


class _LabelMaps(Source):
    """Images with a label map each.

    Args:
        items: which.
        labels: the classes; ``ids`` are the values of their pixels.
        ignored: values that count for nothing; any other value is an error.
    """

    def __init__(self, items: list[Item], labels: LabelSet, ignored: Collection[int]) -> None:
        self._items = items
        self.labels = {"semantic": labels}
        table = dict.fromkeys(ignored, IGNORE) | {int(value): label for label, value in enumerate(labels.ids)}
        others = sorted(set(ignored) - set(labels.ids))
        allowed = (
            f"the classes are {min(labels.ids)} ... {max(labels.ids)}, and "
            f"{', '.join(map(str, others))} {'is' if len(others) == 1 else 'are'} ignored"
        )
        self._lookup: ValueTable | Palette = ValueTable(table, allowed)

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        item = self._items[index]
        image = read_image(item.image)
        size = (image.shape[1], image.shape[2])
        sample = Sample(image, ImageInfo(item.name, item.image, size, size))
        return replace(sample, targets=self._targets(item, tasks, size))

    def targets(self, index: int, tasks: Collection[str]) -> dict[str, Target]:
        item = self._items[index]
        return self._targets(item, tasks, image_header(item.image).size)

    def _targets(self, item: Item, tasks: Collection[str], size: tuple[int, int]) -> dict[str, Target]:
        if "semantic" not in tasks:
            return {}
        pixels = read_label_map(item.labels)
        check_size(item.labels, pixels.shape[:2], size, "its image is", also=[item.image])
        if isinstance(self._lookup, Palette) and pixels.ndim != 3:
            raise DataError(f"{item.labels}: is not an image of class colors")
        if isinstance(self._lookup, ValueTable) and (pixels.ndim != 2 or pixels.dtype != np.uint8):
            raise DataError(f"{item.labels}: is not a map of class indices of 8 bits")
        return {"semantic": SemanticTarget(torch.from_numpy(self._lookup(item.labels, pixels)))}

    def describe(self, index: int) -> str:
        return self._items[index].image


class VocSource(_LabelMaps):
    """PASCAL VOC: ``JPEGImages``, ``SegmentationClass`` and the lists in ``ImageSets/Segmentation``.

    Args:
        root: the folder of a year, ``VOCdevkit/VOC2012``.
        split: name of the list.
        masks: folder of the label maps; ``SegmentationClassAug`` is that of the further annotations of SBD.

    Raises:
        DataError: a folder, the list, or one of its images is missing.
    """

    def __init__(self, *, root: str, split: str = "train", masks: str = "SegmentationClass") -> None:
        file = os.path.join(root, "ImageSets", "Segmentation", f"{split}.txt")
        try:
            with open(file, encoding="utf-8") as lines:
                names = lines.read().split()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        if not names:
            raise DataError(f"{file}: lists no images")
        items = [
            Item(name, os.path.join(root, "JPEGImages", f"{name}.jpg"), os.path.join(root, masks, f"{name}.png"))
            for name in names
        ]
        for item in items:
            for path in (item.image, item.labels):
                if not os.path.isfile(path):
                    raise DataError(f"{path}: no such file; {file} lists it")
        super().__init__(items, VOC, ignored=[255])


class CityscapesSource(_LabelMaps):
    """Cityscapes: ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY``; its ``labelIds`` become the 19 classes that it
    is judged by, and all others count for nothing.

    Args:
        root: the folder that holds the two.
        split: ``train``, ``val``, or any other.
        quality: ``gtFine``, or ``gtCoarse`` for the coarse annotations.

    Raises:
        DataError: a folder is missing, or an image has no label map.
    """

    def __init__(self, *, root: str, split: str = "train", quality: Literal["gtFine", "gtCoarse"] = "gtFine") -> None:
        items = _pairs(
            (os.path.join(root, "leftImg8bit", split), "_leftImg8bit.png"),
            (os.path.join(root, quality, split), f"_{quality}_labelIds.png"),
        )
        super().__init__(items, CITYSCAPES, ignored=[*range(34), 255])


class Ade20kSource(_LabelMaps):
    """ADE20K's scene parsing: ``images/SPLIT`` and ``annotations/SPLIT``; 150 classes, and 0 counts for nothing.

    Args:
        root: the folder that holds the two, ``ADEChallengeData2016``.
        split: ``training`` or ``validation``.

    Raises:
        DataError: a folder is missing, or an image has no label map.
    """

    def __init__(self, *, root: str, split: Literal["training", "validation"] = "training") -> None:
        items = _pairs(
            (os.path.join(root, "images", split), ".jpg"), (os.path.join(root, "annotations", split), ".png")
        )
        super().__init__(items, ADE20K, ignored=[0])


class CamvidSource(_LabelMaps):
    """CamVid in eleven classes: ``SPLIT`` with ``SPLITannot``, maps of indices where 11 counts for nothing, or with
    ``SPLIT_labels``, the 32 colours of the authors in files that end in ``_L.png``.

    Args:
        root: the folder that holds them.
        split: ``train``, ``val`` or ``test``.

    Raises:
        DataError: a folder is missing, or an image has no label map.
    """

    def __init__(self, *, root: str, split: str = "train") -> None:
        images, indices = os.path.join(root, split), os.path.join(root, f"{split}annot")
        colored = not os.path.isdir(indices)
        masks = (os.path.join(root, f"{split}_labels"), "_L.png") if colored else (indices, ".png")
        super().__init__(_pairs((images, ".png"), masks), CAMVID, ignored=[11, 255])
        if colored:
            groups = [*CAMVID_COLORS.values(), [CAMVID_VOID]]
            labels = [*range(len(CAMVID_COLORS)), IGNORE]
            colors = [(color, label) for group, label in zip(groups, labels) for color in group]
            self._lookup = Palette([color for color, _ in colors], [label for _, label in colors], CAMVID.names)

    def problems(self) -> list[str]:
        paths = [item.labels for item in self._items]
        return palette_problems(self._lookup, paths, paths[0]) if isinstance(self._lookup, Palette) else []


def _pairs(images: tuple[str, str], masks: tuple[str, str]) -> list[Item]:
    """Files of the same names in two folders, subfolders too, each with the ending of its files."""
    found, maps = files_below(images[0], images[1:]), files_below(masks[0], masks[1:])
    for name, path in found.items():
        if name not in maps:
            raise DataError(f"{path}: has no label map {os.path.join(masks[0], name + masks[1])}")
    return [Item(name, path, maps[name]) for name, path in found.items()]
