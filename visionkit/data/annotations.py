"""COCO annotations as compact arrays, checked once when they are read.

36,000 objects are some large arrays here, not 36,000 dictionaries: quick to make and cheap to hand to worker processes.
Masks stay polygons and run lengths until an image is loaded.
"""

from __future__ import annotations

import gc
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from visionkit.errors import DataError
from visionkit.layers import rle
from visionkit.types import LabelSet

OnError = Literal["fail", "skip"]
Ids = Sequence[Any] | np.ndarray


def read_json(path: str, *, lists: Sequence[str]) -> dict[str, Any]:
    """A JSON object that holds these lists.

    Raises:
        DataError: the file is missing, no JSON, or lacks one of them.
    """
    try:
        with open(path, "rb") as file, _no_garbage_collection():
            data = json.loads(file.read())
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    for name in lists:
        if not isinstance(data, dict) or not isinstance(data.get(name), list):
            raise DataError(f"{path}: has no list '{name}'; a COCO file holds {', '.join(lists)}")
    return data


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage: looking for some in between takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def column(path: str, rows: Sequence[Mapping[str, Any]], what: str, key: str) -> list[Any]:
    """``row[key]`` of every row. Raises DataError for the first that has none; ``what`` is what a row is called."""
    try:
        return [row[key] for row in rows]
    except (KeyError, TypeError):
        at, row = next((i, r) for i, r in enumerate(rows) if not isinstance(r, dict) or key not in r)
        name = f"{what} {row['id']}" if isinstance(row, dict) and "id" in row else f"entry {at} of the {what}s"
        raise DataError(f"{path}: {name} has no '{key}'") from None


def first_twice(values: Sequence[Any]) -> Any:
    """The first value that occurs again, or ``None``."""
    if len(set(values)) == len(values):
        return None
    seen: set[Any] = set()
    return next(v for v in values if v in seen or seen.add(v))  # type: ignore[func-returns-value]


@dataclass
class Report:
    """What is wrong in a file: raised at once, or left out and counted.

    Attributes:
        path: the file.
        on_error: ``"fail"`` or ``"skip"``.
        lines: what was mended or left out.
    """

    path: str
    on_error: OnError = "fail"
    lines: list[str] = field(default_factory=list)

    def mended(self, ids: Ids, what: str) -> None:
        """Note that ``what`` was done for the rows of these ids."""
        if len(ids):
            some = ", ".join(str(i) for i in ids[:3]) + (", ..." if len(ids) > 3 else "")
            self.lines.append(f"{self.path}: {len(ids)} {what} (id {some})")

    def wrong(self, bad: np.ndarray, ids: Ids, summary: str, message: Callable[[int], str]) -> np.ndarray:
        """Rows to keep, of which ``bad`` are wrong.

        Raises:
            DataError: there is one, and ``on_error`` is ``"fail"``; ``message`` is given its row.
        """
        rows = np.flatnonzero(bad).tolist()
        if rows and self.on_error == "fail":
            raise DataError(f"{self.path}: {message(rows[0])}")
        self.mended([ids[row] for row in rows], f"left out: {summary}")
        return ~bad


@dataclass
class Annotations:
    """The objects of a COCO file, in the order of their images; image ``i`` owns rows ``starts[i] ... starts[i + 1]``.

    Attributes:
        ids: (N,) int64. labels: (N,) int64. crowd: (N,) bool. areas: (N,) float32.
        boxes: (N, 4) float32, left, top, right, bottom, inside the image.
        keypoints: (N, K, 3) float32, or ``None``.
        segments: their masks, or ``None``.
    """

    starts: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray | None = None
    segments: Segments | None = None


def read_annotations(
    entries: list[dict[str, Any]],
    image_row: Mapping[Any, int],
    sizes: np.ndarray,
    categories: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    report: Report,
) -> Annotations:
    """The annotations of a file as arrays.

    Args:
        entries: the list ``annotations``.
        image_row: image id -> number of the image.
        sizes: (images, 2) height and width.
        categories: the list ``categories``; labels are positions in it.
        tasks: whether masks and keypoints are wanted.
        report: takes what is mended.

    Raises:
        DataError: an annotation contradicts the file; the message names both.
    """
    path = report.path
    ids = column(path, entries, "annotation", "id")
    if (twice := first_twice(ids)) is not None:
        raise DataError(f"{path}: annotation id {twice} is given twice")
    label_of = {category["id"]: i for i, category in enumerate(categories)}
    category_ids = column(path, entries, "annotation", "category_id")
    image_ids = column(path, entries, "annotation", "image_id")
    labels = np.array([label_of.get(c, -1) for c in category_ids], np.int64)
    images = np.array([image_row.get(i, -1) for i in image_ids], np.int64)
    keep = report.wrong(
        labels < 0, ids, "their category is not in categories",
        lambda row: f"annotation {ids[row]} has category_id {category_ids[row]}, which is not in categories "
                    f"({_some(list(label_of))})",
    )  # fmt: skip
    keep &= report.wrong(
        images == -1, ids, "their image is not in the file",
        lambda row: f"annotation {ids[row]} belongs to image {image_ids[row]}, which is not in the list 'images'",
    )  # fmt: skip
    keep &= images >= 0  # -2: its image was left out, and said so, before

    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(images[rows], kind="stable")]
    entries = [entries[row] for row in rows]
    images, labels = images[rows], labels[rows]
    numbers = np.array([ids[row] for row in rows], np.int64)
    segments = Segments.read(entries, numbers, sizes[images], report) if "masks" in tasks else None
    boxes, good = _read_boxes(entries, numbers, sizes[images], segments, report)
    if segments is not None:
        good &= report.wrong(
            good & (segments.areas <= 1e-6), numbers, "a segmentation of zero area",
            lambda row: f"annotation {numbers[row]} (image {entries[row]['image_id']}) has a segmentation of zero "
                        "area; on_error: skip leaves such annotations out",
        )  # fmt: skip
    keypoints = None
    if "keypoints" in tasks:
        keypoints, fits = _read_keypoints(entries, numbers, labels, categories, report)
        good &= fits

    extents = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    areas = np.array([a["area"] if _numeric([a.get("area")]) else -1.0 for a in entries], np.float32)
    measured = segments.areas.astype(np.float32) if segments is not None else extents
    final = np.flatnonzero(good)
    return Annotations(
        starts=np.searchsorted(images[final], np.arange(len(sizes) + 1)),
        ids=numbers[final],
        labels=labels[final],
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in entries], bool)[final],
        areas=np.where(areas >= 0, areas, measured).astype(np.float32)[final],
        boxes=boxes[final],
        keypoints=None if keypoints is None else keypoints[final],
        segments=None if segments is None else segments.select(final),
    )


def _some(values: Sequence[Any], most: int = 12) -> str:
    shown = ", ".join(str(v) for v in values[:most])
    return shown + (f", ... {len(values)} in all" if len(values) > most else "")


def _read_boxes(
    entries: list[dict[str, Any]], ids: np.ndarray, sizes: np.ndarray, segments: Segments | None, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) clipped to the image, and which of them have an area inside it."""
    given = [a.get("bbox") or (segments.box(row) if segments is not None else None) for row, a in enumerate(entries)]
    bad = np.array([b is None or len(b) != 4 or not _numeric(b) for b in given], bool)
    good = report.wrong(bad, ids, "no box of four numbers", lambda row: f"annotation {ids[row]} has "
                        f"{'no bbox' if given[row] is None else f'the bbox {given[row]}'}; "
                        "it must be [left, top, width, height]")  # fmt: skip
    boxes = np.array([(0, 0, 0, 0) if wrong else box for box, wrong in zip(given, bad)], np.float64).reshape(-1, 4)
    good &= report.wrong(
        np.asarray(~np.isfinite(boxes).all(1)), ids, "a box that is not finite",
        lambda row: f"annotation {ids[row]} has the bbox {given[row]}, which is not finite",
    )  # fmt: skip
    boxes[:, 2:] += boxes[:, :2]
    limit = sizes[:, (1, 0, 1, 0)].astype(np.float64)
    clipped = np.minimum(np.maximum(boxes, 0), limit)
    # Annotation tools round: a box that ends within a hundredth of a pixel beyond the edge is not worth a word.
    outside = good & (np.abs(clipped - boxes).max(1, initial=0) > 0.01)
    empty = good & ((clipped[:, 2:] - clipped[:, :2]).min(1, initial=np.inf) < 1e-3)
    report.mended(ids[outside & ~empty], "boxes reach outside their image: clipped")
    report.mended(ids[empty], "boxes have no area inside their image: left out")
    return clipped.astype(np.float32), good & ~empty


@dataclass
class Segments:
    """Masks of N objects, as polygons or run lengths.

    Attributes:
        kind: (N,) 0 none, 1 polygons, 2 run lengths.
        areas: (N,) float64; of polygons by the shoelace formula.
        parts: (N + 1,) where the polygons of an object begin in ``points``.
        points: (polygons + 1,) where the coordinates of a polygon begin.
        coordinates: x, y, x, y ... of all polygons.
        runs: (N + 1,) where the run lengths of an object begin in ``text``.
        text: COCO's compressed run lengths of all objects, as bytes.
        sizes: (N, 2) height and width of their images.
    """

    kind: np.ndarray
    areas: np.ndarray
    parts: np.ndarray
    points: np.ndarray
    coordinates: np.ndarray
    runs: np.ndarray
    text: bytes
    sizes: np.ndarray

    @classmethod
    def read(cls, entries: list[dict[str, Any]], ids: np.ndarray, sizes: np.ndarray, report: Report) -> Segments:
        """The ``segmentation`` of every annotation. Raises DataError for one in no known form."""
        kind = np.zeros(len(entries), np.uint8)
        polygons: list[list[list[float]]] = [[]] * len(entries)
        runs: list[bytes] = [b""] * len(entries)
        for row, entry in enumerate(entries):
            given = entry.get("segmentation")
            if not given:
                continue
            try:
                if isinstance(given, dict):
                    kind[row], runs[row] = 2, _compressed(given, sizes[row])
                else:
                    # Fewer than three points enclose nothing (and the codec would take four numbers for a box).
                    kind[row], polygons[row] = 1, [p for p in given if len(p) >= 6]
                    if any(len(p) % 2 for p in given):
                        raise ValueError("has a polygon with an odd number of coordinates")
            except (ValueError, TypeError, KeyError) as error:
                why = str(error) if type(error) is ValueError else "is neither polygons nor run lengths"
                raise DataError(f"{report.path}: the segmentation of annotation {ids[row]} {why}") from None
        flat = list(itertools.chain.from_iterable(polygons))
        try:
            coordinates = np.fromiter(itertools.chain.from_iterable(flat), np.float64)
        except (ValueError, TypeError):
            row = next(i for i, own in enumerate(polygons) if not all(map(_numeric, own)))
            what = "has a polygon that is not a list of numbers"
            raise DataError(f"{report.path}: annotation {ids[row]} {what}") from None
        out = cls(
            kind=kind,
            areas=np.zeros(len(entries)),
            parts=_offsets([len(p) for p in polygons]),
            points=_offsets([len(p) for p in flat]),
            coordinates=coordinates,
            runs=_offsets([len(r) for r in runs]),
            text=b"".join(runs),
            sizes=sizes,
        )
        out._measure()
        return out

    def _measure(self) -> None:
        encoded = np.flatnonzero(self.kind == 2).tolist()
        if encoded:
            # One at a time: pycocotools 2.0.11 cannot measure more than 255 in one call.
            self.areas[encoded] = [rle.area([self.encoded(row)])[0] for row in encoded]
        if len(self.coordinates):
            x, y = self.coordinates[0::2], self.coordinates[1::2]
            starts = self.points[:-1] // 2
            following = np.arange(1, len(x) + 1)
            following[self.points[1:] // 2 - 1] = starts  # the last corner is joined to the first
            shoelace = np.abs(np.add.reduceat(x * y[following] - x[following] * y, starts)) / 2
            owner = np.repeat(np.arange(len(self.areas)), np.diff(self.parts))
            self.areas += np.bincount(owner, shoelace, minlength=len(self.areas))

    def select(self, rows: np.ndarray) -> Segments:
        """The masks of these rows, over the same coordinates where that is all of them."""
        if len(rows) == len(self.kind):
            return self
        polygons = [self.polygons(row) for row in rows]
        flat = list(itertools.chain.from_iterable(polygons))
        runs = [self.text[self.runs[row] : self.runs[row + 1]] for row in rows]
        return Segments(
            kind=self.kind[rows],
            areas=self.areas[rows],
            parts=_offsets([len(p) for p in polygons]),
            points=_offsets([len(p) for p in flat]),
            coordinates=np.concatenate(flat) if flat else self.coordinates[:0],
            runs=_offsets([len(r) for r in runs]),
            text=b"".join(runs),
            sizes=self.sizes[rows],
        )

    def polygons(self, row: int) -> list[np.ndarray]:
        """The polygons of an object, each x, y, x, y ..."""
        first, last = self.parts[row], self.parts[row + 1]
        return [self.coordinates[self.points[i] : self.points[i + 1]] for i in range(first, last)]

    def encoded(self, row: int) -> dict[str, Any]:
        """The compressed run lengths of an object, as pycocotools takes them."""
        height, width = (int(v) for v in self.sizes[row])
        if self.kind[row] == 2:
            return {"size": [height, width], "counts": self.text[self.runs[row] : self.runs[row + 1]]}
        return rle.from_polygons([p.tolist() for p in self.polygons(row)], height, width)

    def box(self, row: int) -> list[float] | None:
        """Left, top, width, height of an object, for annotations without a box."""
        if self.kind[row] == 1 and (polygons := self.polygons(row)):
            points = np.concatenate(polygons).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            return [*low, *(high - low)]
        if self.kind[row] == 2:
            left, top, right, bottom = rle.to_boxes([self.encoded(row)])[0].tolist()
            return [left, top, right - left, bottom - top]
        return None

    def decode(self, first: int, last: int, size: tuple[int, int]) -> np.ndarray:
        """The masks of rows ``first ... last`` of one image, (last - first, H, W) uint8 of 0 and 1."""
        out = np.zeros((last - first, *size), np.uint8)
        for i, row in enumerate(range(first, last)):
            if self.kind[row]:
                cv2.transpose(rle.decode(self.encoded(row)).T, dst=out[i])  # column by column -> row by row
        return out


def _numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(np.array(lengths, np.int64))))


def _compressed(given: Mapping[str, Any], size: np.ndarray) -> bytes:
    """COCO run lengths, compressed or not, as compressed bytes; ``ValueError`` says what is wrong with them."""
    height, width = (int(v) for v in size)
    if list(given["size"]) != [height, width]:
        raise ValueError(f"is for an image of {given['size']}, and its image is [{height}, {width}]")
    return rle.from_segmentation(given, height, width)["counts"]


def keypoint_names(categories: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names of the keypoints of all categories together, in order; a name that several share is one keypoint.

    Categories with one list, or where the others are the beginning of the longest, give just that (longest) list.
    """
    lists = sorted((c.get("keypoints") or [] for c in categories), key=len, reverse=True)
    return tuple(dict.fromkeys(name for names in lists for name in names))


def mirror_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints that change places in a mirror, by their names: ``left_eye`` and ``right_eye``, ``leftear``
    and ``rightear``, ``l_hip`` and ``r_hip``, ``eye.L`` and ``eye.R``."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    for name in names:
        word = re.sub("left|Left|LEFT", lambda m: {"left": "right", "Left": "Right", "LEFT": "RIGHT"}[m[0]], name)
        letter = re.sub(r"(?<![A-Za-z0-9])[lL](?![A-Za-z0-9])", lambda m: "r" if m[0] == "l" else "R", name)
        for other in (word, letter):
            if other != name and other in index:
                pairs.append((index[name], index[other]))
                break
    return tuple(pairs)


def category_labels(path: str, categories: Sequence[Mapping[str, Any]], *, keypoints: bool = False) -> LabelSet:
    """The label set of a list ``categories``: original ids, things, colours, and with ``keypoints`` their names,
    skeleton (counted from 0), mirror pairs and, where a category has a list ``sigmas``, their fall-off.

    Raises:
        DataError: an id or a name is given twice, or a skeleton names a keypoint that is not there.
    """
    for key in ("id", "name"):
        if (twice := first_twice(column(path, categories, "category", key))) is not None:
            raise DataError(f"{path}: two categories have the {key} {twice!r}")
    names = keypoint_names(categories) if keypoints else ()
    skeleton: dict[tuple[int, int], None] = {}
    for category in categories if keypoints else ():
        own = category.get("keypoints") or []
        for limb in category.get("skeleton") or []:
            if len(limb) != 2 or not all(1 <= end <= len(own) for end in limb):
                raise DataError(f"{path}: the skeleton of category '{category['name']}' joins {limb}; "
                                f"its keypoints are counted from 1 to {len(own)}")  # fmt: skip
            skeleton[names.index(own[limb[0] - 1]), names.index(own[limb[1] - 1])] = None
    colors = [category.get("color") for category in categories]
    return LabelSet(
        names=tuple(str(category["name"]) for category in categories),
        ids=tuple(category["id"] for category in categories),
        things=tuple(bool(category.get("isthing", 1)) for category in categories),
        colors=tuple(tuple(c) for c in colors if c) if all(colors) else (),
        keypoints=names,
        skeleton=tuple(skeleton),
        swaps=mirror_pairs(names),
        sigmas=_sigmas(categories, names),
    )


def _sigmas(categories: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[float, ...]:
    known: dict[str, float] = {}
    for category in categories:
        known |= dict(zip(category.get("keypoints") or [], category.get("sigmas") or []))
    return tuple(float(known[name]) for name in names) if names and all(name in known for name in names) else ()


def _read_keypoints(
    entries: list[dict[str, Any]],
    ids: np.ndarray,
    labels: np.ndarray,
    categories: Sequence[Mapping[str, Any]],
    report: Report,
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, K, 3), each at the place of its name, and which annotations have the right number of them."""
    names = keypoint_names(categories)
    own = [category.get("keypoints") or [] for category in categories]
    lengths = np.array([3 * len(k) for k in own], np.int64)[labels]
    given = [a.get("keypoints") or [] for a in entries]
    found = np.array([len(k) for k in given], np.int64)
    good = report.wrong(
        (found != lengths) & (found > 0), ids, "the wrong number of keypoints",
        lambda row: f"annotation {ids[row]} has {found[row]} keypoint numbers; category "
                    f"'{categories[labels[row]]['name']}' has {lengths[row] // 3} keypoints, so {lengths[row]} numbers",
    )  # fmt: skip
    good &= report.wrong(
        np.array([not _numeric(k) for k in given], bool), ids, "keypoints that are not numbers",
        lambda row: f"annotation {ids[row]} has keypoints that are not numbers",
    )  # fmt: skip
    out = np.zeros((len(entries), len(names), 3), np.float32)
    for label, mine in enumerate(own):
        rows = np.flatnonzero((labels == label) & good & (found > 0))
        if len(rows):
            values = np.array([given[row] for row in rows], np.float32).reshape(len(rows), len(mine), 3)
            out[rows[:, None], [names.index(name) for name in mine]] = values
    bad = np.asarray((~np.isin(out[..., 2], (0, 1, 2)) | ~np.isfinite(out).all(-1)).any(-1))
    good &= report.wrong(
        bad, ids, "keypoints with a visibility other than 0, 1, 2",
        lambda row: f"annotation {ids[row]} has a keypoint whose visibility is not 0, 1 or 2",
    )  # fmt: skip
    return out, good
