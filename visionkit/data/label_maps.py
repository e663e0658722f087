"""From the pixels of label maps to labels: tables of values, palettes of colors, and what a sample of maps holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionkit.data.base import Source
from visionkit.data.images import read_label_map
from visionkit.errors import DataError
from visionkit.types import IGNORE, LabelSet, SemanticTarget

MAX_VALUE = 2**16 - 1
NUM_SAMPLED = 16
"""As many label maps of a source are looked at before a run starts; twice as many where their colors are checked."""
LARGE_SHARE = 0.25
"""If a larger share of a label map has unknown colors, the map is refused; if a larger share of a source is ignored,
this is reported."""
_NEAR = 16  # per channel; lossy compression and wrong palettes are off by less, borders between two colors by more
_FEW = 16  # pixels
_UNKNOWN = IGNORE + 1
_BASE = np.array((65536, 256, 1), np.int32)


class ValueTable:
    """The labels of pixel values.

    Args:
        labels: value -> label; ``IGNORE`` for a value that is ignored.
        allowed: the values in words, for messages.

    Raises:
        DataError: a value that no label map can hold.
    """

    def __init__(self, labels: Mapping[int, int], allowed: str) -> None:
        self.allowed = allowed
        self._table = np.full(MAX_VALUE + 1, _UNKNOWN, np.uint16)
        for value, label in labels.items():
            if not 0 <= value <= MAX_VALUE:
                raise DataError(f"the pixel value {value} is impossible: label maps have values in 0 ... {MAX_VALUE}")
            self._table[value] = label

    def __call__(self, path: str, pixels: np.ndarray) -> np.ndarray:
        """(H, W) uint8 labels. Raises ``DataError`` for a value that is not in the table."""
        labels = self._table[pixels]
        if (unknown := labels == _UNKNOWN).any():
            values, counts = np.unique(pixels[unknown], return_counts=True)
            shown = ", ".join(str(value) for value in values[:5]) + (" ..." if len(values) > 5 else "")
            raise DataError(f"{path}: {counts.sum()} pixels of value {shown}; {self.allowed}")
        return labels.astype(np.uint8)


class Palette:
    """The labels of colors.

    Colors that are not listed are ignored where they are few, as on antialiased borders.

    Args:
        colors: [red, green, blue] of each entry.
        labels: the label of each entry, ``IGNORE`` for a color that is ignored; several may have the same.
        names: of the labels.
        hint: what can be done about other colors, for messages.

    Raises:
        DataError: a color that is not three numbers in 0 ... 255, or is given twice.
    """

    def __init__(
        self, colors: Sequence[Sequence[int]], labels: Sequence[int], names: Sequence[str], hint: str = ""
    ) -> None:
        self.names, self.hint = tuple(names), hint
        for color in colors:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise DataError(f"palette: a color is [red, green, blue] in 0 ... 255, not {list(color)}")
        entries = np.array(colors, np.int32).reshape(-1, 3)
        codes = entries @ _BASE
        order = np.argsort(codes)
        self.colors, self.labels, self._codes = entries[order], np.array(labels, np.uint8)[order], codes[order]
        if (same := np.flatnonzero(np.diff(self._codes) == 0)).size:
            color = self.colors[same[0]].tolist()
            raise DataError(f"palette: the color {color} is given twice")

    def __call__(self, path: str, pixels: np.ndarray) -> np.ndarray:
        """(H, W) uint8 labels of colors (H, W, 3).

        Raises:
            DataError: unknown colors make up more than :data:`LARGE_SHARE` of the pixels, or most of a class: pixels
                near its color are more than those of exactly its color.
        """
        labels, unknown = self.lookup(pixels)
        if not unknown:
            return labels
        near = sum((c.count for c in unknown if c.distance <= _NEAR), start=0)
        if sum(c.count for c in unknown) > LARGE_SHARE * labels.size:
            raise DataError(f"{path}: {self.explain(unknown, labels.size)}{self.hint}")
        if near >= _FEW:
            self._check_near(path, labels, [c for c in unknown if c.distance <= _NEAR])
        return labels

    def _check_near(self, path: str, labels: np.ndarray, unknown: list[UnknownColor]) -> None:
        exact = np.bincount(labels.ravel(), minlength=IGNORE + 1)
        for label in {int(self.labels[c.nearest]) for c in unknown} - {IGNORE}:
            near = [c for c in unknown if self.labels[c.nearest] == label]
            if (count := sum(c.count for c in near)) > exact[label] and count >= _FEW:
                raise DataError(f"{path}: {self.explain(near, labels.size)}, while only {exact[label]} pixels have "
                                f"exactly the color of that class{self.hint}")  # fmt: skip

    def lookup(self, pixels: np.ndarray) -> tuple[np.ndarray, list[UnknownColor]]:
        """(H, W) uint8 labels, and the unknown colors, the most frequent ones first."""
        codes = pixels.astype(np.int32) @ _BASE
        at = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        known = self._codes[at] == codes
        labels = np.where(known, self.labels[at], np.uint8(IGNORE))
        if known.all():
            return labels, []
        values, counts = np.unique(codes[~known], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:4096]  # more are noise
        values, counts = values[order], counts[order]
        colors = np.stack((values >> 16, values >> 8 & 255, values & 255), 1)
        distances = np.abs(colors[:, None] - self.colors).max(2)
        nearest = distances.argmin(1)
        return labels, [
            UnknownColor((int(c[0]), int(c[1]), int(c[2])), int(n), int(i), int(row[i]))
            for c, n, i, row in zip(colors, counts, nearest, distances)
        ]

    def explain(self, unknown: Sequence[UnknownColor], num_pixels: int) -> str:
        """What colors are unknown and how often they occur, in words."""
        first = max(unknown, key=lambda c: c.count)
        share = 100 * sum(c.count for c in unknown) / num_pixels
        label = int(self.labels[first.nearest])
        name = "ignored" if label == IGNORE else f"'{self.names[label]}'"
        more = f" and {len(unknown) - 1} other colors are" if len(unknown) > 1 else " is"
        nearest = tuple(self.colors[first.nearest].tolist())
        return f"color {first.color}{more} not in the palette; nearest: {name} {nearest}; {share:.2g} % of the pixels"


@dataclass(frozen=True)
class UnknownColor:
    """A color that is not in a palette.

    Attributes:
        color: red, green, blue.
        count: of its pixels.
        nearest: the nearest entry of the palette.
        distance: to it, the largest difference of a channel.
    """

    color: tuple[int, int, int]
    count: int
    nearest: int
    distance: int


@dataclass
class LabelCounts:
    """How many pixels of label maps have each label.

    Attributes:
        labels: the label set of the maps.
        pixels: (256,) by label.
        maps: how many maps were counted.
    """

    labels: LabelSet
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    maps: int = 0

    def add(self, labels: np.ndarray) -> None:
        """Count a label map (H, W) uint8."""
        self.pixels += np.bincount(labels.ravel(), minlength=256)
        self.maps += 1

    def lines(self, total: int) -> list[str]:
        """What is remarkable about a source of so many label maps, one line each.

        Classes without a pixel are reported if all maps were counted, or so many that each class should be among them.

        Raises:
            DataError: every pixel is ignored.
        """
        if not self.maps:
            return []
        of = f"the {self.maps:,} label maps" if self.maps >= total else f"{self.maps:,} of {total:,} label maps"
        ignored = float(self.pixels[IGNORE] / self.pixels.sum())
        if ignored == 1:
            raise DataError(f"every pixel of {of} is ignored: none has a value or color of the classes "
                            f"{', '.join(self.labels.names[:5])}{' ...' if len(self.labels) > 5 else ''}")  # fmt: skip
        absent = [name for name, count in zip(self.labels.names, self.pixels) if not count]
        lines = []
        if absent and (self.maps >= total or self.maps >= 2 * len(self.labels)):
            names = ", ".join(f"'{name}'" for name in absent[:5])
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            lines.append(f"no pixel of {of} has the class {names}{more}")
        if ignored > LARGE_SHARE or (lines and ignored > 0.01):
            lines.append(f"{100 * ignored:.0f} % of the pixels of {of} are ignored")
        return lines


def label_map_problems(name: str, source: Source) -> list[str]:
    """What is remarkable about a sample of the label maps of a source, one line each: a large share of ignored pixels,
    classes without a pixel. Maps that cannot be read are left to the run, which stops at them or skips them.

    Raises:
        DataError: every pixel of the sample is ignored.
    """
    if "semantic" not in source.tasks:
        return []
    counts = LabelCounts(source.labels["semantic"])
    for index in spread(len(source), NUM_SAMPLED):
        try:
            target = source.targets(index, {"semantic"}).get("semantic")
        except DataError:
            continue
        if isinstance(target, SemanticTarget):
            counts.add(target.labels.numpy())
    try:
        return counts.lines(len(source))
    except DataError as error:
        raise DataError(f"source '{name}': {error}") from None


def spread(length: int, number: int) -> list[int]:
    """At most so many indices below ``length``, drawn at random but always the same."""
    return sorted(np.random.default_rng(0).permutation(length)[:number].tolist())


def _readable(paths: Sequence[str], number: int) -> Iterator[tuple[str, np.ndarray]]:
    """A sample of label maps, without those that cannot be read: loading them says why."""
    for index in np.random.default_rng(0).permutation(len(paths))[:number]:
        try:
            yield paths[index], read_label_map(paths[index])
        except DataError:
            continue


def palette_problems(palette: Palette, paths: Sequence[str], where: str) -> list[str]:
    """What colors of a sample of label maps are not in the palette, as lines.

    Raises:
        DataError: there are such colors while a class of the palette has no pixel in the sample.
    """
    counts = np.zeros(256, np.int64)
    unknown: dict[tuple[int, int, int], UnknownColor] = {}
    maps = 0
    for _, pixels in _readable(paths, 2 * NUM_SAMPLED):
        if pixels.ndim != 3:
            continue
        labels, colors = palette.lookup(pixels)
        counts += np.bincount(labels.ravel(), minlength=256)
        maps += bool(colors)
        for color in colors:
            count = color.count + (unknown[color.color].count if color.color in unknown else 0)
            unknown[color.color] = UnknownColor(color.color, count, color.nearest, color.distance)
    if not unknown:
        return []
    text = palette.explain(list(unknown.values()), int(counts.sum()))
    absent = [name for label, name in enumerate(palette.names) if not counts[label]]
    num_unknown = sum(color.count for color in unknown.values())
    if absent and num_unknown >= max(_FEW, 0.01 * counts.sum()):
        raise DataError(f"{where}: {text}, while no pixel has the color of the class '{absent[0]}'{palette.hint}")
    return [
        f"{text} of {min(len(paths), 2 * NUM_SAMPLED)} label maps ({maps} of which have such colors); they are ignored"
    ]


@dataclass(frozen=True)
class BinaryMasks:
    """What 255 means in masks of two classes.

    Attributes:
        foreground: ``True``: the second class, ``False``: ignored, ``None``: not known, as no mask holds it.
        note: what was decided and why; empty where there was nothing to decide.
    """

    foreground: bool | None
    note: str = ""


def inspect_binary_masks(paths: Sequence[str], names: Sequence[str], where: str) -> BinaryMasks:
    """Decide for a whole dataset whether 255 is foreground or ignored, from a sample of its masks.

    255 is foreground if no mask holds the value 1. Masks without either value are not counted; the sample ends with 64
    others, or with 2,000.

    Raises:
        DataError: some masks hold 1 and many others hold 255 but not 1; or there is only one class, and masks hold 255.
    """
    with_one = with_255 = 0
    for _, pixels in _readable(paths, 2000):
        values = set(np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()) if pixels.ndim == 2 else {-1}
        if not values <= {0, 1, IGNORE}:  # not a binary mask; loading it says which value it holds
            return BinaryMasks(False)
        with_one += 1 in values
        with_255 += IGNORE in values and 1 not in values
        if with_one + with_255 == 64:
            break
    table = f"values: {{0: {names[0]}, 255: {names[-1]}}}"
    if len(names) == 1:
        if with_255:
            raise DataError(f"{where}: label maps hold the values 0 and 255, but there is only one class; list the "
                            f"background as well (classes: [background, {names[0]}]), or set ignore: 255")  # fmt: skip
        return BinaryMasks(False)
    if not with_one:
        note = f"255 is the class '{names[1]}' (of {with_255} masks that hold it, none holds the value 1)"
        return BinaryMasks(True, note) if with_255 else BinaryMasks(None)
    if with_255 > LARGE_SHARE * (with_one + with_255):
        raise DataError(f"{where}: {with_one} label maps hold the value 1, and {with_255} others hold 255 but not 1: "
                        f"255 may be '{names[1]}' or ignored; say which with {table} or ignore: 255")  # fmt: skip
    note = f"255 is ignored, in {with_255} of {with_one + with_255} masks without any pixel of '{names[1]}'"
    return BinaryMasks(False, note if with_255 else "")


def value_labels(
    values: Mapping[int, str | None], classes: Sequence[str] | None, where: str
) -> tuple[list[str], dict[int, int]]:
    """Class names and the labels of pixel values, from a table ``value -> class name`` (``None``: ignored).

    Raises:
        DataError: a value outside 0 ... 65535, a name that is not among the classes, or a class without a value.
    """
    used = list(dict.fromkeys(name for name in values.values() if name is not None))
    names = used if classes is None else list(classes)
    for value, name in values.items():
        if not 0 <= value <= MAX_VALUE:
            raise DataError(f"{where}: 'values' holds the value {value}; label maps have values in 0 ... {MAX_VALUE}")
        if name is not None and name not in names:
            raise DataError(f"{where}: 'values' gives {value} the class '{name}', which is not among the classes "
                            f"({', '.join(names)})")  # fmt: skip
    for name in names:
        if name not in used:
            raise DataError(f"{where}: 'values' gives no value to the class '{name}'")
    return names, {value: IGNORE if name is None else names.index(name) for value, name in values.items()}


def in_words(labels: Mapping[int, int], names: Sequence[str]) -> str:
    """The values of a table, for messages."""
    shown = [f"{value} ({'ignored' if label == IGNORE else names[label]})" for value, label in labels.items()]
    return f"the values are {', '.join(shown[:10])}{' ...' if len(shown) > 10 else ''}"


def check_names(names: Collection[Any], where: str) -> None:
    """Raises ``DataError`` where a label map cannot hold so many classes, or a name is given twice."""
    if len(names) > IGNORE:
        raise DataError(f"{where}: {len(names)} classes; a label map holds at most {IGNORE}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{where}: the class '{twice}' is given twice")
