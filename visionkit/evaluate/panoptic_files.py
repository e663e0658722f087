"""Panoptic quality of files in COCO's panoptic format, with the numbers of COCO's own tool. Imports no torch.

The fast backend is hotcoco, which decodes PNGs several times faster than OpenCV and on all cores; the other one is
:mod:`visionkit.evaluate.panoptic_metrics`, which also says what is wrong with files that hotcoco refuses.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from visionkit.errors import DataError
from visionkit.evaluate.coco_files import read_json
from visionkit.evaluate.panoptic_metrics import Counts, Segments, match, summary
from visionkit.layers.segments import from_rgb

Backend = Literal["fast", "numpy"]
Id = int | str


@dataclass(frozen=True)
class Entry:
    """The segmentation of one image: where its PNG lies, and its segments."""

    file_name: str
    png: str
    segments: list[dict[str, Any]]


@dataclass(frozen=True)
class Truth:
    """What a ground truth holds: its categories, the name of each image's file, and the segmentations by image.

    A label is a position in ``categories``.
    """

    categories: list[dict[str, Any]]
    files: dict[Id, str]
    entries: dict[Id, Entry]


def evaluate_panoptic(
    ground_truth: str | Path,
    results: str | Path,
    gt_folder: str | Path | None = None,
    dt_folder: str | Path | None = None,
    *,
    backend: Backend = "fast",
    per_class: bool = False,
) -> dict[str, float]:
    """PQ, SQ and RQ over all classes, of things (``PQ_th`` ...) and of stuff (``PQ_st`` ...), as fractions.

    Every image that has a segmentation in the ground truth must have one in the results. Areas of the truth are those
    of its JSON, where it has them; its pixels of an id that is in no ``segments_info`` are neither void nor a segment.
    Categories without ``isthing`` are things. Where an image has several crowds of one class, all of them excuse a
    prediction; COCO's images never have, and COCO's tool would look at the last one alone.

    Args:
        ground_truth: COCO panoptic JSON.
        results: the same with ``annotations`` alone, or their list; one without ``file_name`` is a PNG that is named
            after its image, as ``visionkit predict`` writes it.
        gt_folder, dt_folder: their folders of PNGs; ``None``: beside the JSON, of the same name.
        backend: who computes; the numbers are the same, but for the order in which they are added up.
        per_class: also ``PQ/<class name>``.

    Raises:
        DataError: a file is missing or contradicts another; the message names file and image.
    """
    gt_folder, dt_folder = _folder(ground_truth, gt_folder), _folder(results, dt_folder)
    truth = read_truth(str(ground_truth), gt_folder)
    found = read_results(str(results), dt_folder, truth)
    counts = _fast(str(ground_truth), gt_folder, dt_folder, truth, found) if backend == "fast" else None
    if counts is None:
        counts = _by_numpy(truth, found)
    things = [bool(category.get("isthing", 1)) for category in truth.categories]
    return summary(counts, things, [str(c["name"]) for c in truth.categories] if per_class else None)


def read_truth(path: str, folder: str) -> Truth:
    """The ground truth, checked as far as its JSON goes."""
    data = read_json(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(data, Mapping) or not isinstance(data.get(part), list):
            raise DataError(f"{path}: panoptic ground truth needs a list '{part}'")
    for part, keys in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for row in data[part]:
            _require(row, keys, f"{path}: an entry of '{part}'")
        if len({row["id"] for row in data[part]}) < len(data[part]):
            raise DataError(f"{path}: two {part} have the same id")
    files = {image["id"]: str(image["file_name"]) for image in data["images"]}
    known = {category["id"] for category in data["categories"]}
    return Truth(data["categories"], files, _entries(data["annotations"], path, folder, files, known))


def read_results(path: str, folder: str, truth: Truth) -> dict[Id, Entry]:
    """The results by image, checked as far as their JSON goes."""
    data = read_json(path)
    rows = data.get("annotations") if isinstance(data, Mapping) else data
    if not isinstance(rows, list):
        raise DataError(f"{path}: panoptic results are a list 'annotations' of one record an image")
    known = {category["id"] for category in truth.categories}
    entries = _entries(rows, path, folder, truth.files, known)
    if missing := [image for image in truth.entries if image not in entries]:
        raise DataError(f"{path}: has no prediction for image {missing[0]} (for {len(missing)} of the "
                        f"{len(truth.entries)} images of the ground truth)")  # fmt: skip
    return entries


def _entries(rows: list[Any], path: str, folder: str, files: Mapping[Id, str], categories: set[Any]) -> dict[Id, Entry]:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder of panoptic PNGs (for {path})")
    entries: dict[Id, Entry] = {}
    for number, row in enumerate(rows, 1):
        _require(row, ("image_id", "segments_info"), f"{path}: annotation number {number}")
        image = row["image_id"]
        if image not in files:
            raise DataError(f"{path}: annotation number {number} is of image {image!r}, which the ground truth does "
                            "not know")  # fmt: skip
        if image in entries:
            raise DataError(f"{path}: image {image} has two panoptic annotations")
        for segment in row["segments_info"]:
            _require(segment, ("id", "category_id"), f"{path}: a segment of image {image}")
            if segment["category_id"] not in categories:
                raise DataError(f"{path}: segment {segment['id']} of image {image} has category_id "
                                f"{segment['category_id']!r}, which the ground truth does not know")  # fmt: skip
        name = row.get("file_name") or os.path.splitext(files[image])[0] + ".png"
        entries[image] = Entry(name, _inside(folder, name, path), row["segments_info"])
    return entries


def _require(row: Any, keys: tuple[str, ...], name: str) -> None:
    for key in keys:
        if not isinstance(row, Mapping) or key not in row:
            raise DataError(f"{name} has no '{key}'")


def _folder(file: str | Path, folder: str | Path | None) -> str:
    return os.path.splitext(file)[0] if folder is None else str(folder)


def _inside(folder: str, name: str, where: str) -> str:
    """``folder/name``, of which ``name`` must not lead out of the folder."""
    plain = os.path.normpath(name.replace("\\", "/"))
    if os.path.isabs(plain) or os.path.splitdrive(plain)[0] or plain.split("/")[0] == "..":
        raise DataError(f"{where}: file name '{name}' leads out of the folder {folder}")
    return os.path.join(folder, name)


def _fast(gt: str, gt_folder: str, dt_folder: str, truth: Truth, found: dict[Id, Entry]) -> Counts | None:
    """The counts by hotcoco; ``None`` where it refuses the files."""
    from hotcoco.panoptic import PanopticEval

    if not truth.entries or any(_crowds_of_one_class(entry.segments) for entry in truth.entries.values()):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        # What was checked is what is evaluated, whatever form it had.
        rows = [
            {"image_id": image, "file_name": found[image].file_name, "segments_info": found[image].segments}
            for image in truth.entries
        ]
        dt = os.path.join(scratch, "results.json")
        Path(dt).write_text(json.dumps({"annotations": rows}))
        try:
            run = PanopticEval(gt, dt, gt_folder=gt_folder, pred_folder=dt_folder)
            run.evaluate()
        except (OSError, ValueError, TypeError, KeyError):
            return None
    rows = run.results()["per_class"]
    return np.array([[rows[c["id"]][part] for part in ("tp", "fp", "fn", "iou")] for c in truth.categories], np.float64)


def _crowds_of_one_class(segments: list[dict[str, Any]]) -> bool:
    crowds = [segment["category_id"] for segment in segments if segment.get("iscrowd")]
    return len(set(crowds)) < len(crowds)


def _by_numpy(truth: Truth, found: dict[Id, Entry]) -> Counts:
    label_of = {category["id"]: label for label, category in enumerate(truth.categories)}
    counts = np.zeros((len(label_of), 4))
    for image, entry in truth.entries.items():
        other = found[image]
        maps = _read_ids(entry.png), _read_ids(other.png)
        predicted = _segments(other.segments, label_of)
        try:
            counts += match(maps[0], _segments(entry.segments, label_of), maps[1], predicted, len(label_of))
        except DataError as error:
            raise DataError(f"{other.png}: image {image}: {error}") from None
        if absent := set(predicted.ids.tolist()) - set(np.unique(maps[1]).tolist()):
            raise DataError(f"{other.png}: image {image}: segment {min(absent)} of its segments_info has no pixel")
    return counts


def _segments(rows: list[dict[str, Any]], label_of: Mapping[Any, int]) -> Segments:
    areas = [row.get("area") for row in rows]
    return Segments(
        ids=np.array([row["id"] for row in rows], np.int64),
        labels=np.array([label_of[row["category_id"]] for row in rows], np.int64),
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], bool),
        areas=None if None in areas else np.array(areas, np.float64),
    )


def _read_ids(path: str) -> np.ndarray:
    """(H, W) int32 segment ids of a PNG."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None or b"IEND" not in data[-32:].tobytes():  # OpenCV fills with black what is missing at the end
        raise DataError(f"{path}: not a whole PNG")
    if image.ndim != 3 or image.dtype != np.uint8:
        raise DataError(f"{path}: a panoptic PNG is RGB with 8 bits a channel, this one has shape {image.shape} and "
                        f"{image.dtype}")  # fmt: skip
    return from_rgb(cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB))
