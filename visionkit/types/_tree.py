"""One walk over dataclasses of tensors, so that no type repeats its own ``to``."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def map_tensors(value: T, fn: Callable[[Tensor], Tensor]) -> T:
    """``value`` with ``fn`` applied to every tensor in its dataclass fields, lists, tuples and mappings."""
    return _walk(value, fn)


def _walk(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # A shallow copy, not replace(): what was validated once need not be validated again on every move.
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(new, field.name, _walk(getattr(value, field.name), fn))
        return new
    if isinstance(value, list | tuple):
        return type(value)(_walk(v, fn) for v in value)
    if isinstance(value, Mapping):
        return {k: _walk(v, fn) for k, v in value.items()}
    return value
