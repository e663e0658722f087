"""COCO panoptic annotations (a JSON and a folder of PNGs) as semantic label maps."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from visionkit.data.annotations import category_labels, column, first_twice, read_json
from visionkit.data.images import inside, read_label_map
from visionkit.errors import DataError
from visionkit.types import IGNORE, LabelSet, SemanticTarget


class PanopticMaps:
    """Semantic maps from the COCO panoptic format: a pixel's segment is ``R + 256 G + 65536 B``, its class that of the
    segment; segment 0 is void and becomes ``IGNORE``.

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
        label_of = {number: label for label, number in enumerate(self.labels.ids)}
        classes = np.array([label_of.get(s["category_id"], -1) for own in segments for s in own], np.int64)
        if (classes < 0).any():
            at = int(np.argmax(classes < 0))
            image = images[int(np.searchsorted(self._starts, at, "right")) - 1]
            raise DataError(f"{annotations}: segment {self._segments[at]} of image {image} has a category_id that is "
                            "not in categories")  # fmt: skip
        self._classes = classes.astype(np.uint8)

    def load(self, image: Any, size: tuple[int, int]) -> SemanticTarget | None:
        """The label map of an image by its id, ``None`` where it has none. Raises DataError that names the PNG."""
        if image not in self.row_of:
            return None
        row = self.row_of[image]
        path = self.names[row]
        pixels = read_label_map(path)
        if pixels.ndim != 3 or pixels.shape[:2] != size:
            raise DataError(f"{path}: a panoptic PNG of shape {pixels.shape} for an image of {size[0]}x{size[1]} RGB")
        segment = pixels.astype(np.int32) @ np.array((1, 256, 65536), np.int32)
        mine = slice(self._starts[row], self._starts[row + 1])
        known = np.concatenate(([0], self._segments[mine]))
        order = np.argsort(known)
        at = np.searchsorted(known[order], segment).clip(max=len(known) - 1)
        if (unknown := known[order][at] != segment).any():
            raise DataError(f"{path}: segment {segment[unknown][0]} is not in the segments_info of image {image}")
        table = np.concatenate(([IGNORE], self._classes[mine])).astype(np.uint8)[order]
        return SemanticTarget(torch.from_numpy(table[at]))
