"""The one reader of COCO annotation files (instances and keypoints).

Sources, evaluators and ``coco-eval`` all work with :class:`CocoAnnotations`, a normalized and checked form of the file:
860,000 objects are a few large arrays, not 860,000 dictionaries. Whatever this reader accepts, all of them understand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from visionkit.coco.categories import Category, all_keypoints, read_categories
from visionkit.coco.report import Report, some
from visionkit.coco.segmentation import (
    MAX_PIXELS,
    MAX_SIDE,
    NONE,
    REJECTED,
    RLE,
    SegmentationTable,
    normalize_segmentation,
)
from visionkit.coco.values import (
    describe,
    entries,
    flag,
    identifier,
    no_garbage_collection,
    number,
    parse_json,
    read_bytes,
    same_id,
    text,
    whole,
)
from visionkit.coco.values import (
    field as required,
)
from visionkit.errors import DataError

MAX_COORDINATE = 1e9
"""Boxes, areas and keypoints beyond this are refused."""
_CHUNK = 4096  # annotations that are decoded together; only the arrays made of them are kept

Id = int | str
Part = Literal["boxes", "masks", "keypoints"]
PARTS: tuple[Part, ...] = ("boxes", "masks", "keypoints")


@dataclass
class Images:
    """The list ``images``.

    Attributes:
        ids: as in the file.
        file_names: as in the file; empty where there is none.
        sizes: (N, 2) int64 height and width; 0 where the file has none.
        row: ID (see :func:`~visionkit.coco.values.same_id`) -> row; -1 for images that were left out.
    """

    ids: list[Id]
    file_names: list[str]
    sizes: np.ndarray
    row: dict[Id, int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class CocoAnnotations:
    """A COCO annotation file in its normalized form.

    Attributes:
        path: the file, for messages.
        images: the list ``images``.
        categories: the list ``categories``.
        ids: (N,) int64 annotation IDs; numbers from 1 where the file has strings or larger numbers.
        image_rows: (N,) int64 rows in ``images``.
        labels: (N,) int64 positions in ``categories``.
        crowd: (N,) bool.
        areas: (N,) float64 in pixels, as in the file; where it has none, that of the mask or else of the box.
        boxes: (N, 4) float64 left, top, width, height, as in the file; where it has none, the box of the mask.
        masks: the segmentations; all of kind ``NONE`` where they were not read.
        keypoints: (N, K, 3) float64 x, y, visibility, in the order of ``keypoint_names``; ``None`` where no
            annotation has any, or where they were not read.
        has_keypoints: (N,) bool: whether the annotation has a list of keypoints.
        num_keypoints: (N,) int64 labeled keypoints, as in the file, else counted.
        keypoint_names: of all categories together; numbers from 1 where the file names none.
        report: what was corrected or left out.
        plain: whether the file needed no correction, so that other tools read the same from it.
    """

    path: str
    images: Images
    categories: list[Category]
    ids: np.ndarray
    image_rows: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    masks: SegmentationTable
    keypoints: np.ndarray | None
    has_keypoints: np.ndarray
    num_keypoints: np.ndarray
    keypoint_names: tuple[str, ...]
    report: Report
    plain: bool

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> CocoAnnotations:
        """The annotations of these rows."""
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
            masks=self.masks.select(rows),
            keypoints=None if self.keypoints is None else self.keypoints[rows],
            plain=False,
        )

    def restrict(
        self,
        image_ids: Collection[Id],
        label_of: Mapping[int, int],
        categories: list[Category],
        keypoint_names: Sequence[str] = (),
    ) -> CocoAnnotations:
        """The annotations of some images and classes.

        Args:
            image_ids: the images to keep.
            label_of: label -> position in ``categories``; others are left out.
            categories: the new classes.
            keypoint_names: the order of the keypoints; those that the file doesn't have are not labeled. Empty: as in
                the file.
        """
        wanted = {same_id(image_id) for image_id in image_ids}
        kept = [row for row, image_id in enumerate(self.images.ids) if same_id(image_id) in wanted]
        new_row = np.full(len(self.images), -1)
        new_row[kept] = np.arange(len(kept))
        table = np.array([label_of.get(label, -1) for label in range(len(self.categories))], np.int64)
        rows = (
            np.flatnonzero((new_row[self.image_rows] >= 0) & (table[self.labels] >= 0))
            if len(self)
            else np.zeros(0, int)
        )
        out = self.select(rows)
        images = self.images
        ids = [images.ids[row] for row in kept]
        return replace(
            out,
            images=Images(ids, [images.file_names[row] for row in kept], images.sizes[kept],
                          {same_id(image_id): row for row, image_id in enumerate(ids)}),
            categories=categories,
            image_rows=new_row[out.image_rows],
            labels=table[out.labels],
            **out._reordered_keypoints(tuple(keypoint_names) or self.keypoint_names),
        )  # fmt: skip

    def _reordered_keypoints(self, names: tuple[str, ...]) -> dict[str, Any]:
        if self.keypoints is None or names == self.keypoint_names:
            return {}
        keypoints = np.zeros((len(self), len(names), 3))
        for index, name in enumerate(names):
            if name in self.keypoint_names:
                keypoints[:, index] = self.keypoints[:, self.keypoint_names.index(name)]
        return {"keypoints": keypoints, "keypoint_names": names}


_COLUMNS = ("ids", "image_rows", "labels", "crowd", "areas", "boxes", "has_keypoints", "num_keypoints")


class _Entry(msgspec.Struct, gc=False):
    """An annotation of the file, well typed; ``None`` where it has no such field."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float] | None = None
    area: float | None = None
    iscrowd: Literal[0, 1] = 0
    segmentation: list[list[float]] | RLE | None = None
    keypoints: list[float] | None = None
    num_keypoints: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _EntryWithBox(msgspec.Struct, gc=False):
    """As :class:`_Entry`, where masks are not needed."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] = 0
    keypoints: list[float] | None = None
    num_keypoints: Annotated[int, msgspec.Meta(ge=0)] | None = None

    @property
    def segmentation(self) -> None:
        return None


class _File(msgspec.Struct):
    images: msgspec.Raw = msgspec.Raw()
    annotations: list[msgspec.Raw] | None = None
    categories: msgspec.Raw = msgspec.Raw()


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str = ""
    height: int = 0
    width: int = 0
    rejected: bool = False


def read_annotations(
    path: str | Path,
    *,
    parts: Collection[Part] = PARTS,
    report: Report | None = None,
    file_exists: Callable[[str], bool] | None = None,
) -> CocoAnnotations:
    """Read and check a COCO annotation file.

    Args:
        path: the file.
        parts: what is read and checked: ``"boxes"``, ``"masks"`` and ``"keypoints"``.
        report: takes what is corrected or left out, and says whether wrong entries are errors.
        file_exists: whether an image is there, by its ``file_name``; images that are not there are left out with their
            annotations, or refused, as ``report`` says. ``None``: images need no files.

    Raises:
        DataError: the file is not a COCO annotation file, or an entry is wrong and the report doesn't skip it. The
            message names the file, the ID, the field and the value.
    """
    report = report or Report(str(path))
    with no_garbage_collection():
        data = read_bytes(path)
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            file = _File()  # NaN, Infinity or wrong types: read it again, slowly, for messages that name the entry
        if file.annotations is None or msgspec.Raw() in (file.images, file.categories):
            decoded = parse_json(data, path)
            return parse_annotations(decoded, str(path), parts=parts, report=report, file_exists=file_exists)
        categories = entries({"categories": parse_json(bytes(file.categories), path)}, "categories", str(path))
        return _read(file.images, categories, file.annotations, parts, report, file_exists)


def parse_annotations(
    data: Any,
    path: str,
    *,
    parts: Collection[Part] = PARTS,
    report: Report | None = None,
    file_exists: Callable[[str], bool] | None = None,
) -> CocoAnnotations:
    """As :func:`read_annotations`, of a dictionary; ``path`` is how messages name it."""
    rows = {name: entries(data, name, path) for name in ("images", "annotations", "categories")}
    return _read(rows["images"], rows["categories"], rows["annotations"], parts, report or Report(path), file_exists)


# -- images -----------------------------------------------------------------------------------------------------------


def read_images(rows: msgspec.Raw | Sequence[Mapping[str, Any]], report: Report) -> Images:
    """The list ``images``, as JSON or decoded.

    Raises:
        DataError: an entry is wrong, or two have the same ID; the message names the file and the image.
    """
    if isinstance(rows, msgspec.Raw):
        try:
            images = msgspec.json.decode(rows, type=list[_Image])
            if all(0 <= row.height <= MAX_SIDE and 0 <= row.width <= MAX_SIDE for row in images):
                return _collect_images(images, report)
        except msgspec.ValidationError:
            pass
        rows = entries({"images": parse_json(bytes(rows), report.path)}, "images", report.path)
    return _collect_images([_normalize_image(row, index, report) for index, row in enumerate(rows)], report)


def _normalize_image(row: Mapping[str, Any], index: int, report: Report) -> _Image:
    where = f"{report.path}: image {row.get('id', f'number {index + 1}')}"
    image = _Image(identifier(required(row, "id", where), f"{where}: 'id'"))
    try:
        if row.get("file_name") is not None:
            image.file_name = text(row["file_name"], f"{where}: 'file_name'")
        for key in ("height", "width"):
            if row.get(key) is not None:
                setattr(image, key, whole(row[key], f"{where}: '{key}'", least=0))
        if max(image.height, image.width) > MAX_SIDE:
            raise DataError(f"{where} is {image.height}x{image.width} (height x width); at most {MAX_SIDE} are "
                            "supported")  # fmt: skip
    except DataError as error:
        report.reject("images with fields of the wrong type or out of range", image.id, error)
        image.rejected = True
    return image


def _collect_images(rows: Sequence[_Image], report: Report) -> Images:
    keys = [same_id(row.id) for row in rows]
    if len(set(keys)) < len(keys):
        raise DataError(f"{report.path}: two images have the ID {_first_duplicate(keys)}")
    for row in rows:
        if not row.rejected and row.height * row.width > MAX_PIXELS:
            report.reject("images with too many pixels", row.id, (
                f"{report.path}: image {row.id} is {row.height}x{row.width} (height x width), more than {MAX_PIXELS} "
                "pixels"
            ))  # fmt: skip
            row.rejected = True
    kept = [row for row in rows if not row.rejected]
    place = dict.fromkeys(keys, -1) | {same_id(row.id): i for i, row in enumerate(kept)}
    sizes = np.array([(row.height, row.width) for row in kept], np.int64).reshape(-1, 2)
    return Images([row.id for row in kept], [row.file_name for row in kept], sizes, place)


def images_with_files(images: Images, report: Report, file_exists: Callable[[str], bool]) -> Images:
    """The images whose file is there, by their ``file_name``.

    Raises:
        DataError: an image has no ``file_name``, or its file is missing and the report doesn't skip it.
    """
    if "" in images.file_names:
        raise DataError(f"{report.path}: image {images.ids[images.file_names.index('')]} has no 'file_name'")
    there = np.array([file_exists(name) for name in images.file_names], bool)
    num_missing = int((~there).sum())
    report.reject_rows(~there, images.ids, "images whose file is missing", lambda i: (
        f"image {images.ids[i]}: no such file {images.file_names[i]} ({num_missing} of {len(there)} images are missing)"
    ))  # fmt: skip
    if not num_missing:
        return images
    rows = np.flatnonzero(there).tolist()
    place = dict.fromkeys(images.row, -1) | {same_id(images.ids[row]): i for i, row in enumerate(rows)}
    return Images(
        [images.ids[row] for row in rows], [images.file_names[row] for row in rows], images.sizes[rows], place
    )


def _first_duplicate(values: Sequence[Id]) -> Id:
    seen: set[Id] = set()
    return next(v for v in values if v in seen or seen.add(v))  # type: ignore[func-returns-value]


# -- annotations ------------------------------------------------------------------------------------------------------


def _read(
    image_rows: msgspec.Raw | Sequence[Mapping[str, Any]],
    category_rows: Sequence[Mapping[str, Any]],
    rows: Sequence[Any],
    parts: Collection[Part],
    report: Report,
    file_exists: Callable[[str], bool] | None,
) -> CocoAnnotations:
    """All annotations, chunk by chunk, so that no more than a chunk of Python objects exists at any time."""
    images = read_images(image_rows, report)
    if file_exists is not None:
        images = images_with_files(images, report, file_exists)
    reader = _Reader(report.path, images, read_categories(category_rows, report.path), parts, report)
    for start in range(0, len(rows), _CHUNK):
        reader.add(rows[start : start + _CHUNK])
    return reader.finish()


@dataclass
class _Reader:
    """Collects the columns of the annotations."""

    path: str
    images: Images
    categories: list[Category]
    parts: Collection[Part]
    report: Report
    plain: bool = True
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in (*_COLUMNS, "given_areas")})
    given_ids: list[Id] = field(default_factory=list)
    masks: list[SegmentationTable] = field(default_factory=list)
    keypoints: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.label_of = {same_id(category.id): label for label, category in enumerate(self.categories)}
        self.names = all_keypoints(self.categories)
        self.places = [[self.names.index(name) for name in category.keypoints] for category in self.categories]
        self.known_names = bool(self.names)
        self.entry_type = _Entry if "masks" in self.parts else _EntryWithBox
        self.decoder = msgspec.json.Decoder(list[self.entry_type])  # type: ignore[name-defined]
        self.one = msgspec.json.Decoder(_Entry)

    # -- one chunk

    def add(self, rows: Sequence[Any]) -> None:
        """Take in some annotations, each as JSON or as a dictionary."""
        chunk = self._decode(rows)
        keep, labels, image_rows = self._resolve(chunk)
        if not keep.all():
            chunk = [entry for entry, ok in zip(chunk, keep) if ok]
            labels, image_rows = labels[keep], image_rows[keep]
        ids = [entry.id for entry in chunk]
        sizes = self.images.sizes[image_rows]
        masks = self._masks(chunk, ids, sizes)
        boxes, good = self._boxes(chunk, ids, masks)
        keypoints, has_keypoints, fits = self._keypoints(chunk, ids, labels)
        good &= fits
        areas = self._areas(chunk, ids)
        num_keypoints = self._num_keypoints(chunk, keypoints)
        rows_kept = np.flatnonzero(good)
        values = {
            "image_rows": image_rows, "labels": labels, "boxes": boxes, "given_areas": areas,
            "crowd": np.array([entry.iscrowd for entry in chunk], bool),
            "has_keypoints": has_keypoints, "num_keypoints": num_keypoints,
        }  # fmt: skip
        for name, column in values.items():
            self.columns[name].append(column[rows_kept])
        self.given_ids += [ids[row] for row in rows_kept.tolist()]
        if "masks" in self.parts:
            self.masks.append(masks if len(rows_kept) == len(chunk) else masks.select(rows_kept))
        if keypoints is not None:
            self.keypoints.append(keypoints[rows_kept])

    def _decode(self, rows: Sequence[Any]) -> list[_Entry]:
        """The entries of a chunk; those whose JSON doesn't have exactly the right types are normalized one by one."""
        if not rows or not isinstance(rows[0], msgspec.Raw):
            decoded = [self._normalize(row) for row in rows]
        else:
            try:
                return self.decoder.decode(b"[" + b",".join(rows) + b"]")
            except (msgspec.DecodeError, RecursionError, UnicodeError):
                decoded = [self._decode_one(row) for row in rows]
        self.plain = False
        return [entry for entry in decoded if entry is not None]

    def _decode_one(self, row: msgspec.Raw) -> _Entry | None:
        try:
            return self.one.decode(row)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return self._normalize(parse_json(bytes(row), self.path))

    def _normalize(self, row: Any) -> _Entry | None:
        """An annotation in any accepted spelling, or ``None`` if it is wrong and left out."""
        name = row.get("id", "without an ID") if isinstance(row, Mapping) else "without an ID"
        where = f"{self.path}: annotation {name}"
        if not isinstance(row, Mapping):
            raise DataError(f"{self.path}: an entry of 'annotations' must be an object, not {describe(row)}")
        image_id, category_id = (
            identifier(required(row, key, where), f"{where}: '{key}'") for key in ("image_id", "category_id")
        )
        entry = _Entry(identifier(required(row, "id", where), f"{where}: 'id'"), image_id, category_id)
        try:
            self._normalize_fields(row, entry, where)
        except DataError as error:
            self.report.reject("fields of the wrong type or out of range", entry.id, error)
            return None
        return entry

    def _normalize_fields(self, row: Mapping[str, Any], entry: _Entry, where: str) -> None:
        box = row.get("bbox")
        if box is not None and box != []:
            if not isinstance(box, list | tuple) or len(box) != 4:
                raise DataError(f"{where}: 'bbox' must be [left, top, width, height], not {box!r:.80}")
            left, top, width, height = (number(value, f"{where}: a coordinate of 'bbox'") for value in box)
            entry.bbox = left, top, width, height
        if row.get("area") is not None:
            entry.area = number(row["area"], f"{where}: 'area'")
        if row.get("iscrowd") is not None:
            entry.iscrowd = 1 if flag(row["iscrowd"], f"{where}: 'iscrowd'") else 0
        if "masks" in self.parts or entry.bbox is None:
            entry.segmentation = normalize_segmentation(row.get("segmentation"), f"{where}: 'segmentation'")
        if "keypoints" in self.parts and row.get("keypoints"):
            if not isinstance(row["keypoints"], list | tuple):
                raise DataError(
                    f"{where}: 'keypoints' must be a list [x1, y1, v1, ...], not {describe(row['keypoints'])}"
                )
            entry.keypoints = [number(value, f"{where}: a coordinate of 'keypoints'") for value in row["keypoints"]]
            if row.get("num_keypoints") is not None:
                entry.num_keypoints = whole(row["num_keypoints"], f"{where}: 'num_keypoints'", least=0)

    def _resolve(self, chunk: Sequence[_Entry]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which entries have a known category and image, their labels and the rows of their images."""
        labels = _look_up(self.label_of, [entry.category_id for entry in chunk], -1)
        rows = _look_up(self.images.row, [entry.image_id for entry in chunk], -2)
        ids = [entry.id for entry in chunk]
        self.report.reject_rows(
            labels < 0, ids, "their category is not in the list of categories",
            lambda i: f"annotation {ids[i]} has the category_id {chunk[i].category_id!r}, which is not in 'categories' "
                      f"({some([category.id for category in self.categories])})",
        )  # fmt: skip
        self.report.reject_rows(
            (labels >= 0) & (rows == -2), ids, "their image is not in the list of images",
            lambda i: f"annotation {ids[i]} has the image_id {chunk[i].image_id!r}, which is not in 'images'",
        )  # fmt: skip
        return (labels >= 0) & (rows >= 0), labels, rows  # -1: the image was left out, and reported, before

    def _masks(self, chunk: Sequence[_Entry], ids: list[Id], sizes: np.ndarray) -> SegmentationTable:
        """The masks, or where they are not wanted, those that boxes are measured from."""

        def where(row: int) -> str:
            return f"{self.path}: annotation {ids[row]} (image {chunk[row].image_id}): 'segmentation'"

        if "masks" not in self.parts:
            for entry in chunk:
                if entry.segmentation and entry.bbox is not None:
                    entry.segmentation = None
        unsized = np.flatnonzero(sizes.min(1, initial=MAX_SIDE) <= 0)
        for entry in (chunk[row] for row in unsized.tolist()):
            if entry.segmentation:
                raise DataError(f"{self.path}: image {entry.image_id} has no height and width, which the mask of "
                                f"annotation {entry.id} needs")  # fmt: skip
        table = SegmentationTable.build([entry.segmentation for entry in chunk], ids, sizes, self.report, where)
        # The shoelace formula finds no area in a polygon that crosses itself, COCO's rasterization does.
        for row in np.flatnonzero((table.kind != NONE) & (table.kind != REJECTED) & (table.areas <= 1e-6)).tolist():
            if table.num_pixels(row) == 0:
                message = f"{where(row)} has zero area; on_error: skip leaves such annotations out"
                self.report.reject("a segmentation of zero area", ids[row], message)
                table.kind[row] = REJECTED
        return table

    def _boxes(self, chunk: Sequence[_Entry], ids: list[Id], masks: SegmentationTable) -> tuple[np.ndarray, np.ndarray]:
        """(N, 4) boxes, and which objects are kept: those with a box whose mask was not rejected."""
        rejected = masks.kind == REJECTED
        boxes: list[Sequence[float] | None] = [entry.bbox for entry in chunk]
        missing = np.zeros(len(chunk), bool)
        if None in boxes:
            self.plain = False
            boxes = [masks.box(row) if box is None else box for row, box in enumerate(boxes)]
            missing = np.array([box is None for box in boxes], bool)
        self.report.reject_rows(missing & ~rejected, ids, "no box", lambda i: (
            f"annotation {ids[i]} has no 'bbox' [left, top, width, height] and no mask to measure it from"
        ))  # fmt: skip
        numbers = chain.from_iterable(box or (0.0, 0.0, 0.0, 0.0) for box in boxes)
        values = np.fromiter(numbers, np.float64, 4 * len(boxes)).reshape(-1, 4)
        far = np.asarray(np.abs(values).max(1, initial=0) > MAX_COORDINATE)
        self.report.reject_rows(far, ids, "a box out of range", lambda i: (
            f"annotation {ids[i]} has the bbox {list(boxes[i] or ())}; at most {MAX_COORDINATE:g} is allowed"
        ))  # fmt: skip
        return values, ~(rejected | missing | far)

    def _areas(self, chunk: Sequence[_Entry], ids: list[Id]) -> np.ndarray:
        """(N,) areas of the file; -1 where it has none."""
        areas = np.array([-1.0 if entry.area is None else entry.area for entry in chunk], np.float64)
        negative = areas < 0
        if negative.any():
            self.plain = False
            self.report.note("annotations have a negative area, which is measured instead",
                             [e.id for e, bad in zip(chunk, negative) if bad and e.area is not None])  # fmt: skip
            areas[negative] = -1.0
        return areas

    def _keypoints(
        self, chunk: Sequence[_Entry], ids: list[Id], labels: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """(N, K, 3) keypoints at the places of their names, which entries have some, and which are right."""
        none = np.zeros(len(chunk), bool)
        if "keypoints" not in self.parts:
            return None, none, ~none
        lists: list[list[float]] = [entry.keypoints or [] for entry in chunk]
        if not self.names and not any(lists):
            return np.zeros((len(chunk), 0, 3)), none, ~none
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        if not self.known_names and not self.names and lengths.any():
            self._name_keypoints(int(lengths[lengths > 0][0]))
        expected = np.array([3 * len(places) for places in self.places], np.int64)[labels]
        wrong = (lengths != expected) & (lengths > 0)
        self.report.reject_rows(
            wrong, ids, "the wrong number of keypoints",
            lambda i: f"annotation {ids[i]} has {lengths[i]} numbers in 'keypoints'; its category "
                      f"'{self.categories[labels[i]].name}' has {expected[i] // 3} keypoints, so {expected[i]} numbers",
        )  # fmt: skip
        out = np.zeros((len(chunk), len(self.names), 3))
        for label, places in enumerate(self.places):
            rows = np.flatnonzero((labels == label) & ~wrong & (lengths > 0))
            if len(rows):
                values = np.array([lists[row] for row in rows.tolist()], np.float64)
                out[rows[:, None], places] = values.reshape(len(rows), len(places), 3)
                self.plain &= len(places) == len(self.names)
        self.plain &= not self.names or bool((lengths > 0).all())
        bad = np.asarray((~np.isin(out[..., 2], (0, 1, 2))).any(-1))
        self.report.reject_rows(bad, ids, "keypoints with a visibility other than 0, 1 and 2", lambda i: (
            f"annotation {ids[i]} has a keypoint with the visibility "
            f"{next(v for v in out[i, :, 2].tolist() if v not in (0, 1, 2)):g}; it must be 0, 1 or 2"
        ))  # fmt: skip
        far = np.abs(out).max((1, 2), initial=0) > MAX_COORDINATE
        self.report.reject_rows(far, ids, "keypoints out of range",
                                lambda i: f"annotation {ids[i]} has a keypoint out of range")  # fmt: skip
        return out, lengths > 0, ~(wrong | bad | far)

    def _name_keypoints(self, length: int) -> None:
        """Without names in the categories, keypoints are numbered; all annotations must have the same number."""
        self.names = tuple(str(i + 1) for i in range(length // 3))
        self.places = [list(range(length // 3))] * len(self.categories)
        # Chunks before this one had none.
        self.keypoints = [np.zeros((len(chunk), length // 3, 3)) for chunk in self.keypoints]

    def _num_keypoints(self, chunk: Sequence[_Entry], keypoints: np.ndarray | None) -> np.ndarray:
        if keypoints is None or not self.names:
            return np.zeros(len(chunk), np.int64)
        counted = (keypoints[..., 2] > 0).sum(1)
        if any(entry.num_keypoints is None for entry in chunk):
            self.plain = False
        return np.array([n if e.num_keypoints is None else e.num_keypoints
                         for e, n in zip(chunk, counted.tolist())], np.int64)  # fmt: skip

    # -- the whole file

    def finish(self) -> CocoAnnotations:
        """The columns of all chunks together."""
        whole_numbers = set(map(type, self.given_ids)) <= {int}
        keys = self.given_ids if whole_numbers else [same_id(i) for i in self.given_ids]
        if len(set(keys)) < len(keys):
            raise DataError(f"{self.path}: two annotations have the ID {_first_duplicate(keys)}")
        names = [name for name in self.columns if name != "ids" and name != "areas"]
        empty = {"boxes": np.zeros((0, 4)), "given_areas": np.zeros(0), "crowd": np.zeros(0, bool),
                 "has_keypoints": np.zeros(0, bool)}  # fmt: skip
        columns = {
            name: np.concatenate(self.columns.pop(name) or [empty.get(name, np.zeros(0, np.int64))]) for name in names
        }
        num = len(keys)
        try:
            ids = np.array(keys if set(map(type, keys)) <= {int} else range(1, num + 1), np.int64)
        except OverflowError:
            ids = np.arange(1, num + 1)
        other_ids = (*self.images.ids, *(category.id for category in self.categories))
        self.plain &= whole_numbers and set(map(type, other_ids)) <= {int}
        if self.masks:
            masks = SegmentationTable.concatenate(self.masks)
        else:
            masks = SegmentationTable.empty(num, self.images.sizes[columns["image_rows"]])
        self.masks = []
        has_any = bool(columns["has_keypoints"].any())
        keypoints = np.concatenate(self.keypoints) if self.keypoints and (has_any or self.known_names) else None
        self.keypoints = []
        given = columns.pop("given_areas")
        areas = _measured_areas(given, columns["boxes"], masks)
        self.plain &= bool((given >= 0).all())
        self.report.note(
            "objects have no mask; mask heads and mask metrics leave them out",
            self._without(masks, ids) if (masks.kind != NONE).any() else [],
        )
        larger = areas > 1.1 * np.abs(columns["boxes"][:, 2:]).prod(1) + 4
        self.report.note("objects have an area larger than their box; was the file resized?", ids[larger].tolist())
        return CocoAnnotations(
            path=self.path, images=self.images, categories=self.categories, ids=ids, areas=areas, masks=masks,
            keypoints=keypoints, keypoint_names=self.names, report=self.report,
            plain=self.plain and not self.report.counts, **columns,
        )  # fmt: skip

    @staticmethod
    def _without(masks: SegmentationTable, ids: np.ndarray) -> list[int]:
        return ids[masks.kind == NONE].tolist()


def _look_up(table: Mapping[Id, int], keys: Sequence[Id], default: int) -> np.ndarray:
    """``table[key]`` of all keys, of which strings may stand for numbers."""
    rows = [table.get(key, default) for key in keys]
    if default in rows:
        rows = [table.get(same_id(key), default) for key in keys]
    return np.array(rows, np.int64)


def _measured_areas(given: np.ndarray, boxes: np.ndarray, masks: SegmentationTable) -> np.ndarray:
    """(N,) areas: as given, else the pixels of the mask, else the area of the box."""
    areas = given.copy()
    for row in np.flatnonzero(given < 0).tolist():
        if masks.kind[row] != NONE:
            areas[row] = masks.num_pixels(row)
        else:
            areas[row] = abs(boxes[row, 2] * boxes[row, 3])
    return areas
