"""Images with COCO annotations: instances, keypoints and panoptic maps."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from visionkit.coco.annotations import CocoAnnotations, Part, images_with_files, read_annotations
from visionkit.coco.files import inside
from visionkit.coco.report import OnError, Report
from visionkit.coco.segmentation import NONE, SegmentationTable
from visionkit.data.base import Sample, Source
from visionkit.data.categories import label_set
from visionkit.data.images import check_size, read_image
from visionkit.data.panoptic import PanopticMaps
from visionkit.errors import DataError
from visionkit.types import ImageInfo, InstanceMasks, InstanceTarget, LabelSet, Target

INSTANCE_TASKS: tuple[Part, ...] = ("boxes", "masks", "keypoints")
MAP_TASKS = ("semantic", "panoptic")


@dataclass
class _Objects:
    """The objects of all images, in the order of the images; image ``i`` has rows ``starts[i] ... starts[i + 1]``."""

    starts: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray  # left, top, right, bottom, inside the image
    masks: SegmentationTable
    keypoints: np.ndarray | None


class CocoSource(Source):
    """Images with COCO annotations.

    An image without objects is a negative example: annotated, and nothing is there. Boxes that reach outside their
    image are clipped, and boxes without area inside it are left out; :meth:`problems` counts both. Objects without a
    mask are used for boxes, and left out by mask heads. Categories with different keypoints share one list of all their
    names: a category's own keypoints are at the places of their names, the others are not labeled. Categories without
    keypoints don't take part in the task ``keypoints``. What spellings of values are accepted is documented in
    ``docs/reference/coco-files.md``.

    Args:
        images: folder that the file names are relative to.
        annotations: instance or keypoint JSON; may be left out where ``panoptic`` is given.
        tasks: some of ``boxes``, ``masks``, ``keypoints``, ``semantic``, ``panoptic``; ``None``: all that the files
            hold.
        panoptic: panoptic JSON, for the tasks ``semantic`` and ``panoptic``.
        panoptic_masks: its folder of PNGs; ``None``: beside the JSON, of the same name.
        flip_pairs: pairs of keypoint names that swap places in a mirrored image; ``None``: those that the file lists
            as ``flip_pairs`` of its categories, else pairs such as ``left_eye`` and ``right_eye`` by their names.
        on_error: ``"skip"`` leaves out annotations that are wrong and images that are missing, and counts them;
            ``"fail"`` stops at the first.

    Raises:
        DataError: the files are missing or wrong; the message names the file and the ID.
    """

    def __init__(
        self,
        *,
        images: str,
        annotations: str | None = None,
        tasks: list[str] | None = None,
        panoptic: str | None = None,
        panoptic_masks: str | None = None,
        flip_pairs: list[tuple[str, str]] | None = None,
        on_error: OnError = "fail",
    ) -> None:
        if annotations is None and panoptic is None:
            raise DataError("a COCO source needs 'annotations', 'panoptic' or both")
        if not os.path.isdir(images):
            raise DataError(f"{images}: no such folder of images")
        self.root, self.path = images, annotations or panoptic or ""
        self._report = Report(self.path, on_error)
        self._maps = PanopticMaps(panoptic, panoptic_masks, on_error=on_error) if panoptic is not None else None
        self._file: CocoAnnotations | None = None
        self._objects: _Objects | None = None
        self._keypoint_labels: Tensor | None = None  # label -> label among the categories that have keypoints, or -1
        self.labels: dict[str, LabelSet] = {}
        self._tasks = tasks
        exists = _file_finder(images, self.path)
        if annotations is not None:
            parts = INSTANCE_TASKS if tasks is None else [part for part in INSTANCE_TASKS if part in tasks]
            self._file = read_annotations(annotations, parts=parts, report=self._report, file_exists=exists)
            self._images = self._file.images
        else:
            assert self._maps is not None
            self._images = images_with_files(self._maps.file.images, self._report, exists)
        self._set_labels(flip_pairs)
        if self._file is not None and any(task in INSTANCE_TASKS for task in self.labels):
            self._objects = self._collect(self._file)
        if self._maps is not None and any(task in MAP_TASKS for task in self.labels):
            self._maps.match(self._images.ids, self.path)

    def _set_labels(self, flip_pairs: list[tuple[str, str]] | None) -> None:
        """The label set of each task: those that were asked for, else all that the files hold."""
        labels: dict[str, LabelSet] = {}
        if self._file is not None:
            file = self._file
            labels["boxes"] = label_set(self.path, file.categories)
            if (file.masks.kind != NONE).any():
                labels["masks"] = labels["boxes"]
            categories = [category for category in file.categories if category.keypoints]
            if categories and file.has_keypoints.any():
                labels["keypoints"] = label_set(self.path, categories, keypoints=True)
                if len(categories) < len(file.categories):
                    names = labels["keypoints"].names
                    self._keypoint_labels = torch.tensor(
                        [names.index(n) if n in names else -1 for n in labels["boxes"].names]
                    )
            elif file.has_keypoints.any():
                self._report.note("annotations have keypoints that no category names, so that they are not used",
                                  file.ids[file.has_keypoints].tolist())  # fmt: skip
        if self._maps is not None:
            labels |= dict.fromkeys(MAP_TASKS, self._maps.labels)
        for task in self._tasks or ():
            if task not in labels:
                raise DataError(f"{self.path}: has no annotations for the task '{task}' (it has: {', '.join(labels)})")
        self.labels = {task: own for task, own in labels.items() if self._tasks is None or task in self._tasks}
        if "keypoints" in self.labels:
            self._set_flip_pairs(flip_pairs)
        elif flip_pairs:
            raise DataError(f"{self.path}: 'flip_pairs' are given, but the source has no keypoints")

    def _set_flip_pairs(self, flip_pairs: list[tuple[str, str]] | None) -> None:
        labels = self.labels["keypoints"]
        if flip_pairs is not None:
            for name in (name for pair in flip_pairs for name in pair):
                if name not in labels.keypoints:
                    raise DataError(f"{self.path}: 'flip_pairs' names the keypoint '{name}', which no category has "
                                    f"({', '.join(labels.keypoints)})")  # fmt: skip
            pairs = tuple((labels.keypoints.index(a), labels.keypoints.index(b)) for a, b in flip_pairs)
            if len({index for pair in pairs for index in pair}) < 2 * len(pairs):
                raise DataError(f"{self.path}: 'flip_pairs' names a keypoint twice")
            self.labels["keypoints"] = replace(labels, swaps=pairs)
            return
        paired = {labels.keypoints[index] for pair in labels.swaps for index in pair}
        alone = [n for n in labels.keypoints if n not in paired and re.search("left|right", n, re.IGNORECASE)]
        if alone or (not paired and len(labels.keypoints) > 1):
            self._report.note("keypoints have no partner to swap places with when an image is flipped; list the pairs "
                              "in 'flip_pairs' if they have", alone or labels.keypoints)  # fmt: skip

    def _collect(self, file: CocoAnnotations) -> _Objects:
        """The objects that have an area inside their image, in the order of the images."""
        sizes = file.images.sizes
        if len(unsized := np.flatnonzero(sizes.min(1, initial=1) <= 0)):
            raise DataError(f"{self.path}: image {file.images.ids[unsized[0]]} has no 'height' and 'width' above 0")
        limit = sizes[file.image_rows][:, (1, 0, 1, 0)].astype(np.float64)
        corners = file.boxes.copy()
        corners[:, 2:] += corners[:, :2]
        clipped = np.minimum(np.maximum(corners, 0), limit)
        # Annotation tools round: a box that ends within a hundredth of a pixel beyond the edge is not worth a line.
        outside = np.abs(clipped - corners).max(1, initial=0) > 0.01
        empty = (clipped[:, 2:] - clipped[:, :2]).min(1, initial=np.inf) < 1e-3
        self._report.note("boxes reach outside their image: clipped", file.ids[outside & ~empty].tolist())
        self._report.note("boxes have no area inside their image: left out", file.ids[empty].tolist())
        if len(file) >= 10 and outside.mean() > 0.3:
            self._report.note("boxes in total, many of which reach outside: are they [left, top, right, bottom] "
                              "or of images of another size?", file.ids.tolist())  # fmt: skip
        rows = np.flatnonzero(~empty)
        rows = rows[np.argsort(file.image_rows[rows], kind="stable")]
        return _Objects(
            starts=np.searchsorted(file.image_rows[rows], np.arange(len(sizes) + 1)),
            ids=file.ids[rows],
            labels=file.labels[rows],
            crowd=file.crowd[rows],
            areas=file.areas[rows].astype(np.float32),
            boxes=clipped[rows].astype(np.float32),
            masks=file.masks.select(rows),
            keypoints=None if file.keypoints is None else file.keypoints[rows].astype(np.float32),
        )

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        path, size = self._file_path(index), self._size(index)
        image = read_image(path)
        check_size(path, image.shape[1:], size, f"{self.path} says", of=f" for image {self._images.ids[index]}")
        info = ImageInfo(id=self._images.ids[index], path=path, original_size=size, size=size)
        swaps = self.labels["keypoints"].swaps if "keypoints" in tasks and "keypoints" in self.labels else ()
        return Sample(image, info, self.targets(index, tasks), swaps)

    def _file_path(self, index: int) -> str:
        return os.path.join(self.root, self._images.file_names[index])

    def _size(self, index: int) -> tuple[int, int]:
        return int(self._images.sizes[index, 0]), int(self._images.sizes[index, 1])

    def image_id(self, index: int) -> int | str:
        return self._images.ids[index]

    def targets(self, index: int, tasks: Collection[str]) -> dict[str, Target]:
        targets: dict[str, Target] = {}
        instances = [task for task in INSTANCE_TASKS if task in tasks and task in self.labels]
        if instances:
            target = self._instances(index, instances)
            targets |= dict.fromkeys(instances, target)
            if "keypoints" in instances and self._keypoint_labels is not None:
                targets["keypoints"] = replace(target, masks=None).relabel(self._keypoint_labels)
        maps = [task for task in MAP_TASKS if task in tasks and task in self.labels]
        if maps and self._maps is not None:
            segments = self._maps.load(self._images.ids[index], self._size(index))
            if segments is not None:
                targets |= {task: segments if task == "panoptic" else segments.semantic() for task in maps}
        return targets

    def _instances(self, index: int, tasks: Sequence[str]) -> InstanceTarget:
        objects = self._objects
        assert objects is not None
        first, last = int(objects.starts[index]), int(objects.starts[index + 1])
        rows = slice(first, last)
        masks = keypoints = None
        if "masks" in tasks:
            encodings = [objects.masks.encode(r) if objects.masks.kind[r] != NONE else None for r in range(first, last)]
            masks = InstanceMasks.from_rles(encodings, self._size(index))
        if "keypoints" in tasks and objects.keypoints is not None:
            keypoints = torch.from_numpy(objects.keypoints[rows].copy())
        return InstanceTarget(
            boxes=torch.from_numpy(objects.boxes[rows].copy()),
            labels=torch.from_numpy(objects.labels[rows].copy()),
            crowd=torch.from_numpy(objects.crowd[rows].copy()),
            areas=torch.from_numpy(objects.areas[rows].copy()),
            ids=torch.from_numpy(objects.ids[rows].copy()),
            masks=masks,
            keypoints=keypoints,
        )

    def used_classes(self, task: str) -> Collection[str] | None:
        if self._objects is None or self._file is None or task not in INSTANCE_TASKS:
            return None
        return {self._file.categories[label].name for label in np.unique(self._objects.labels).tolist()}

    def describe(self, index: int) -> str:
        return f"{self._file_path(index)} (image ID {self._images.ids[index]})"

    def coco_ground_truth(self) -> CocoAnnotations | None:
        """The annotation file, read and checked; without what ``on_error: skip`` left out."""
        return self._file if self._objects is not None else None

    def problems(self) -> list[str]:
        return [*self._report.lines, *(self._maps.problems if self._maps is not None else ())]


def _file_finder(root: str, where: str) -> Callable[[str], bool]:
    """A function that says whether a file below ``root`` exists; it lists every folder once."""
    folders: dict[str, set[str]] = {"": set(os.listdir(root))}

    def exists(name: str) -> bool:
        if name in folders[""]:
            return True
        inside(root, name, where)
        folder, base = os.path.split(name)
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(os.path.join(root, folder)))
            except (OSError, ValueError):
                folders[folder] = set()
        return base in folders[folder]

    return exists
