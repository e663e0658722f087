"""Label maps of background, objects and their borders, from the masks of instances."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np
import torch

from visionkit.coco.annotations import CocoAnnotations
from visionkit.data.base import Sample, Source
from visionkit.data.pairs import built_source
from visionkit.errors import UserError
from visionkit.numbers import Positive
from visionkit.types import IGNORE, InstanceTarget, LabelSet, SemanticTarget

BACKGROUND, OBJECT, BORDER = range(3)


class OutlinesSource(Source):
    """Images of another source, its instances as a label map: background, objects, and a border inside each object.

    Objects that touch stay apart in such a map, so that a semantic head can be learnt from and judged by it, and its
    objects counted (as DCAN has it, Chen et al., CVPR 2016). Where objects overlap, the later one is on top; crowds
    count for nothing. The other tasks of the source are offered too.

    Args:
        source: the other source as in a pipeline, ``{name: ..., ...}``, labelled for ``masks``; ``None``: drawn scenes.
        width: of the borders, in pixels of the image.
        classes: names of the three classes.

    Raises:
        UserError: the other source is unknown, refuses its arguments, or has no masks; no width, not three classes.
    """

    check_args: ClassVar[Mapping[str, Any]] = {"source": {"name": "shapes", "root": "{data}", "images": 8, "size": 96}}

    def __init__(
        self,
        *,
        source: dict[str, Any] | None = None,
        width: Positive = 2,
        classes: tuple[str, str, str] = ("background", "object", "border"),
    ) -> None:
        if width < 1:
            raise UserError(f"outlines: a width of {width}; it must be at least one pixel")
        if len(set(classes)) != 3:
            raise UserError(f"outlines: 'classes' must be three names, not {', '.join(classes)}")
        self._source = built_source("outlines", {"name": "shapes"} if source is None else source)
        if "masks" not in self._source.tasks:
            raise UserError(f"outlines: its source has no masks (it is labelled for: "
                            f"{', '.join(self._source.tasks) or 'nothing'})")  # fmt: skip
        self._width = width
        own = LabelSet(tuple(classes), ids=(0, 1, 2), things=(False, False, False))
        self.labels = {**self._source.labels, "semantic": own}

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        if "semantic" not in tasks:
            return self._source.load(index, tasks)
        others = set(tasks) - {"semantic"}
        sample = self._source.load(index, {*others, "masks"})
        targets = {task: target for task, target in sample.targets.items() if task in others}
        instances = sample.targets.get("masks")
        if isinstance(instances, InstanceTarget):  # else this image has no masks
            targets["semantic"] = SemanticTarget(torch.from_numpy(self._map(instances, sample.info.original_size)))
        return replace(sample, targets=targets)

    def _map(self, instances: InstanceTarget, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 labels."""
        labels = np.full(size, BACKGROUND, np.uint8)
        assert instances.masks is not None
        crops, windows = instances.masks.crops(), instances.masks.windows.tolist()
        for crop, (left, top, width, height), crowd in zip(crops, windows, instances.crowd.tolist()):
            mask = crop.numpy()
            part = labels[top : top + height, left : left + width]
            if crowd:
                part[mask > 0] = IGNORE
            elif width:
                # A row or column of background where the image goes on, so that all sides of the object are seen.
                above, before = min(1, top), min(1, left)
                below, after = min(1, size[0] - top - height), min(1, size[1] - left - width)
                framed = cv2.copyMakeBorder(mask, above, below, before, after, cv2.BORDER_CONSTANT, value=0)
                part[mask > 0] = BORDER
                part[inside(framed, self._width)[above : above + height, before : before + width] > 0] = OBJECT
        return labels

    def describe(self, index: int) -> str:
        return self._source.describe(index)

    def coco_ground_truth(self) -> CocoAnnotations | dict[str, Any] | None:
        return self._source.coco_ground_truth()

    def problems(self) -> list[str]:
        return self._source.problems()


def inside(mask: np.ndarray, width: int) -> np.ndarray:
    """(H, W) of 0 and 1 without the pixels at most ``width`` steps, diagonal ones too, from a 0. The edge of the image
    is no border."""
    return cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=width)
