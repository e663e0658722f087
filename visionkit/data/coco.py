"""COCO data sets: boxes, masks and keypoints from one JSON, panoptic segments and semantic maps from another."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionkit.data.annotations import (
    Annotations,
    OnError,
    Report,
    category_labels,
    column,
    first_twice,
    keypoint_names,
    read_annotations,
    read_json,
)
from visionkit.data.base import Sample, Source
from visionkit.data.images import inside, read_image
from visionkit.data.panoptic import PanopticMaps
from visionkit.errors import DataError
from visionkit.types import ImageInfo, InstanceMasks, InstanceTarget, Target

INSTANCE_TASKS = ("boxes", "masks", "keypoints")
MAP_TASKS = ("semantic", "panoptic")


class CocoSource(Source):
    """Images with COCO annotations.

    An image without objects is a negative: annotated, and nothing is there. Boxes that reach outside their image are
    clipped, boxes without area are left out; :meth:`problems` counts both. Categories with different keypoints share
    one list of all their names; a category's own keypoints sit at their names' places, the others are not labelled.
    Categories without keypoints are none of the task ``keypoints``.

    Args:
        images: folder that the file names are relative to.
        annotations: instance or keypoint JSON; may be left out where ``panoptic`` is given.
        tasks: some of ``boxes``, ``masks``, ``keypoints``, ``semantic``, ``panoptic``; ``None``: all that the files
            hold.
        panoptic: panoptic JSON, for the tasks ``semantic`` and ``panoptic``.
        panoptic_masks: its folder of PNGs; ``None``: beside the JSON, of the same name.
        on_error: ``"skip"`` leaves out annotations that contradict the file and images that are missing, and counts
            them; ``"fail"`` stops at the first.

    Raises:
        DataError: the files are missing or wrong; the message names file and id.
    """

    def __init__(
        self,
        *,
        images: str,
        annotations: str | None = None,
        tasks: list[str] | None = None,
        panoptic: str | None = None,
        panoptic_masks: str | None = None,
        on_error: OnError = "fail",
    ) -> None:
        if annotations is None and panoptic is None:
            raise DataError("a COCO source needs 'annotations', 'panoptic' or both")
        if not os.path.isdir(images):
            raise DataError(f"{images}: no such folder of images")
        self.root, self.path = images, annotations or panoptic or ""
        self._report = Report(self.path, on_error)
        self._maps = PanopticMaps(panoptic, panoptic_masks) if panoptic is not None else None
        self._objects: Annotations | None = None
        self._swaps: tuple[tuple[int, int], ...] = ()
        self._with_keypoints: Tensor | None = None  # label -> label among the categories that have keypoints, or -1
        if annotations is not None:
            data = read_json(annotations, lists=("images", "annotations", "categories"))
            self._read_images(data["images"])
            self._read_objects(data, self._tasks(data, tasks))
        else:
            assert self._maps is not None
            self._read_images(self._maps.images)
            self.labels = dict.fromkeys(self._tasks({}, tasks), self._maps.labels)

    def _tasks(self, data: dict[str, Any], wanted: list[str] | None) -> list[str]:
        """The tasks asked for, which the files must hold; of ``None``, all that they hold."""
        held = []
        if "annotations" in data:
            held.append("boxes")
            if any(a.get("segmentation") for a in data["annotations"]):
                held.append("masks")
            if keypoint_names(data["categories"]) and any(a.get("keypoints") for a in data["annotations"]):
                held.append("keypoints")
        if self._maps is not None:
            held += MAP_TASKS
        for task in wanted or ():
            if task not in held:
                raise DataError(f"{self.path}: holds nothing for the task '{task}' (it holds: {', '.join(held)})")
        return held if wanted is None else [task for task in held if task in wanted]

    def _read_images(self, entries: list[dict[str, Any]]) -> None:
        """Ids, names and sizes of the images that are there."""
        path = self.path
        ids = column(path, entries, "image", "id")
        if (twice := first_twice(ids)) is not None:
            raise DataError(f"{path}: image id {twice} is given twice")
        names = column(path, entries, "image", "file_name")
        for name in names:
            inside(self.root, name, path)
        sides = [column(path, entries, "image", "height"), column(path, entries, "image", "width")]
        try:
            sizes = np.array(sides, np.int64)
        except (ValueError, TypeError):
            raise DataError(f"{path}: the height and width of every image must be whole numbers") from None
        there = {folder: _names_in(os.path.join(self.root, folder)) for folder in {os.path.dirname(n) for n in names}}
        missing = np.array([os.path.basename(n) not in there[os.path.dirname(n)] for n in names], bool)
        keep = self._report.wrong(
            missing, ids, "their image file is missing",
            lambda row: f"image {ids[row]}: no such file {os.path.join(self.root, names[row])} "
                        f"({int(missing.sum())} of {len(names)} images are missing)",
        )  # fmt: skip
        rows = np.flatnonzero(keep)
        self._row_of = dict.fromkeys(ids, -2) | {ids[row]: i for i, row in enumerate(rows)}
        self._ids = [ids[row] for row in rows]
        self._names = [names[row] for row in rows]
        self._sizes = sizes.T[rows]

    def _read_objects(self, data: dict[str, Any], tasks: list[str]) -> None:
        plain = category_labels(self.path, data["categories"])
        self.labels = {task: plain for task in tasks if task in ("boxes", "masks")}
        if "keypoints" in tasks:
            with_keypoints = [category for category in data["categories"] if category.get("keypoints")]
            self.labels["keypoints"] = category_labels(self.path, with_keypoints, keypoints=True)
            self._swaps = self.labels["keypoints"].swaps
            if len(with_keypoints) < len(plain):
                names = self.labels["keypoints"].names
                self._with_keypoints = torch.tensor([names.index(n) if n in names else -1 for n in plain.names])
        if self._maps is not None:
            self.labels |= {task: self._maps.labels for task in MAP_TASKS if task in tasks}
        if any(task in INSTANCE_TASKS for task in tasks):
            self._objects = read_annotations(
                data["annotations"], self._row_of, self._sizes, data["categories"], tasks, self._report
            )

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path = os.path.join(self.root, self._names[index])
        image = read_image(path)
        size = (int(self._sizes[index, 0]), int(self._sizes[index, 1]))
        if tuple(image.shape[1:]) != size:
            raise DataError(f"{path}: is {image.shape[1]}x{image.shape[2]} (height x width), but {self.path} says "
                            f"{size[0]}x{size[1]} for image {self._ids[index]}")  # fmt: skip
        info = ImageInfo(id=self._ids[index], path=path, original_size=size, size=size)
        return Sample(image, info, self.targets(index, tasks), self._swaps if "keypoints" in tasks else ())

    def image_id(self, index: int) -> int | str:
        return self._ids[index]

    def targets(self, index: int, tasks: Collection[str]) -> dict[str, Target]:
        size = (int(self._sizes[index, 0]), int(self._sizes[index, 1]))
        targets: dict[str, Target] = {}
        instances = [task for task in INSTANCE_TASKS if task in tasks and task in self.labels]
        if instances:
            target = self._instances(index, instances, size)
            targets |= dict.fromkeys(instances, target)
            if "keypoints" in instances and self._with_keypoints is not None:
                targets["keypoints"] = replace(target, masks=None).relabel(self._with_keypoints)
        maps = [task for task in MAP_TASKS if task in tasks and task in self.labels]
        if maps and self._maps is not None and (segments := self._maps.load(self._ids[index], size)) is not None:
            targets |= {task: segments if task == "panoptic" else segments.semantic() for task in maps}
        return targets

    def _instances(self, index: int, tasks: Collection[str], size: tuple[int, int]) -> InstanceTarget:
        objects = self._objects
        assert objects is not None
        first, last = int(objects.starts[index]), int(objects.starts[index + 1])
        mine = slice(first, last)
        masks = keypoints = None
        if "masks" in tasks and objects.segments is not None:
            segments = objects.segments
            rles = [segments.encoded(row) if segments.kind[row] else None for row in range(first, last)]
            masks = InstanceMasks.from_rles(rles, size)
        if "keypoints" in tasks and objects.keypoints is not None:
            keypoints = torch.from_numpy(objects.keypoints[mine].copy())
        return InstanceTarget(
            boxes=torch.from_numpy(objects.boxes[mine].copy()),
            labels=torch.from_numpy(objects.labels[mine].copy()),
            crowd=torch.from_numpy(objects.crowd[mine].copy()),
            areas=torch.from_numpy(objects.areas[mine].copy()),
            ids=torch.from_numpy(objects.ids[mine].copy()),
            masks=masks,
            keypoints=keypoints,
        )

    def describe(self, index: int) -> str:
        return f"{os.path.join(self.root, self._names[index])} (image id {self._ids[index]})"

    def coco_ground_truth(self) -> dict[str, Any] | None:
        """The annotation file as it is, read anew, without what ``on_error: skip`` left out."""
        if self._objects is None:
            return None
        data = read_json(self.path, lists=("images", "annotations", "categories"))
        if self._report.on_error == "skip":
            images, objects = set(self._ids), set(self._objects.ids.tolist())
            data["images"] = [image for image in data["images"] if image["id"] in images]
            data["annotations"] = [entry for entry in data["annotations"] if entry["id"] in objects]
        return data

    def problems(self) -> list[str]:
        return list(self._report.lines)


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()
