"""The shape of shared features: what a neck or a head may know of the backbone before it exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from visionkit.errors import UserError

Features = Mapping[str, Tensor]
"""Feature maps by level name, each of shape (B, channels, H / stride, W / stride), rounded up."""


@dataclass(frozen=True, slots=True)
class Level:
    """Channels and stride (input pixels per cell) of one feature level."""

    channels: int
    stride: int


class LevelError(UserError, KeyError):
    """There is no such feature level."""

    def __str__(self) -> str:  # KeyError would put quotes around it
        return str(self.args[0])


class FeatureSpec(Mapping[str, Level]):
    """Channels and stride by level name, finest level first.

    Backbone levels are named ``c1`` ... ``c5`` (stride 2 ... 32 in an undilated network), those of a pyramid
    ``p2`` ... ``p7``. Necks and heads are built from a spec, never from a live backbone.
    """

    def __init__(self, levels: Mapping[str, Level] | None = None) -> None:
        self._levels = dict(levels or {})

    def __getitem__(self, name: str) -> Level:
        try:
            return self._levels[name]
        except KeyError:
            raise self._missing(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)

    def __repr__(self) -> str:
        return f"FeatureSpec({', '.join(f'{n}: {v.channels}ch/{v.stride}' for n, v in self._levels.items())})"

    def only(self, names: Iterable[str]) -> FeatureSpec:
        """The spec of just these levels, in the order given. Raises ``LevelError`` for a level that is not here."""
        names = tuple(names)
        if missing := [name for name in names if name not in self._levels]:
            raise self._missing(missing[0])
        return FeatureSpec({name: self[name] for name in names})

    def _missing(self, name: str) -> LevelError:
        known = ", ".join(self._levels) or "none: the pipeline has no backbone"
        return LevelError(f"no feature level '{name}' (there is: {known})")

    def __or__(self, other: FeatureSpec) -> FeatureSpec:
        """Both specs together; a level of ``other`` hides one of the same name here."""
        return FeatureSpec({**self._levels, **other._levels})
