"""The one reader of COCO's panoptic format: a JSON file and a folder of PNGs. Imports no torch.

In a PNG, the segment of a pixel is ``R + 256 G + 65536 B``, and 0 is void. The JSON file holds ``images``,
``categories`` and one annotation per image with its ``segments_info``. ``docs/reference/coco-files.md`` documents what
is accepted, corrected and refused.
"""

from __future__ import annotations

import json
import math
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Raw

from visionkit.coco import png
from visionkit.coco.annotations import Images
from visionkit.coco.annotations import read_images as read_image_rows
from visionkit.coco.categories import Category, read_categories
from visionkit.coco.files import inside
from visionkit.coco.report import OnError, Report, some
from visionkit.coco.values import (
    describe,
    entries,
    field,
    flag,
    identifier,
    number,
    parse_json,
    read_bytes,
    same_id,
    text,
    whole,
)
from visionkit.errors import DataError
from visionkit.layers.segments import renumber

Id = int | str
MAX_ID = 2**24 - 1


@dataclass(frozen=True)
class PanopticMaps:
    """The annotated images of a file and their segments, one row per image; row ``i`` has the segments
    ``starts[i] ... starts[i + 1]``.

    Attributes:
        path: the JSON file.
        folder: of the PNGs.
        image_ids: (A,) IDs of the images, as :func:`~visionkit.coco.values.same_id` gives them.
        file_names: (A,) names of the PNGs, relative to the folder.
        starts: (A + 1,) int64.
        ids: (S,) int32, from 1 to 2^24 - 1, and different within an image.
        labels: (S,) int32 positions in the list of categories.
        crowd: (S,) bool.
        areas: (S,) float64 as in the file, NaN where it doesn't give any. Nothing is computed from them.
        row_of: image ID -> row.
    """

    path: str
    folder: str
    image_ids: list[Id]
    file_names: list[str]
    starts: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    row_of: Mapping[Id, int]

    def __len__(self) -> int:
        return len(self.image_ids)

    def segments(self, row: int) -> slice:
        """Where the segments of an image lie in ``ids``, ``labels``, ``crowd`` and ``areas``."""
        return slice(int(self.starts[row]), int(self.starts[row + 1]))

    def png(self, row: int) -> str:
        """The path of the PNG of an image."""
        return os.path.join(self.folder, self.file_names[row])

    def read_map(self, row: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """The map (H, W) int32 of an image: ``i + 1`` where a pixel belongs to its segment ``i``, 0 where it is void.

        Raises:
            DataError: the PNG is missing, corrupt, not of this height and width, or holds an unknown segment.
        """
        ids = png.read_ids(self.png(row), size)
        segments = renumber(ids, self.ids[self.segments(row)])
        if (unknown := segments < 0).any():
            values = np.unique(ids[unknown]).tolist()
            more = f" (and {len(values) - 1} more)" if len(values) > 1 else ""
            raise DataError(f"{self.png(row)}: segment {values[0]}{more} is not in the segments_info of image "
                            f"{self.image_ids[row]}")  # fmt: skip
        return segments


@dataclass(frozen=True)
class PanopticFile:
    """A panoptic ground truth.

    Attributes:
        path: the JSON file.
        categories: in the order of the file; a label is a position in it.
        images: the list ``images``.
        maps: the segments of the annotated images.
        problems: what was left out, one line per kind.
        head: the file as it is without its annotations, if it was asked for.
    """

    path: str
    categories: list[Category]
    images: Images
    maps: PanopticMaps
    problems: list[str]
    head: dict[str, Any] | None = None


def read_panoptic(
    path: str,
    folder: str | None = None,
    *,
    on_error: OnError = "fail",
    categories: list[Any] | None = None,
    with_head: bool = False,
) -> PanopticFile:
    """The ground truth of a panoptic JSON file, checked as far as is possible without its PNGs.

    Args:
        path: the JSON file.
        folder: of the PNGs; ``None``: beside the file, with the same name.
        on_error: ``"skip"`` leaves out images and annotations that are wrong, and counts them.
        categories: the list of categories of another file; ``None``: that of this file.
        with_head: whether to keep everything but the annotations as it is.

    Raises:
        DataError: the file is wrong; the message names it, the image, the segment, the field and its value.
    """
    folder, report = png_folder(path, folder), Report(path, on_error)
    file = _File.read(path)
    labels = read_panoptic_categories(file.parts if categories is None else {"categories": categories}, path)
    images = file.images(report)
    maps = _read_maps(file, folder, images, labels, report)
    return PanopticFile(path, labels, images, maps, report.lines, file.head() if with_head else None)


def read_panoptic_results(path: str, folder: str | None, truth: PanopticFile) -> PanopticMaps:
    """Panoptic results, with the images and categories of a ground truth: ``annotations``, or their list alone.

    Raises:
        DataError: as :func:`read_panoptic`; or the ground truth doesn't know an image or a category, or an image of the
            ground truth has no result.
    """
    folder = png_folder(path, folder)
    maps = _read_maps(_File.read(path), folder, truth.images, truth.categories, Report(path), truth.path)
    if missing := [image for image in truth.maps.image_ids if image not in maps.row_of]:
        raise DataError(f"{path}: has no prediction for image {missing[0]} (for {len(missing)} of the "
                        f"{len(truth.maps)} images of the ground truth)")  # fmt: skip
    return maps


def png_folder(path: str, folder: str | None) -> str:
    """The folder of a file's PNGs, which must exist."""
    folder = os.path.splitext(path)[0] if folder is None else folder
    if "\0" in folder or not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder of panoptic PNGs (for {path})")
    return folder


def read_panoptic_categories(data: Any, path: str) -> list[Category]:
    """The categories of a panoptic file, of which no two may have the same name."""
    categories = read_categories(entries(data, "categories", path), path)
    ids: dict[str, Id] = {}
    for category in categories:
        if category.name in ids:
            raise DataError(f"{path}: the categories {ids[category.name]} and {category.id} have the same name "
                            f"'{category.name}'")  # fmt: skip
        ids[category.name] = category.id
    return categories


def read_images(data: Any, report: Report) -> Images:
    """The list ``images`` of a file that has been decoded."""
    return read_image_rows(entries(data, "images", report.path), report)


# The usual types of the fields, which msgspec checks while it decodes. An entry that differs is decoded into a
# dictionary, and the functions of :mod:`visionkit.coco.values` accept or refuse its values.


class _Segment(msgspec.Struct, gc=False):
    id: Annotated[int, Meta(ge=1, le=MAX_ID)]
    category_id: int
    iscrowd: Annotated[int, Meta(ge=0, le=1)] = 0
    area: float = math.nan


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    segments_info: list[_Segment]
    file_name: Annotated[str, Meta(min_length=1)] | None = None


@dataclass(frozen=True)
class _File:
    """A JSON file whose long lists are decoded one entry at a time, so that they need no memory."""

    path: str
    data: bytes
    parts: Any

    @classmethod
    def read(cls, path: str) -> _File:
        """A list in the place of the object is taken for its ``annotations``."""
        data = read_bytes(path)
        try:
            if data[:64].lstrip()[:1] == b"[":
                return cls(path, data, {"annotations": msgspec.json.decode(data, type=list[Raw])})
            parts = msgspec.json.decode(data, type=dict[str, Raw])
            kinds: dict[str, Any] = {"images": Raw, "annotations": list[Raw]}
            return cls(
                path, data, {key: msgspec.json.decode(part, type=kinds.get(key, Any)) for key, part in parts.items()}
            )
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            parsed = parse_json(data, path)  # which says where an error is, and reads NaN
            return cls(path, data, {"annotations": parsed} if isinstance(parsed, list) else parsed)

    def images(self, report: Report) -> Images:
        """The list ``images``."""
        images = self.parts.get("images") if isinstance(self.parts, Mapping) else None
        if isinstance(images, Raw):
            return read_image_rows(images, report)
        return read_images(self.parts, report)

    def annotations(self) -> Iterator[Any]:
        """The annotations: :class:`_Annotation`, or a dictionary where one has unusual types."""
        rows = self.parts.get("annotations") if isinstance(self.parts, Mapping) else None
        if not isinstance(rows, list):
            rows = entries(self.parts, "annotations", self.path)
        decode = msgspec.json.Decoder(_Annotation).decode
        for index, row in enumerate(rows):
            if isinstance(row, Raw):
                try:
                    yield decode(row)
                    continue
                except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                    row = self._decode(row)
            if not isinstance(row, Mapping):
                raise DataError(f"{self.path}: entry {index} of 'annotations' must be an object, not {describe(row)}")
            yield row

    def head(self) -> dict[str, Any]:
        """Everything but the annotations."""
        head = {key: value for key, value in self.parts.items() if key != "annotations"}
        return head | {"images": self._decode(head["images"])}

    def _decode(self, row: Any) -> Any:
        if not isinstance(row, Raw):
            return row
        try:
            return json.loads(bytes(row).decode())
        except (ValueError, RecursionError):
            parse_json(self.data, self.path)  # says where the error is
            raise DataError(f"{self.path}: not valid JSON") from None


def _read_maps(
    file: _File,
    folder: str,
    images: Images,
    categories: list[Category],
    report: Report,
    owner: str | None = None,
) -> PanopticMaps:
    """The annotations of a file; ``owner`` is the file that lists images and categories, if it is another one."""
    label_of = {same_id(category.id): label for label, category in enumerate(categories)}
    image_ids: list[Id] = []
    names: list[str] = []
    row_of: dict[Id, int] = {}
    starts, ids, labels, crowd, areas = array("q", [0]), array("i"), array("i"), array("b"), array("d")
    for index, row in enumerate(file.annotations()):
        where = f"{file.path}: annotation number {index + 1}"
        try:
            entry = row if isinstance(row, _Annotation) else _read_annotation(row, where, file.path)
            image_id, segments = entry.image_id, entry.segments_info
            if image_id not in images.row:
                raise DataError(f"{where} is of image {image_id}, which is not in the list 'images'{_of(owner)}")
            if images.row[image_id] < 0:
                continue  # the image was left out, and counted
            if image_id in row_of:
                raise DataError(f"{file.path}: image {image_id} has two panoptic annotations")
            name = entry.file_name or os.path.splitext(images.file_names[images.row[image_id]])[0] + ".png"
            if name == ".png":
                raise DataError(f"{where}: neither it nor its image {image_id} has a 'file_name'")
            inside(folder, name, f"{where} (image {image_id})")
            rows = [label_of.get(segment.category_id, -1) for segment in segments]
            if -1 in rows or len({segment.id for segment in segments}) < len(segments):
                raise DataError(f"{file.path}: {_wrong_segment(entry, label_of, owner)}")
        except DataError as error:
            image = row.image_id if isinstance(row, _Annotation) else row.get("image_id")
            label = image if isinstance(image, int | str) else f"annotation number {index + 1}"
            report.reject("panoptic annotations that are wrong, of images", label, error)
            continue
        row_of[image_id] = len(image_ids)
        image_ids.append(image_id)
        names.append(name)
        labels.extend(rows)
        ids.extend([segment.id for segment in segments])
        crowd.extend([segment.iscrowd for segment in segments])
        areas.extend([segment.area for segment in segments])
        starts.append(len(ids))
    return PanopticMaps(
        path=file.path,
        folder=folder,
        image_ids=image_ids,
        file_names=names,
        starts=np.array(starts, np.int64),
        ids=np.array(ids, np.int32),
        labels=np.array(labels, np.int32),
        crowd=np.array(crowd, bool),
        areas=np.array(areas, np.float64),
        row_of=row_of,
    )


def _read_annotation(row: Mapping[str, Any], where: str, path: str) -> _Annotation:
    """An annotation with values of unusual types."""
    image_id: Any = same_id(identifier(field(row, "image_id", where), f"{where}: 'image_id'"))
    where = f"{where} (image {image_id})"
    name, segments = row.get("file_name"), field(row, "segments_info", where)
    if not isinstance(segments, list):
        raise DataError(f"{where}: 'segments_info' must be a list of segments, not {describe(segments)}")
    return _Annotation(
        image_id,
        [
            _read_segment(s, f"{path}: segment number {i + 1} of image {image_id}", path, image_id)
            for i, s in enumerate(segments)
        ],
        None if name is None else text(name, f"{where}: 'file_name'"),
    )


def _read_segment(row: Any, where: str, path: str, image_id: Id) -> _Segment:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be an object, not {describe(row)}")
    segment_id = whole(field(row, "id", where), f"{where}: 'id'")
    if not 1 <= segment_id <= MAX_ID:
        raise DataError(f"{where}: 'id' must be from 1 to {MAX_ID}, not {segment_id}; in a PNG, 0 is void")
    where = f"{path}: segment {segment_id} of image {image_id}"
    category_id: Any = same_id(identifier(field(row, "category_id", where), f"{where}: 'category_id'"))
    crowd, area = row.get("iscrowd"), row.get("area")
    return _Segment(
        segment_id,
        category_id,
        0 if crowd is None else int(flag(crowd, f"{where}: 'iscrowd'")),
        math.nan if area is None else number(area, f"{where}: 'area'"),
    )


def _wrong_segment(entry: _Annotation, label_of: Mapping[Id, int], owner: str | None) -> str:
    """What is wrong with the first segment whose category is unknown or whose ID another one has."""
    known: set[int] = set()
    for segment in entry.segments_info:
        if segment.category_id not in label_of:
            return (f"segment {segment.id} of image {entry.image_id} has the category_id {segment.category_id!r}, "
                    f"which is not among the {len(label_of)} categories{_of(owner)} ({some([*label_of])})")  # fmt: skip
        if segment.id in known:
            return f"image {entry.image_id} has two segments with the ID {segment.id}"
        known.add(segment.id)
    raise AssertionError("no segment is wrong")


def _of(owner: str | None) -> str:
    return "" if owner is None else f" of {owner}"
