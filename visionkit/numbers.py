"""What a pipeline may give as an argument, beyond its type: ranges of numbers, and keys that need another key.

They annotate the arguments of constructors. A pipeline with a value outside the range is refused with file and line, by
``validate`` and before a training run starts. Every number has to be finite, whatever its annotation.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]

Fraction = Annotated[float, Ge(0), Le(1)]
"""Overlaps from which boxes are suppressed, probabilities."""
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
"""Score thresholds and dropout: at 1 nothing would be left."""
PositiveFraction = Annotated[float, Gt(0), Le(1)]
"""Overlaps from which a box is an object, shares of samples: at 0 everything or nothing would be one."""
OpenFraction = Annotated[float, Gt(0), Lt(1)]


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(values):
        raise ValueError("numbers in ascending order")
    return values


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("an odd integer")
    return value


Ascending = AfterValidator(_ascending)
FractionRange = Annotated[tuple[Fraction, Fraction], Ascending]
OddPositive = Annotated[int, Ge(1), AfterValidator(_odd)]

Widths = tuple[Positive, ...]
Factors = Annotated[tuple[PositiveFloat, ...], MinLen(1)]
AnchorSizes = Annotated[tuple[Factors, ...], MinLen(1)]
RGBScale = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class OnlyWith:
    """The argument is read only if another key has a certain value. A pipeline that gives it otherwise is refused.

    Args:
        keys: any of these is set, which means that it is neither null, false, zero nor empty; ``reads`` is the mapping
            of the ports of a head.
        values: or any of these keys has the value, or one of a tuple of values.

    Example:
        >>> sigma: Annotated[PositiveFloat, OnlyWith(soft_nms="gaussian")] = 0.5
    """

    def __init__(self, *keys: str, **values: Any) -> None:
        self.keys = keys
        self.values = {key: value if isinstance(value, tuple) else (value,) for key, value in values.items()}

    def holds(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the argument is read beside these ones, with all defaults filled in."""
        return any(arguments.get(key) for key in self.keys) or any(
            key in arguments and arguments[key] in values for key, values in self.values.items()
        )

    def __str__(self) -> str:
        ways = [f"{key} is set" for key in self.keys]
        ways += [f"{key} is {' or '.join(map(str, values))}" for key, values in self.values.items()]
        return " or ".join(ways)


def unread(made: Any, given: Iterable[str], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Which keys nothing reads, and beside what each would be read.

    Args:
        made: a class, whose annotations are those of its attributes, or a constructor.
        given: the keys to look at.
        arguments: all arguments, with defaults filled in.
    """
    hints = typing.get_type_hints(made, include_extras=True)
    found: dict[str, str] = {}
    for key in given:
        conditions = [c for c in getattr(hints.get(key), "__metadata__", ()) if isinstance(c, OnlyWith)]
        missing = [str(condition) for condition in conditions if not condition.holds(arguments)]
        if missing:
            found[key] = " and ".join(missing)
    return found
