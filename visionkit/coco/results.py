"""The one reader of COCO results files: boxes, masks and keypoints with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from visionkit import rle
from visionkit.coco.annotations import MAX_COORDINATE, CocoAnnotations, Id
from visionkit.coco.report import Report, some
from visionkit.coco.run_lengths import measure
from visionkit.coco.segmentation import MAX_SIDE, RLE, SegmentationTable, normalize_segmentation
from visionkit.coco.values import describe, identifier, no_garbage_collection, number, parse_json, read_bytes, same_id
from visionkit.coco.values import field as required
from visionkit.errors import DataError

ResultType = Literal["bbox", "segm", "keypoints"]
_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_CHUNK = 16384


class _Box(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    score: float
    bbox: tuple[float, float, float, float]


class _Mask(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    score: float
    segmentation: RLE | list[list[float]]
    bbox: tuple[float, float, float, float] | None = None


class _Keypoints(msgspec.Struct, gc=False):
    image_id: Id
    category_id: Id
    score: float
    keypoints: list[float]
    bbox: tuple[float, float, float, float] | None = None


_Detection = _Box | _Mask | _Keypoints
_TYPES: dict[str, type] = {"bbox": _Box, "segmentation": _Mask, "keypoints": _Keypoints}


@dataclass
class ResultColumns:
    """Detections as arrays, in the rows and labels of the ground truth they belong to.

    Attributes:
        image_rows: (N,) int64 rows of the ground truth's images.
        labels: (N,) int64 positions in its categories.
        scores: (N,) float64.
        boxes: (N, 4) float64 left, top, width, height: as in the file, else of the mask or the keypoints.
        areas: (N,) float64 in pixels; as in pycocotools, of the box where the file has one, else of the mask.
        masks: compressed run lengths, for masks.
        keypoints: (N, K, 3) float64, in the order of the ground truth's ``keypoint_names``, for keypoints.
    """

    image_rows: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    masks: list[bytes] | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


def read_results(
    given: Sequence[Mapping[str, Any]] | str | Path, truth: CocoAnnotations, type: ResultType, where: str = "detections"
) -> CocoResults:
    """Read and check the detections of a results file, or records that are in memory.

    Args:
        given: the file or the records.
        truth: the ground truth, whose images and categories the detections refer to.
        type: what is compared: boxes, masks or keypoints. Boxes may be those of masks or keypoints.
        where: how messages name records that are in memory.

    Raises:
        DataError: the file is not a results file, or a detection is wrong; the message names the file, the number of
            the detection, the field and the value.
    """
    with no_garbage_collection():
        rows: Any = given
        if isinstance(given, str | Path):
            where, rows = str(given), _split(read_bytes(given), str(given))
        if not isinstance(rows, list | tuple):
            raise DataError(f"{where}: COCO results must be a list of detections, not {describe(rows)}")
        results = CocoResults(where, truth, type, *_first_fields(rows, type, where))
        for start in range(0, len(rows), _CHUNK):
            results.take(results.decode(rows[start : start + _CHUNK]))
    return results


def _split(data: bytes, path: str) -> Any:
    """The detections as one JSON text each."""
    try:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return parse_json(data, path)  # NaN and Infinity, or a message that says what is wrong


def _first_fields(rows: Sequence[Any], type: ResultType, path: str) -> tuple[str, bool, int]:
    """What the first detection says of all: the field to read, whether there are boxes, and the number of keypoints."""
    if not rows:
        return _FIELDS[type], type == "bbox", 0
    first = _as_object(rows[0], f"{path}: detection number 1", path)
    name = _FIELDS[type]
    has_box = bool(first.get("bbox"))
    if type == "bbox" and not has_box:  # as in pycocotools, the boxes of masks or keypoints
        name = next((key for key in ("segmentation", "keypoints") if first.get(key)), name)
    points = first.get("keypoints")
    return name, has_box, len(points) // 3 if isinstance(points, list | tuple) else 0


def _as_object(row: Any, where: str, path: str) -> Mapping[str, Any]:
    value = parse_json(bytes(row), path) if isinstance(row, msgspec.Raw) else row
    if not isinstance(value, Mapping):
        raise DataError(f"{where} must be an object, not {describe(value)}")
    return value


@dataclass
class _Chunk:
    """Some detections: the number of the first, the entries, and what they refer to."""

    start: int
    entries: list[Any]
    image_rows: np.ndarray
    labels: np.ndarray
    encodings: list[bytes] = field(default_factory=list)
    areas: np.ndarray | None = None


@dataclass
class CocoResults:
    """Checked detections of one type.

    Attributes:
        path: the file, for messages.
        truth: the ground truth they belong to.
        type: what is compared.
        name: the field that is read.
        has_boxes: whether detections have a ``bbox``.
        num_keypoints: of a detection, where the ground truth doesn't know it.
    """

    path: str
    truth: CocoAnnotations
    type: ResultType
    name: str
    has_boxes: bool
    num_keypoints: int
    _chunks: list[_Chunk] = field(default_factory=list)
    _size: int = 0

    def __post_init__(self) -> None:
        self.label_of = {same_id(category.id): i for i, category in enumerate(self.truth.categories)}
        self.names = self.truth.keypoint_names or tuple(map(str, range(self.num_keypoints)))
        self.places = [
            [self.names.index(name) for name in category.keypoints] or list(range(len(self.names)))
            for category in self.truth.categories
        ]
        self.row_type = _TYPES[self.name]
        self.decoder = msgspec.json.Decoder(list[self.row_type])  # type: ignore[name-defined]

    def __len__(self) -> int:
        return self._size

    def take(self, entries: list[Any]) -> None:
        """Check the next detections, and keep them."""
        start = self._size
        self._size += len(entries)
        ids = [category.id for category in self.truth.categories]
        chunk = _Chunk(
            start, entries,
            self._look_up("image_id", self.truth.images.row, entries, start, self.truth.images.ids),
            self._look_up("category_id", self.label_of, entries, start, ids),
        )  # fmt: skip
        missing = [entry.bbox for entry in entries].count(None)
        if missing != (0 if self.has_boxes else len(entries)):
            i = next(i for i, entry in enumerate(entries) if (entry.bbox is None) == self.has_boxes)
            self._refuse(chunk, i, "either all detections have a 'bbox' or none; the first one "
                                   f"{'has one' if self.has_boxes else 'has none'}")  # fmt: skip
        if self.name == "segmentation":
            self._check_masks(chunk)
        elif self.name == "keypoints":
            self._check_keypoints(chunk)
        self._chunks.append(chunk)

    def columns(self) -> ResultColumns:
        """All detections as arrays."""
        parts = [self._columns(chunk) for chunk in self._chunks]
        if not parts:
            none = np.zeros(0)
            rows = none.astype(np.int64)
            return ResultColumns(rows, rows, none, np.zeros((0, 4)), none, [], np.zeros((0, len(self.names), 3)))
        names = ("image_rows", "labels", "scores", "boxes", "areas")
        values = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        masks = [mask for part in parts for mask in part.masks or ()] if parts[0].masks is not None else None
        points = [part.keypoints for part in parts if part.keypoints is not None]
        return ResultColumns(**values, masks=masks, keypoints=np.concatenate(points) if points else None)

    def _columns(self, chunk: _Chunk) -> ResultColumns:
        entries = chunk.entries
        scores = np.array([entry.score for entry in entries], np.float64)
        boxes = np.array([entry.bbox for entry in entries], np.float64).reshape(-1, 4) if self.has_boxes else (
            np.zeros((len(entries), 4))
        )  # fmt: skip
        out = ResultColumns(chunk.image_rows, chunk.labels, scores, boxes, boxes[:, 2] * boxes[:, 3])
        if self.name == "segmentation":
            self._add_masks(out, chunk)
        elif self.name == "keypoints":
            self._add_keypoints(out, chunk)
        for name, values in (("score", scores), ("bbox", out.boxes)):
            bad = ~(np.abs(values).reshape(len(entries), -1).max(1, initial=0) <= MAX_COORDINATE)
            for i in np.flatnonzero(bad)[:1].tolist():
                self._refuse(
                    chunk, i, f"'{name}' must be finite and at most {MAX_COORDINATE:g}, not {values[i].tolist()}"
                )
        return out

    def decode(self, rows: Sequence[Any]) -> list[Any]:
        """The next detections, each given as JSON or as a dictionary, in their typed form."""
        try:
            if isinstance(rows[0], msgspec.Raw):
                return self.decoder.decode(b"[" + b",".join(rows) + b"]")
            return msgspec.convert(rows, list[self.row_type])  # type: ignore[name-defined]
        except (msgspec.DecodeError, RecursionError, UnicodeError, TypeError):
            first = self._size + 1
            return [self._normalize(row, f"{self.path}: detection number {i}") for i, row in enumerate(rows, first)]

    def _normalize(self, row: Any, where: str) -> _Detection:
        row = _as_object(row, where, self.path)
        image_id = identifier(required(row, "image_id", where), f"{where}: 'image_id'")
        where = f"{where} (image {image_id})"
        category_id = identifier(required(row, "category_id", where), f"{where}: 'category_id'")
        score = number(required(row, "score", where), f"{where}: 'score'")
        box = row.get("bbox")
        bbox: tuple[float, float, float, float] | None = None
        if box is not None and box != []:
            if not isinstance(box, list | tuple) or len(box) != 4:
                raise DataError(f"{where}: 'bbox' must be [left, top, width, height], not {box!r:.80}")
            left, top, width, height = (number(value, f"{where}: a coordinate of 'bbox'") for value in box)
            bbox = left, top, width, height
        value = required(row, self.name, where)
        if self.name == "bbox":
            if bbox is None:
                raise DataError(f"{where}: 'bbox' must be [left, top, width, height], not {describe(box)}")
            return _Box(image_id, category_id, score, bbox)
        if self.name == "segmentation":
            segmentation = normalize_segmentation(value, f"{where}: 'segmentation'")
            if segmentation is None:
                raise DataError(f"{where}: 'segmentation' must be a mask, not {describe(value)}")
            return _Mask(image_id, category_id, score, segmentation, bbox)
        if not isinstance(value, list | tuple):
            raise DataError(f"{where}: 'keypoints' must be a list [x1, y1, score1, ...], not {describe(value)}")
        points = [number(item, f"{where}: a coordinate of 'keypoints'") for item in value]
        return _Keypoints(image_id, category_id, score, points, bbox)

    def _look_up(
        self, key: str, table: Mapping[Id, int], entries: Sequence[Any], start: int, known: Sequence[Id]
    ) -> np.ndarray:
        ids = [getattr(entry, key) for entry in entries]
        rows = [table.get(value, -1) for value in ids]
        if -1 in rows:
            rows = [table.get(same_id(value), -1) for value in ids]
        if -1 in rows:
            i = rows.index(-1)
            raise DataError(
                f"{self.path}: detection number {start + i + 1} has the {key} {ids[i]!r}, which the ground truth "
                f"doesn't have; it has {len(known)}: {some(known, 5)}"
            )
        return np.array(rows, np.int64)

    def _refuse(self, chunk: _Chunk, i: int, problem: str) -> None:
        image = chunk.entries[i].image_id
        raise DataError(f"{self.path}: detection number {chunk.start + i + 1} (image {image}): {problem}")

    def _check_masks(self, chunk: _Chunk) -> None:
        """Put the masks into the compressed form, and check that they have the size of their image."""
        segmentations = [entry.segmentation for entry in chunk.entries]
        expected = self.truth.images.sizes[chunk.image_rows]
        if all(type(one) is RLE and type(one.counts) is str for one in segmentations):
            sizes = np.fromiter(chain.from_iterable([one.size for one in segmentations]), np.int64).reshape(-1, 2)
            texts = [one.counts.encode("utf-8", errors="replace") for one in segmentations]
            totals, areas = measure(texts)
            if (sizes == expected).all() and (totals == expected.prod(1)).all():
                chunk.encodings, chunk.areas = texts, areas.astype(np.float64)
                return
        for i in np.flatnonzero(expected.min(1, initial=MAX_SIDE) <= 0)[:1].tolist():
            self._refuse(chunk, i, "the image has no height and width in the ground truth")
        table = SegmentationTable.build(
            segmentations, range(len(expected)), expected, Report(self.path),
            lambda i: f"{self.path}: detection number {chunk.start + i + 1} (image {chunk.entries[i].image_id}): "
                      "'segmentation'",
        )  # fmt: skip
        encodings = [table.encode(row) for row in range(len(table))]
        chunk.encodings = [one["counts"] for one in encodings]
        chunk.areas = rle.area(encodings).astype(np.float64)

    def _check_keypoints(self, chunk: _Chunk) -> None:
        lengths = np.fromiter((len(entry.keypoints) for entry in chunk.entries), np.int64, len(chunk.entries))
        expected = np.array([3 * len(places) for places in self.places], np.int64)[chunk.labels]
        for i in np.flatnonzero(lengths != expected)[:1].tolist():
            self._refuse(chunk, i, f"'keypoints' has {lengths[i]} numbers; the category {chunk.entries[i].category_id} "
                                   f"has {expected[i] // 3} keypoints, so {expected[i]} numbers")  # fmt: skip

    def _add_masks(self, out: ResultColumns, chunk: _Chunk) -> None:
        out.masks = chunk.encodings
        if self.has_boxes:
            return
        assert chunk.areas is not None
        out.areas = chunk.areas
        if self.type == "bbox":
            sizes = self.truth.images.sizes[chunk.image_rows].tolist()
            corners = rle.to_boxes([{"size": size, "counts": mask} for size, mask in zip(sizes, out.masks)])
            out.boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)

    def _add_keypoints(self, out: ResultColumns, chunk: _Chunk) -> None:
        out.keypoints = np.zeros((len(out), len(self.names), 3))
        for label, places in enumerate(self.places):
            rows = np.flatnonzero(out.labels == label)
            if not len(rows):
                continue
            points = np.array([chunk.entries[row].keypoints for row in rows.tolist()], np.float64)
            points = points.reshape(len(rows), len(places), 3)
            for i in rows[~(np.abs(points).max((1, 2), initial=0) <= MAX_COORDINATE)][:1].tolist():
                self._refuse(chunk, i, f"'keypoints' must be finite and at most {MAX_COORDINATE:g}")
            out.keypoints[rows[:, None], places] = points
            if not self.has_boxes and len(places):
                low, high = points[..., :2].min(1), points[..., :2].max(1)
                out.boxes[rows] = np.concatenate((low, high - low), 1)
        out.areas = out.boxes[:, 2] * out.boxes[:, 3]
