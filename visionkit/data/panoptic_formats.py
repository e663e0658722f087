"""Three formats of panoptic annotations, and the way from each to each.

- ``coco``: a JSON with ``segments_info`` and a folder of PNGs, in which a pixel's segment is R + 256 G + 65536 B.
- ``two-channel``: a folder of PNGs, in which R is the category id and G the instance; 255 is a crowd, 0 0 is void.
- ``detection``: a JSON with one annotation a segment, its mask as run lengths or polygons.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from visionkit import rle
from visionkit.coco import png
from visionkit.coco.annotations import Images
from visionkit.coco.categories import Category
from visionkit.coco.files import inside
from visionkit.coco.panoptic import read_images, read_panoptic, read_panoptic_categories
from visionkit.coco.report import Report
from visionkit.coco.segmentation import checked_rle
from visionkit.coco.values import describe, entries, field, flag, identifier, load_json, same_id
from visionkit.errors import DataError, UserError
from visionkit.layers.segments import extents, runs, to_rgb

Record = dict[str, Any]
FORMATS = ("coco", "two-channel", "detection")
CROWD = 255
"""The instance of a two-channel PNG that stands for a crowd."""


@dataclass(frozen=True)
class Segmentation:
    """The segments of one image.

    Attributes:
        image: its entry in the list ``images``.
        segments: (H, W) int32; ``i + 1`` where a pixel belongs to segment ``i``, 0 where it is void.
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
    written = {"coco": (out, os.path.splitext(out)[0]), "two-channel": (out,), "detection": (out,)}[target]
    for path in {*map(os.path.realpath, written)} & {os.path.realpath(file), os.path.realpath(folder)}:
        raise UserError(f"{out}: would overwrite what is read ({path}); choose another --out")
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


def read_coco(file: str, folder: str, categories: list[Any] | None = None) -> DataSet:
    """COCO's panoptic format."""
    data = read_panoptic(file, folder, categories=categories, with_head=True)
    maps, labels = data.maps, [same_id(category.id) for category in data.categories]
    assert data.head is not None
    head = data.head if categories is None else data.head | {"categories": categories}
    head = _normalized(head, data.images, data.categories, file)

    def read() -> Iterator[Segmentation]:
        for row, image_id in enumerate(maps.image_ids):
            image, own = head["images"][data.images.row[image_id]], maps.segments(row)
            columns = zip(maps.ids[own].tolist(), maps.labels[own].tolist(), maps.crowd[own].tolist(), strict=True)
            infos = [{"id": i, "category_id": labels[c], "iscrowd": int(crowd)} for i, c, crowd in columns]
            yield Segmentation(image, maps.read_map(row, (image["height"], image["width"])), infos)

    return DataSet(head, read())


def read_two_channel(file: str, folder: str, categories: list[Any] | None = None) -> DataSet:
    """PNGs of category and instance, named after the images of ``file``. Segments are numbered from 1."""
    head = _head(load_json(file), categories, file)
    known = {category["id"] for category in head["categories"]}

    def read() -> Iterator[Segmentation]:
        for image in head["images"]:
            path = inside(folder, os.path.splitext(image["file_name"])[0] + ".png", file)
            pixels = png.read_rgb(path, (image["height"], image["width"]))
            if pixels[..., 2].any():
                raise DataError(f"{path}: the blue channel of a two-channel PNG must be 0; it holds "
                                f"{pixels[..., 2].max()}")  # fmt: skip
            pairs = pixels[..., 0].astype(np.int32).ravel() * 256 + pixels[..., 1].ravel()
            starts, lengths = runs(pairs)
            values, place = np.unique(pairs[starts], return_inverse=True)
            if unknown := set((values[values > 0] // 256).tolist()) - known:
                raise DataError(f"{path}: category {min(unknown)} is not among the {len(known)} categories")
            numbers = np.cumsum(values > 0).astype(np.int32)  # the values ascend, so that void stays 0
            infos = [
                {"id": number, "category_id": value // 256, "iscrowd": int(value % 256 == CROWD)}
                for number, value in enumerate(values[values > 0].tolist(), 1)
            ]
            yield Segmentation(image, np.repeat(numbers[place], lengths).reshape(pixels.shape[:2]), infos)

    return DataSet(head, read())


def read_detection(file: str, categories: list[Any] | None = None) -> DataSet:
    """One annotation a segment; they must not overlap. Segments are numbered from 1."""
    data = load_json(file)
    head = _head(data, categories, file)
    known = {category["id"] for category in head["categories"]}
    rows: dict[Any, list[Record]] = {image["id"]: [] for image in head["images"]}
    for index, entry in enumerate(entries(data, "annotations", file)):
        name = entry.get("id", f"number {index + 1}")
        where = f"{file}: annotation {name}"
        image_id = same_id(identifier(field(entry, "image_id", where), f"{where}: 'image_id'"))
        category_id = same_id(identifier(field(entry, "category_id", where), f"{where}: 'category_id'"))
        if image_id not in rows:
            raise DataError(f"{where} belongs to image {image_id}, which is not in the list 'images'")
        if category_id not in known:
            raise DataError(f"{where} has category_id {category_id}, which is not in categories")
        crowd = entry.get("iscrowd")
        rows[image_id].append({"name": name, "category_id": category_id,
                               "iscrowd": 0 if crowd is None else int(flag(crowd, f"{where}: 'iscrowd'")),
                               "segmentation": field(entry, "segmentation", where)})  # fmt: skip

    def read() -> Iterator[Segmentation]:
        for image in head["images"]:
            height, width, own = image["height"], image["width"], rows[image["id"]]
            segments = np.zeros((height, width), np.int32)
            for number, entry in enumerate(own, 1):
                where = f"{file}: the segmentation of annotation {entry['name']}"
                code = checked_rle(entry["segmentation"], height, width, where)
                left, top, crop = rle.crop_of_rle(code)
                window = segments[top : top + crop.shape[0], left : left + crop.shape[1]]
                if (taken := window[crop > 0]).any():
                    other = own[int(taken.max()) - 1]["name"]
                    raise DataError(f"{file}: annotations {other} and {entry['name']} of image {image['id']} overlap")
                window[crop > 0] = number
            infos = [{"id": i, "category_id": e["category_id"], "iscrowd": e["iscrowd"]} for i, e in enumerate(own, 1)]
            yield Segmentation(image, segments, infos)

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
        ids = np.array([0, *(info["id"] for info in one.infos)], np.int32)
        _write_png(inside(folder, name, out), to_rgb(ids[one.segments]))
        annotations.append(
            {"image_id": one.image["id"], "file_name": name, "segments_info": [info for _, info in measured(one)]}
        )
    _write_json(out, data.head | {"annotations": annotations})
    return len(annotations)


def write_two_channel(data: DataSet, out: str) -> int:
    """A folder of PNGs; instances of a class are numbered from 0, and its crowds become one."""
    written = 0
    for one in data.segmentations:
        written += 1
        colors = np.zeros((len(one.infos) + 1, 3), np.uint8)
        counts: dict[int, int] = {}
        for row, info in enumerate(one.infos, 1):
            category, where = info["category_id"], f"{out}: image {one.image['id']}"
            number = CROWD if info["iscrowd"] else counts.get(category, 0)
            counts[category] = counts.get(category, 0) + (not info["iscrowd"])
            if not isinstance(category, int) or not 0 < category < 256:
                raise UserError(f"{where}: category id {category} does not go into one channel; 1 ... 255 do")
            if number >= CROWD and not info["iscrowd"]:
                raise UserError(f"{where}: has more than {CROWD} instances of category {category}, which is all that "
                                "one channel can tell apart")  # fmt: skip
            colors[row] = (category, number, 0)
        _write_png(inside(out, os.path.splitext(one.image["file_name"])[0] + ".png", out), colors[one.segments])
    return written


def write_detection(data: DataSet, out: str, *, things_only: bool = False) -> int:
    """One annotation a segment, numbered from 1, with compressed run lengths; ``things_only`` leaves stuff out of them
    and of the categories."""
    stuff = {category["id"] for category in data.head["categories"] if not category.get("isthing", 1)}
    annotations: list[Record] = []
    written = 0
    for one in data.segmentations:
        written += 1
        for row, info in measured(one):
            if things_only and info["category_id"] in stuff:
                continue
            left, top, width, height = info["bbox"]
            crop = one.segments[top : top + height, left : left + width] == row
            code = rle.encode_crop(crop, left, top, *one.segments.shape)
            mask = {"size": list(one.segments.shape), "counts": code["counts"].decode()}
            annotations.append(info | {"id": len(annotations) + 1, "image_id": one.image["id"], "segmentation": mask})
    head = dict(data.head)
    if things_only:
        head["categories"] = [category for category in head["categories"] if category["id"] not in stuff]
    _write_json(out, head | {"annotations": annotations})
    return written


def measured(one: Segmentation) -> list[tuple[int, Record]]:
    """The segments that have a pixel, with ``area`` and ``bbox`` (left, top, width, height), and their numbers in the
    map."""
    areas, boxes = extents(one.segments, len(one.infos))
    return [
        (row, info | {"area": area, "bbox": box})
        for row, (info, area, box) in enumerate(zip(one.infos, areas.tolist(), boxes.tolist(), strict=True), 1)
        if area
    ]


def _head(data: Any, categories: list[Any] | None, file: str) -> Record:
    """All but the annotations, with checked images and categories."""
    images = read_images(data, Report(file))
    labels = read_panoptic_categories(data if categories is None else {"categories": categories}, file)
    head = {key: value for key, value in data.items() if key != "annotations"}
    return _normalized(head if categories is None else head | {"categories": categories}, images, labels, file)


def _normalized(head: Record, images: Images, categories: list[Category], file: str) -> Record:
    """The head of a file, whose images and categories have values of the usual types."""
    rows, kinds = [], []
    for row, name, (height, width) in zip(head["images"], images.file_names, images.sizes.tolist(), strict=True):
        if not name or not height or not width:
            raise DataError(f"{file}: image {row['id']} must have a 'file_name', a 'height' and a 'width'")
        if height * width > png.MAX_PIXELS:
            raise DataError(f"{file}: image {row['id']} is {height}x{width}; the limit is {png.MAX_PIXELS:,} pixels")
        rows.append({**row, "id": same_id(row["id"]), "file_name": name, "height": height, "width": width})
    for row, category in zip(head["categories"], categories, strict=True):
        isthing = {"isthing": int(category.isthing)} if "isthing" in row else {}
        kinds.append({**row, "id": same_id(category.id), "name": category.name, **isthing})
    return head | {"images": rows, "categories": kinds}


def _read_categories(file: str) -> list[Any]:
    data = load_json(file)
    rows = data.get("categories") if isinstance(data, Mapping) else data
    if not isinstance(rows, list):
        raise DataError(f"{file}: must be a list of categories or an object with one, not {describe(data)}")
    return rows


def _write_png(path: str, pixels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done
    _write(path, data.tobytes())


def _write_json(path: str, data: Record) -> None:
    _write(path, json.dumps(data, separators=(",", ":")).encode())


def _write(path: str, data: bytes) -> None:
    """Write a file beside its place, and move it there when it is whole."""
    beside = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
        os.replace(beside, path)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            os.remove(beside)
        raise UserError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
