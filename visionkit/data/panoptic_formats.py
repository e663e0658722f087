"""Three formats of panoptic annotations, and the way from each to each.

- ``coco``: a JSON with ``segments_info`` and a folder of PNGs, in which a pixel's segment is R + 256 G + 65536 B.
- ``two-channel``: a folder of PNGs, in which R is the category id and G the instance; 255 is a crowd, 0 0 is void.
- ``detection``: a JSON with one annotation a segment, its mask as run lengths or polygons.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from visionkit.data.annotations import column, first_twice, read_json
from visionkit.data.images import inside, read_label_map
from visionkit.errors import DataError, UserError
from visionkit.layers import rle
from visionkit.layers.segments import from_rgb, renumber, to_rgb

Record = dict[str, Any]
FORMATS = ("coco", "two-channel", "detection")
CROWD = 255
"""The instance of a two-channel PNG that stands for a crowd."""


@dataclass(frozen=True)
class Segmentation:
    """The segments of one image.

    Attributes:
        image: its entry in the list ``images``.
        segments: (H, W) int32 ids; 0 is void.
        infos: ``id``, ``category_id`` and ``iscrowd`` of each segment, in the order of the file.
    """

    image: Record
    segments: np.ndarray
    infos: list[Record]


@dataclass(frozen=True)
class DataSet:
    """Segmentations, which are read one by one, and what a file holds beside them: images, categories, licences."""

    head: Record
    segmentations: Iterable[Segmentation]


def convert(
    source: str,
    target: str,
    file: str,
    out: str,
    *,
    folder: str | None = None,
    categories: str | None = None,
    things_only: bool = False,
) -> int:
    """Bring a data set from one format into another.

    Args:
        source, target: ``coco``, ``two-channel`` or ``detection``.
        file: the JSON; of a two-channel set, one that holds its ``images``.
        out: what is written: a JSON, for ``coco`` with a folder of the same name beside it; for ``two-channel`` a
            folder.
        folder: of the PNGs that are read; ``None``: beside the JSON, of the same name.
        categories: a JSON that is, or holds, the list of categories; ``None``: that of ``file``.
        things_only: leave stuff out of ``detection``.

    Returns:
        How many images were written.

    Raises:
        UserError: the formats are unknown, files are missing or contradict themselves, or something cannot be said in
            the other format; the message names file and image.
    """
    for name in (source, target):
        if name not in FORMATS:
            raise UserError(f"no panoptic format '{name}'; there are {', '.join(FORMATS)}")
    if things_only and target != "detection":
        raise UserError(f"only the format detection can be written with things alone, not {target}")
    kinds = None if categories is None else _read_categories(categories)
    folder = os.path.splitext(file)[0] if folder is None else folder
    if source == "coco":
        data = read_coco(file, folder, kinds)
    elif source == "two-channel":
        data = read_two_channel(file, folder, kinds)
    else:
        data = read_detection(file, kinds)
    if target == "coco":
        return write_coco(data, out)
    if target == "two-channel":
        return write_two_channel(data, out)
    return write_detection(data, out, things_only=things_only)


def read_coco(file: str, folder: str, categories: list[Record] | None = None) -> DataSet:
    """COCO's panoptic format."""
    data = read_json(file, lists=("images", "annotations", *(() if categories else ("categories",))))
    head = _head(data, categories, file)
    images = {image["id"]: image for image in head["images"]}
    entries = data["annotations"]
    for key in ("image_id", "file_name", "segments_info"):
        column(file, entries, "annotation", key)

    def read() -> Iterator[Segmentation]:
        for entry in entries:
            if entry["image_id"] not in images:
                raise DataError(f"{file}: image {entry['image_id']} of an annotation is not in the list 'images'")
            path = inside(folder, entry["file_name"], file)
            ids = from_rgb(_read_rgb(path))
            infos = [_info(s, s["id"], bool(s.get("iscrowd", 0))) for s in entry["segments_info"]]
            known = renumber(ids, np.array([info["id"] for info in infos], np.int64))
            if (known < 0).any():
                raise DataError(f"{path}: segment {ids[known < 0][0]} is not in the segments_info of image "
                                f"{entry['image_id']}")  # fmt: skip
            yield Segmentation(images[entry["image_id"]], ids, infos)

    return DataSet(head, read())


def read_two_channel(file: str, folder: str, categories: list[Record] | None = None) -> DataSet:
    """PNGs of category and instance, named after the images of ``file``. Segments are numbered from 1."""
    head = _head(read_json(file, lists=("images", *(() if categories else ("categories",)))), categories, file)
    known = {category["id"] for category in head["categories"]}

    def read() -> Iterator[Segmentation]:
        for image in head["images"]:
            path = inside(folder, os.path.splitext(image["file_name"])[0] + ".png", file)
            pixels = _read_rgb(path)
            pairs = pixels[..., 0].astype(np.int64) * 256 + pixels[..., 1]
            values, segments = np.unique(pairs, return_inverse=True)
            if unknown := set((values[values > 0] // 256).tolist()) - known:
                raise DataError(f"{path}: category {min(unknown)} is not among the {len(known)} categories")
            offset = int(values[0] != 0)  # where there is no void, the first segment is number 1 all the same
            infos = [
                {"id": number, "category_id": int(value) // 256, "iscrowd": int(value % 256 == CROWD)}
                for number, value in enumerate(values[1 - offset :], 1)
            ]
            yield Segmentation(image, (segments.reshape(pairs.shape) + offset).astype(np.int32), infos)

    return DataSet(head, read())


def read_detection(file: str, categories: list[Record] | None = None) -> DataSet:
    """One annotation a segment; they must not overlap. Segments are numbered from 1."""
    data = read_json(file, lists=("images", "annotations", *(() if categories else ("categories",))))
    head = _head(data, categories, file)
    images, known = {image["id"] for image in head["images"]}, {category["id"] for category in head["categories"]}
    entries: dict[Any, list[Record]] = {image: [] for image in images}
    for key in ("id", "image_id", "category_id", "segmentation"):
        column(file, data["annotations"], "annotation", key)
    for entry in data["annotations"]:
        if entry["image_id"] not in images:
            raise DataError(f"{file}: annotation {entry['id']} belongs to image {entry['image_id']}, which is not in "
                            "the list 'images'")  # fmt: skip
        if entry["category_id"] not in known:
            raise DataError(f"{file}: annotation {entry['id']} has category_id {entry['category_id']}, which is not in "
                            "categories")  # fmt: skip
        entries[entry["image_id"]].append(entry)

    def read() -> Iterator[Segmentation]:
        for image in head["images"]:
            own = entries[image["id"]]
            segments = np.zeros((image["height"], image["width"]), np.int32)
            for number, entry in enumerate(own, 1):
                mask = _mask(entry, segments.shape, file)
                if (taken := segments[mask]).any():
                    other = own[int(taken.max()) - 1]["id"]
                    raise DataError(f"{file}: annotations {other} and {entry['id']} of image {image['id']} overlap")
                segments[mask] = number
            yield Segmentation(image, segments, [_info(e, i, bool(e.get("iscrowd", 0))) for i, e in enumerate(own, 1)])

    return DataSet(head, read())


def write_coco(data: DataSet, out: str) -> int:
    """``out`` and, beside it, a folder of the same name; segments without a pixel are left out. Returns the number of
    images, as the other two do."""
    folder = os.path.splitext(out)[0]
    if folder == out:
        raise UserError(f"{out}: a JSON and a folder of the same name will be written; give a name that ends in .json")
    annotations = []
    for one in data.segmentations:
        name = os.path.splitext(one.image["file_name"])[0] + ".png"
        _write_png(inside(folder, name, out), to_rgb(one.segments))
        annotations.append({"image_id": one.image["id"], "file_name": name, "segments_info": measured(one)})
    _write_json(out, data.head | {"annotations": annotations})
    return len(annotations)


def write_two_channel(data: DataSet, out: str) -> int:
    """A folder of PNGs; instances of a class are numbered from 0, and its crowds become one."""
    written = 0
    for one in data.segmentations:
        written += 1
        pixels = np.zeros((*one.segments.shape, 3), np.uint8)
        counts: dict[int, int] = {}
        for info in one.infos:
            category, where = info["category_id"], f"{out}: image {one.image['id']}"
            number = CROWD if info["iscrowd"] else counts.get(category, 0)
            counts[category] = counts.get(category, 0) + (not info["iscrowd"])
            if not 0 < category < 256:
                raise UserError(f"{where}: category id {category} does not go into one channel; 1 ... 255 do")
            if number >= CROWD and not info["iscrowd"]:
                raise UserError(f"{where}: has more than {CROWD} instances of category {category}, which is all that "
                                "one channel can tell apart")  # fmt: skip
            pixels[one.segments == info["id"]] = (category, number, 0)
        _write_png(inside(out, os.path.splitext(one.image["file_name"])[0] + ".png", out), pixels)
    return written


def write_detection(data: DataSet, out: str, *, things_only: bool = False) -> int:
    """One annotation a segment, numbered from 1, with compressed run lengths; ``things_only`` leaves stuff out of them
    and of the categories."""
    stuff = {category["id"] for category in data.head["categories"] if not category.get("isthing", 1)}
    annotations: list[Record] = []
    written = 0
    for one in data.segmentations:
        written += 1
        for info in measured(one):
            if things_only and info["category_id"] in stuff:
                continue
            code = rle.encode(one.segments == info["id"])
            mask = {"size": list(one.segments.shape), "counts": code["counts"].decode()}
            annotations.append(info | {"id": len(annotations) + 1, "image_id": one.image["id"], "segmentation": mask})
    head = dict(data.head)
    if things_only:
        head["categories"] = [category for category in head["categories"] if category["id"] not in stuff]
    _write_json(out, head | {"annotations": annotations})
    return written


def measured(one: Segmentation) -> list[Record]:
    """The segments that have a pixel, with ``area`` and ``bbox`` (left, top, width, height)."""
    infos = []
    for info in one.infos:
        mask = (one.segments == info["id"]).view(np.uint8)
        if area := cv2.countNonZero(mask):
            infos.append(info | {"area": area, "bbox": list(cv2.boundingRect(mask))})
    return infos


def _head(data: Record, categories: list[Record] | None, file: str) -> Record:
    """All but the annotations, checked as far as it is needed."""
    head = {key: value for key, value in data.items() if key != "annotations"}
    head["categories"] = data.get("categories") if categories is None else categories
    column(file, head["categories"], "category", "id")
    for key in ("id", "file_name", "height", "width"):
        column(file, head["images"], "image", key)
    if (twice := first_twice([image["id"] for image in head["images"]])) is not None:
        raise DataError(f"{file}: image id {twice} is given twice")
    return head


def _read_categories(file: str) -> list[Record]:
    try:
        with open(file, encoding="utf-8") as opened:
            data = json.load(opened)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    found = data.get("categories") if isinstance(data, Mapping) else data
    if not isinstance(found, list):
        raise DataError(f"{file}: neither a list of categories nor an object with one")
    return found


def _read_rgb(path: str) -> np.ndarray:
    pixels = read_label_map(path)
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise DataError(f"{path}: must be RGB with 8 bits a channel, not of shape {pixels.shape} and {pixels.dtype}")
    return pixels


def _mask(entry: Mapping[str, Any], size: tuple[int, ...], file: str) -> np.ndarray:
    """(H, W) bool of an annotation."""
    try:
        mask = rle.decode(rle.from_segmentation(entry["segmentation"], *size)).astype(bool)
    except (TypeError, KeyError, ValueError, IndexError):
        raise DataError(f"{file}: the segmentation of annotation {entry['id']} is neither polygons nor run "
                        "lengths") from None  # fmt: skip
    if mask.shape != size:
        raise DataError(f"{file}: annotation {entry['id']} has a mask of {mask.shape[0]}x{mask.shape[1]} pixels on an "
                        f"image of {size[0]}x{size[1]}")  # fmt: skip
    return mask


def _info(entry: Mapping[str, Any], number: int, crowd: bool) -> Record:
    return {"id": number, "category_id": entry["category_id"], "iscrowd": int(crowd)}


def _write_png(path: str, pixels: np.ndarray) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        assert done
        with open(path, "wb") as file:
            file.write(data.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _write_json(path: str, data: Record) -> None:
    beside = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(data, file, separators=(",", ":"))
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
