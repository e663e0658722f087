"""Segmentations of COCO files: polygons and run-length encodings, checked before any codec reads them.

pycocotools' C code trusts its input: a coordinate that is not finite or far outside the image, or run lengths of the
wrong sum, cost it gigabytes, endless loops or the process. This module is the one place that decides what reaches it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
import numpy as np

from visionkit import rle
from visionkit.coco.report import Report
from visionkit.coco.run_lengths import measure
from visionkit.coco.values import describe, number, whole
from visionkit.errors import DataError

MAX_SIDE = 1 << 20
"""The largest height and width of an image, as in OpenCV."""
MAX_PIXELS = (1 << 31) - 1
"""The most pixels of an image with masks; pycocotools counts in 32 bits."""
MARGIN = 1.0
"""How far polygons may reach outside their image, in sides of the image (and 100 pixels)."""
_MAX_OUTLINE = 20_000_000  # pixels along the edges of an object's polygons; the codec needs about 50 bytes for each

_FORMS = "a list of polygons [[x1, y1, x2, y2, ...], ...] or an RLE {'size': [height, width], 'counts': ...}"

NONE, POLYGONS, RUN_LENGTHS, REJECTED = 0, 1, 2, 3
"""Kinds of segmentations; what was rejected is left out by the reader."""


class RLE(msgspec.Struct, gc=False):
    """A run-length encoding as in the file: ``counts`` compressed (a string) or not (a list of run lengths)."""

    size: tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)], Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]]
    counts: str | list[int]


Segmentation = list[list[float]] | RLE | None


def normalize_segmentation(value: Any, where: str) -> Segmentation:
    """A segmentation of any accepted spelling, in its typed form.

    Numbers may be strings. ``None`` and empty lists stand for an object without a mask.

    Raises:
        DataError: it is neither a list of polygons nor an RLE; the message starts with ``where`` and says what it is.
    """
    if value is None or (isinstance(value, list | Mapping) and not value):
        return None
    if isinstance(value, Mapping):
        return _normalize_rle(value, where)
    if not isinstance(value, list):
        raise DataError(f"{where} must be {_FORMS}, not {describe(value)}")
    if not any(isinstance(part, list) for part in value):
        form = "one flat list of numbers" if _are_numbers(value) else f"a list that holds {describe(value[0])}"
        raise DataError(f"{where} must be {_FORMS}, not {form}")
    for part in value:
        if not isinstance(part, list):
            raise DataError(f"{where} must be {_FORMS}; it is a list that holds {describe(part)}")
        if any(isinstance(item, list) for item in part):
            raise DataError(f"{where} must be {_FORMS}; its lists are nested one level too deep")
    if len(value) > 1 and all(len(part) == 2 for part in value):
        raise DataError(f"{where} must be {_FORMS}; it is a list of points [x, y]")
    polygons = [[number(item, f"{where}: a polygon coordinate") for item in part] for part in value]
    return polygons if any(polygons) else None


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _normalize_rle(value: Mapping[str, Any], where: str) -> RLE:
    for key in ("size", "counts"):
        if key not in value:
            raise DataError(f"{where}: the RLE has no '{key}'")
    size, counts = value["size"], value["counts"]
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise DataError(f"{where}: 'size' must be [height, width], not {describe(size)}")
    height, width = (whole(side, f"{where}: 'size'", least=0) for side in size)
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", errors="replace")
    if isinstance(counts, list | tuple):
        counts = [whole(run, f"{where}: a run length", least=0) for run in counts]
    elif not isinstance(counts, str):
        raise DataError(f"{where}: 'counts' must be a string or a list of run lengths, not {describe(counts)}")
    return RLE((height, width), counts)


def checked_rle(value: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Any segmentation of an image as a compressed encoding ``{"size": [height, width], "counts": bytes}``.

    Raises:
        DataError: it is malformed, empty or doesn't fit the image; the message starts with ``where``.
    """
    segmentation = normalize_segmentation(value, where)
    if segmentation is None:
        raise DataError(f"{where} is empty")
    report = Report(where)
    table = SegmentationTable.build([segmentation], [None], np.array([[height, width]]), report, lambda row: where)
    return table.encode(0)


@dataclass
class SegmentationTable:
    """The segmentations of N objects as a few large arrays.

    Attributes:
        kind: (N,) uint8 ``NONE``, ``POLYGONS`` or ``RUN_LENGTHS``.
        first, count: (N,) polygons of an object: ``first ... first + count - 1``.
        points: (polygons + 1,) where the coordinates of each polygon begin.
        coordinates: float64 x, y, x, y ... of all polygons, in several parts of any length, so that large files are
            read without a copy.
        bounds: where each part begins.
        encodings: row -> compressed run lengths.
        areas: (N,) float64: of run lengths in pixels, of polygons by the shoelace formula, 0 without a mask.
        sizes: (N, 2) height and width of the images.
    """

    kind: np.ndarray
    first: np.ndarray
    count: np.ndarray
    points: np.ndarray
    coordinates: list[np.ndarray]
    bounds: np.ndarray
    encodings: dict[int, bytes]
    areas: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def empty(cls, num_objects: int, sizes: np.ndarray) -> SegmentationTable:
        """No object has a mask."""
        none = np.zeros(num_objects, np.int64)
        return cls(
            none.astype(np.uint8), none, none, np.zeros(1, np.int64), [np.zeros(0)], none[:0], {}, none * 0.0, sizes
        )

    @classmethod
    def build(
        cls,
        segmentations: Sequence[Segmentation],
        ids: Sequence[Any],
        sizes: np.ndarray,
        report: Report,
        where: Callable[[int], str],
    ) -> SegmentationTable:
        """Check segmentations and put them into arrays; rows that the report rejects have the kind ``NONE``.

        Args:
            segmentations: one per object.
            ids: of the objects, for the report.
            sizes: (N, 2) height and width of their images.
            report: what is wrong goes there.
            where: row -> how messages name the segmentation.
        """
        polygons = [one if type(one) is list else [] for one in segmentations]
        encodings = {row: one for row, one in enumerate(segmentations) if type(one) is RLE}
        counts, flat, lengths = _flatten(polygons)
        rejected: list[int] = []
        if len(irregular := np.flatnonzero((lengths < 6) | (lengths % 2 > 0))):
            rows = np.unique(np.searchsorted(np.cumsum(counts), irregular, side="right"))
            rejected = [row for row in rows.tolist() if not _drop_short(polygons, row, ids, report, where)]
            counts, flat, lengths = _flatten(polygons)
        kind = np.where(counts > 0, POLYGONS, NONE).astype(np.uint8)
        kind[rejected] = REJECTED
        points = np.concatenate(([0], np.cumsum(lengths)))
        coordinates = np.fromiter(itertools.chain.from_iterable(flat), np.float64, int(points[-1]))
        areas = np.zeros(len(kind))
        bounds = np.zeros(1, np.int64)
        table = cls(kind, np.cumsum(counts) - counts, counts, points, [coordinates], bounds, {}, areas, sizes)
        table._measure_polygons(coordinates)
        table._reject_far_polygons(coordinates, ids, report, where)
        table._add_encodings(encodings, ids, report, where)
        return table

    def _reject_far_polygons(
        self, coordinates: np.ndarray, ids: Sequence[Any], report: Report, where: Callable[[int], str]
    ) -> None:
        """Polygons that lie far outside their image, are not finite, or are longer than any outline."""
        owner = np.repeat(np.arange(len(self)), self.count)
        lengths = np.diff(self.points)
        if not len(owner):
            return
        slack = (MARGIN * self.sizes[:, ::-1] + 100).max(1)
        # Most files need one look at the extremes only.
        low, high = coordinates.min(), coordinates.max()
        small = lengths.max() < 1000
        if small and np.isfinite(low + high) and low >= -slack[owner].min() and high <= self.sizes[owner].min():
            return
        starts = self.points[:-1]
        limit = self.sizes[owner][:, ::-1].astype(np.float64)  # width, height
        bad = np.zeros(len(owner), bool)
        for axis in (0, 1):
            values = coordinates[axis::2]
            lowest, highest = np.minimum.reduceat(values, starts // 2), np.maximum.reduceat(values, starts // 2)
            side, margin = limit[:, axis], MARGIN * limit[:, axis] + 100
            bad |= ~((lowest >= -margin) & (highest <= side + margin))  # NaN is bad too
        outline = np.zeros(len(self))
        for polygon in np.flatnonzero(~bad & (lengths >= 1000)).tolist():
            xy = coordinates[self.points[polygon] : self.points[polygon + 1]].reshape(-1, 2)
            outline[owner[polygon]] += np.abs(np.diff(xy, axis=0, append=xy[:1])).max(1).sum()
        for row in np.unique(owner[bad]).tolist():
            height, width = self.sizes[row]
            values = np.concatenate(self.polygons(row))
            value = next((v for v in values.tolist() if not np.isfinite(v)), None)
            if value is None:
                value = max(values.tolist(), key=lambda v: abs(v - max(height, width) / 2))
            problem = "is not finite" if not np.isfinite(value) else f"lies far outside the image of {height}x{width}"
            report.reject("a polygon far outside its image", ids[row],
                          f"{where(row)}: the coordinate {value} {problem} (height x width)"
                          if np.isfinite(value) else f"{where(row)}: the coordinate {value} is not finite")  # fmt: skip
            self.kind[row] = REJECTED
        for row in np.flatnonzero(outline > _MAX_OUTLINE).tolist():
            report.reject("a polygon with too long an outline", ids[row],
                          f"{where(row)}: the outline of its polygons is {outline[row]:.0f} pixels long; at most "
                          f"{_MAX_OUTLINE} are supported")  # fmt: skip
            self.kind[row] = REJECTED

    def _add_encodings(
        self, encodings: Mapping[int, RLE], ids: Sequence[Any], report: Report, where: Callable[[int], str]
    ) -> None:
        rows, texts = self._compress(encodings, ids, report, where)
        totals, areas = measure(texts)
        self.kind[rows], self.areas[rows] = RUN_LENGTHS, areas
        self.encodings.update(zip(rows.tolist(), texts))
        for at in np.flatnonzero(totals != self.sizes[rows].prod(1)).tolist():
            row, text = int(rows[at]), texts[at].decode("ascii", errors="replace")
            height, width = self.sizes[row].tolist()
            if totals[at] >= 0:
                problem = f": its run lengths add up to {totals[at]}, not to {height} x {width} = {height * width}"
            else:
                hint = "; it looks like Python's notation of bytes" if text.startswith("b'") else ""
                problem = (f": the counts {describe(text, 24)} are not compressed run lengths of {height}x{width} "
                           f"pixels{hint}")  # fmt: skip
            report.reject("run lengths that don't fit the image", ids[row], where(row) + problem)
            self.kind[row] = REJECTED
            del self.encodings[row]

    def _compress(
        self, encodings: Mapping[int, RLE], ids: Sequence[Any], report: Report, where: Callable[[int], str]
    ) -> tuple[np.ndarray, list[bytes]]:
        """The rows whose encoding has the size of the image, and their run lengths in the compressed form."""
        rows = np.fromiter(encodings, np.int64, len(encodings))
        sizes = np.array([one.size for one in encodings.values()], np.int64).reshape(-1, 2)
        counts = [one.counts for one in encodings.values()]
        other = (sizes != self.sizes[rows]).any(1)
        if not other.any() and all(type(one) is str for one in counts):
            return rows, [one.encode("utf-8", errors="replace") for one in counts]  # type: ignore[union-attr]
        texts = {}
        for row, one, (height, width) in zip(rows.tolist(), encodings.values(), self.sizes[rows].tolist()):
            try:
                if tuple(one.size) != (height, width):
                    raise DataError(f"{where(row)} is a mask of {one.size[0]}x{one.size[1]} (height x width), but its "
                                    f"image is {height}x{width}")  # fmt: skip
                texts[row] = _compressed(one, where(row))
            except DataError as error:
                report.reject("run lengths that don't fit the image", ids[row], error)
                self.kind[row] = REJECTED
        return np.fromiter(texts, np.int64, len(texts)), list(texts.values())

    def _measure_polygons(self, coordinates: np.ndarray) -> None:
        if len(coordinates):
            x, y = coordinates[0::2], coordinates[1::2]
            starts = self.points[:-1] // 2
            following = np.arange(1, len(x) + 1)
            following[self.points[1:] // 2 - 1] = starts  # the last corner is joined to the first
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is rejected later
                shoelace = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
            owner = np.repeat(np.arange(len(self)), self.count)
            self.areas += np.bincount(owner, shoelace, minlength=len(self))

    def num_pixels(self, row: int) -> int:
        """The number of pixels of an object's mask."""
        return int(rle.area([self.encode(row)])[0])

    def select(self, rows: np.ndarray) -> SegmentationTable:
        """The segmentations of these rows, over the same coordinates."""
        place = {int(row): i for i, row in enumerate(rows)} if self.encodings else {}
        return replace(
            self,
            kind=self.kind[rows],
            first=self.first[rows],
            count=self.count[rows],
            encodings={place[row]: text for row, text in self.encodings.items() if row in place},
            areas=self.areas[rows],
            sizes=self.sizes[rows],
        )

    @classmethod
    def concatenate(cls, tables: Sequence[SegmentationTable]) -> SegmentationTable:
        """All rows of several tables."""
        polygons = np.cumsum([0, *(len(t.points) - 1 for t in tables)])
        numbers = np.cumsum([0, *(int(t.points[-1]) for t in tables)])
        rows = np.cumsum([0, *(len(t) for t in tables)])
        return cls(
            kind=np.concatenate([t.kind for t in tables]),
            first=np.concatenate([t.first + start for t, start in zip(tables, polygons)]),
            count=np.concatenate([t.count for t in tables]),
            points=np.concatenate([t.points[:-1] + start for t, start in zip(tables, numbers)] + [numbers[-1:]]),
            coordinates=[part for t in tables for part in t.coordinates],
            bounds=np.concatenate([t.bounds + start for t, start in zip(tables, numbers)]),
            encodings={row + int(start): text for t, start in zip(tables, rows) for row, text in t.encodings.items()},
            areas=np.concatenate([t.areas for t in tables]),
            sizes=np.concatenate([t.sizes for t in tables]),
        )

    def polygons(self, row: int) -> list[np.ndarray]:
        """The polygons of an object, each x, y, x, y ..."""
        first = int(self.first[row])
        if not self.count[row]:
            return []
        part = int(np.searchsorted(self.bounds, self.points[first], side="right")) - 1
        points = self.points[first : first + self.count[row] + 1] - self.bounds[part]
        return [self.coordinates[part][start:stop] for start, stop in itertools.pairwise(points)]

    def encode(self, row: int) -> dict[str, Any]:
        """The mask of an object as ``{"size": [height, width], "counts": bytes}``; rasterized as COCO does."""
        height, width = (int(side) for side in self.sizes[row])
        if self.kind[row] == RUN_LENGTHS:
            return {"size": [height, width], "counts": self.encodings[row]}
        if self.kind[row] == POLYGONS:
            return rle.from_polygons([polygon.tolist() for polygon in self.polygons(row)], height, width)
        return rle.empty(height, width)

    def to_coco(self, row: int) -> Any:
        """The segmentation as COCO has it: polygons, or an RLE whose counts are a string; ``None`` without a mask."""
        if self.kind[row] == POLYGONS:
            return [polygon.tolist() for polygon in self.polygons(row)]
        if self.kind[row] == RUN_LENGTHS:
            return {"size": self.sizes[row].tolist(), "counts": self.encodings[row].decode()}
        return None

    def box(self, row: int) -> list[float] | None:
        """Left, top, width and height of an object's mask in pixels; ``None`` without a mask."""
        if self.kind[row] == POLYGONS:
            xy = np.concatenate(self.polygons(row)).reshape(-1, 2)
            low, high = xy.min(0), xy.max(0)
            return [*low.tolist(), *(high - low).tolist()]
        if self.kind[row] == RUN_LENGTHS:
            left, top, right, bottom = rle.to_boxes([self.encode(row)])[0].tolist()
            return [left, top, right - left, bottom - top]
        return None


def _flatten(polygons: list[list[list[float]]]) -> tuple[np.ndarray, list[list[float]], np.ndarray]:
    """The number of polygons of each object, all polygons, and their lengths."""
    flat = list(itertools.chain.from_iterable(polygons))
    counts = np.fromiter(map(len, polygons), np.int64, len(polygons))
    return counts, flat, np.fromiter(map(len, flat), np.int64, len(flat))


def _drop_short(
    polygons: list[list[list[float]]], row: int, ids: Sequence[Any], report: Report, where: Callable[[int], str]
) -> bool:
    """Leave out an object's polygons of fewer than three points; false if the object is rejected."""
    given = polygons[row]
    polygons[row] = [polygon for polygon in given if len(polygon) >= 6]
    if any(len(polygon) % 2 for polygon in given):
        problem = "a polygon with an odd number of coordinates"
        report.reject(problem, ids[row], f"{where(row)} has {problem}")
    elif len(given) > 1 and all(len(polygon) == 2 for polygon in given):
        report.reject("a segmentation that is a list of points", ids[row],
                      f"{where(row)} must be {_FORMS}; it is a list of points [x, y]")  # fmt: skip
    elif any(given) and not polygons[row]:
        report.reject("a segmentation of zero area", ids[row],
                      f"{where(row)} has zero area: no polygon has three or more points")  # fmt: skip
    else:
        if any(given):
            report.note(
                "objects have polygons of one or two points, which enclose nothing and are left out", [ids[row]]
            )
        return True
    polygons[row] = []
    return False


def _compressed(one: RLE, where: str) -> bytes:
    if isinstance(one.counts, str):
        return one.counts.encode("utf-8", errors="replace")
    height, width = one.size
    if min(one.counts, default=0) < 0:
        raise DataError(f"{where} has a negative run length, {min(one.counts)}")
    if (total := sum(one.counts)) != height * width:
        raise DataError(f"{where}: its run lengths add up to {total}, not to {height} x {width} = {height * width}")
    return rle.from_uncompressed({"size": [height, width], "counts": one.counts})["counts"]
