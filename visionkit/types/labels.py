"""Label sets: the names a head predicts, and all that belongs to a name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IGNORE = 255
"""Pixel value of a label map that belongs to no class and counts for nothing."""


@dataclass(frozen=True)
class LabelSet:
    """The classes of a head or of a source; a label is an index into ``names``.

    Attributes:
        names: class names, in the order of their labels ``0 ... len(names) - 1``. Background is not a class of a
            detector; in a semantic label set every region, background too, is a class of its own.
        ids: category ids of the annotation file, one a name. Used by evaluators and writers alone.
        things: whether each class is countable (a thing) rather than stuff.
        colors: RGB 0-255 a class, or empty for the default palette.
        keypoints: names of the keypoints of an instance, or empty.
        skeleton: pairs of keypoint indices (from 0) that are joined by a limb when drawn.
        swaps: pairs of keypoint indices that change places when an image is mirrored (left and right eye).
        sigmas: per-keypoint fall-off of object keypoint similarity, or empty for the evaluator's default.
    """

    names: tuple[str, ...]
    ids: tuple[int | str, ...] = ()
    things: tuple[bool, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    swaps: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(self.names)})
        if len(self._index) != len(self.names):
            twice = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(f"label names must differ; given twice: {', '.join(twice)}")
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(1, len(self.names) + 1)))
        if not self.things:
            object.__setattr__(self, "things", (True,) * len(self.names))
        for what in ("ids", "things"):
            if len(getattr(self, what)) != len(self.names):
                raise ValueError(f"{len(getattr(self, what))} {what} for {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.names)

    def label(self, name: str) -> int:
        """The label of a class name. Raises ``KeyError`` that names the nearest one."""
        try:
            return self._index[name]
        except KeyError:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise KeyError(f"no class '{name}' among {', '.join(self.names)}{hint}") from None

    def to_dict(self) -> dict[str, object]:
        """Plain lists and strings, as written to a run folder."""
        out: dict[str, object] = {"names": list(self.names), "ids": list(self.ids), "things": list(self.things)}
        for what in ("colors", "skeleton", "swaps"):
            if value := getattr(self, what):
                out[what] = [list(v) for v in value]
        for what in ("keypoints", "sigmas"):
            if value := getattr(self, what):
                out[what] = list(value)
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Sequence]) -> LabelSet:
        """The inverse of :meth:`to_dict`."""
        nested = {"colors", "skeleton", "swaps"}
        fields: dict[str, Any] = {
            name: tuple(tuple(v) if name in nested else v for v in values) for name, values in data.items()
        }
        return cls(**fields)
