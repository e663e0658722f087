"""COCO panoptic annotations: a JSON and a folder of PNGs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from visionkit.data.annotations import category_labels, column, first_twice, read_json
from visionkit.data.images import inside, read_label_map
from visionkit.errors import DataError
from visionkit.layers.segments import from_rgb, renumber
from visionkit.types import IGNORE, LabelSet, PanopticTarget


class PanopticMaps:
    """Segments from the COCO panoptic format: that of a pixel is ``R + 256 G + 65536 B``, where 0 is void.

    Args:
        annotations: the JSON file.
        masks: the folder of PNGs; ``None``: beside the JSON, of the same name.

    Raises:
        DataError: the files contradict themselves.
    """

    labels: LabelSet
    images: list[dict[str, Any]]

    def __init__(self, annotations: str, masks: str | None = None) -> None:
        self.path = annotations
        self.masks = masks if masks is not None else os.path.splitext(annotations)[0]
        if not os.path.isdir(self.masks):
            raise DataError(f"{self.masks}: no such folder of panoptic PNGs (for {annotations})")
        data = read_json(annotations, lists=("images", "annotations", "categories"))
        self.images = data["images"]
        self.labels = category_labels(annotations, data["categories"])
        if len(self.labels) > IGNORE:
            raise DataError(f"{annotations}: {len(self.labels)} categories; a label map holds at most {IGNORE}")
        entries = data["annotations"]
        images = column(annotations, entries, "annotation", "image_id")
        if (twice := first_twice(images)) is not None:
            raise DataError(f"{annotations}: image {twice} has two panoptic annotations")
        self.row_of = {image: row for row, image in enumerate(images)}
        self.names = [inside(self.masks, name, annotations)
                      for name in column(annotations, entries, "annotation", "file_name")]  # fmt: skip
        segments = column(annotations, entries, "annotation", "segments_info")
        self._starts = np.concatenate(([0], np.cumsum([len(s) for s in segments], dtype=np.int64)))
        self._segments = np.array([s["id"] for own in segments for s in own], np.int64)
        self._crowd = np.array([bool(s.get("iscrowd", 0)) for own in segments for s in own], bool)
        label_of = {number: label for label, number in enumerate(self.labels.ids)}
        classes = np.array([label_of.get(s["category_id"], -1) for own in segments for s in own], np.int64)
        if (classes < 0).any():
            at = int(np.argmax(classes < 0))
            image = images[int(np.searchsorted(self._starts, at, "right")) - 1]
            raise DataError(f"{annotations}: segment {self._segments[at]} of image {image} has a category_id that is "
                            "not in categories")  # fmt: skip
        self._classes = classes

    def load(self, image: Any, size: tuple[int, int]) -> PanopticTarget | None:
        """The segments of an image by its id, ``None`` where it is not annotated. Those without a pixel are left out.

        Raises:
            DataError: the PNG is missing, not of this (height, width), or contradicts the JSON; the message names it.
        """
        if image not in self.row_of:
            return None
        row = self.row_of[image]
        path = self.names[row]
        pixels = read_label_map(path)
        if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[:2] != size:
            raise DataError(f"{path}: a panoptic PNG of shape {pixels.shape} for an image of {size[0]}x{size[1]} RGB")
        ids = from_rgb(pixels)
        mine = slice(self._starts[row], self._starts[row + 1])
        segments = renumber(ids, self._segments[mine])
        if (unknown := segments < 0).any():
            raise DataError(f"{path}: segment {ids[unknown][0]} is not in the segments_info of image {image}")
        return PanopticTarget(
            segments=torch.from_numpy(segments),
            labels=torch.from_numpy(self._classes[mine].copy()),
            crowd=torch.from_numpy(self._crowd[mine].copy()),
            ids=torch.from_numpy(self._segments[mine].copy()),
        ).seen()
