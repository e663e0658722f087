"""Weights files of other projects: reads them without executing code, and finds the module of interest in them.

A training checkpoint holds its weights somewhere inside nested dictionaries, under names with prefixes of the modules
around them. Both are handled alike: dictionaries become prefixes too, and the prefix is found by comparing names.
"""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import re
import types
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric
from safetensors.torch import load_file
from torch import Tensor

from visionkit.errors import UserError

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Modules that parallel training and compilation put around others; no name is compared with them."""
_NOT_WEIGHTS = "it is neither a safetensors file nor one that torch.save wrote"
_FIRST = ("model", "state_dict")
# torch.save wrote this number first, before it wrote zip files.
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


class _Ignored:
    """Takes the place of objects that say how weights were made. It accepts any arguments and does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _ignored_dict(*args: object) -> dict[Any, Any]:
    """Takes the place of a defaultdict, whose factory could be any function."""
    return {}


def _allowed() -> dict[str, Callable[..., Any]]:
    """What a pickle may name beside tensors and plain containers, and what is called in its place."""
    classes = [argparse.Namespace, types.SimpleNamespace]
    names = [f"{made.__module__}.{made.__name__}" for made in classes]
    names += [f"pathlib{inner}.{name}" for inner in ("", "._local") for name in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")]  # fmt: skip
    names += [f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")]
    names += [f"builtins.{kind.__name__}" for kind in (bool, int, float, str, list, dict, frozenset, range, slice)]
    allowed: dict[str, Callable[..., Any]] = dict.fromkeys(names, _Ignored)
    allowed["collections.defaultdict"] = _ignored_dict
    for core in ("numpy.core", "numpy._core"):
        allowed[f"{core}.multiarray._reconstruct"] = multiarray._reconstruct  # type: ignore[attr-defined]
        allowed[f"{core}.multiarray.scalar"] = multiarray.scalar  # type: ignore[attr-defined]
        allowed[f"{core}.numeric._frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]
    allowed |= {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    return allowed | {f"numpy.dtypes.{name}": getattr(np.dtypes, name) for name in np.dtypes.__all__}


class _PlainUnpickler(pickle.Unpickler):
    """Reads pickles of NumPy arrays, such as detectron2's model zoo; any other name in them is an error."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        allowed = {**_allowed(), "collections.OrderedDict": collections.OrderedDict, "_codecs.encode": _encode}
        if full not in allowed:
            raise pickle.UnpicklingError(f"GLOBAL {full} is not read")
        return allowed[full]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How old pickles write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r} are not read")
    return text.encode(encoding)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name; those in nested dictionaries have the keys before their names, with dots.

    Safetensors, files of ``torch.save`` and pickled NumPy arrays (detectron2's ``.pkl``) are read. Nothing in a file is
    ever executed. Values that describe the training, such as an ``argparse.Namespace``, are ignored; lists and
    dictionaries with other keys than text (an optimizer's state) are not searched.

    Raises:
        UserError: no such file, a file that is damaged or holds other objects, or one without tensors.
    """
    return _checked(path, lambda loaded: dict(_tensors(loaded, set())))


def read_outermost(path: Path) -> dict[str, Tensor]:
    """The outermost dictionary of tensors in a weights file, under the names that it has there.

    Of several at the same depth it is the one under ``model`` or ``state_dict``, or else the first one.

    Raises:
        UserError: as :func:`read_tensors`.
    """
    return _checked(path, _outermost)


def _checked(path: Path, find: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that ``find`` chooses from what a file holds."""
    if not os.path.isfile(path):  # unlike Path.is_file, accepts a name that is too long
        raise UserError(f"{path}: no such weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = find(_load(path))
    except Exception as error:  # a damaged file makes pickle, zip and safetensors raise whatever they like
        raise UserError(f"{path}: cannot be read as weights: {_reason(error)}") from None
    if not found:
        raise UserError(f"{path}: holds no state dict (names and tensors)")
    for name, tensor in found.items():
        if not is_dense(tensor):
            raise UserError(
                f"{path}: {name} is not a plain tensor, but sparse, quantized, complex or without values of its own"
            )
    return found


def is_dense(tensor: Tensor) -> bool:
    """Whether every element has a place in memory; an expanded tensor claims any size."""
    if (
        tensor.is_nested
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.is_complex()
    ):
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start.startswith(b"PK") or start[: len(_LEGACY) - 1] == _LEGACY[:-1]:
        with torch.serialization.safe_globals([(made, name) for name, made in _allowed().items()]):
            return torch.load(path, "cpu", weights_only=True)
    if start.startswith(b"\x80"):
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    return load_file(path)


def _reason(error: Exception) -> str:
    if stranger := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds an object of type {stranger[1]}; only tensors and plain containers are read"
    reason = (str(error).splitlines() or [""])[0]
    # Else it is a key, or the number of a byte.
    vague = len(reason.split()) < 2 or any(text in reason for text in ("Weights only load failed", "header"))
    return _NOT_WEIGHTS if vague else reason


def _tensors(value: Any, seen: set[int], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    # Every dictionary is searched once: nested references could make exponentially many names of a few.
    if not isinstance(value, Mapping) or id(value) in seen:
        return
    seen.add(id(value))
    for key, item in value.items():
        if isinstance(key, str):
            tensor = _tensor(item)
            if tensor is not None:
                yield f"{prefix}{key}", tensor
            else:
                yield from _tensors(item, seen, f"{prefix}{key}.")


def _outermost(loaded: Any) -> dict[str, Tensor]:
    level, seen = [loaded], set()
    while level:
        inner = []
        for value in level:
            if not isinstance(value, Mapping) or id(value) in seen:
                continue
            seen.add(id(value))
            keys = sorted((key for key in value if isinstance(key, str)), key=lambda key: key not in _FIRST)
            found = {key: tensor for key in keys if (tensor := _tensor(value[key])) is not None}
            if found:
                return found
            inner += [value[key] for key in keys]
        level = inner
    return {}


def _tensor(value: Any) -> Tensor | None:
    """A tensor or an array of numbers as a tensor; anything else is ``None``."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
    return None


def module_state(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The state of the module that has the wanted tensors, without what stands before their names.

    Of all prefixes the one is taken under which most of the wanted names are found. Tensors without that prefix belong
    to other modules and are left out.

    Args:
        tensors: as :func:`read_tensors` returns them.
        wanted: names of some or all tensors of the module.

    Raises:
        UserError: no name ends with a wanted one, or the file holds several such modules.
    """
    plain = {name: unwrapped(name) for name in tensors}
    votes: dict[str, list[str]] = {}
    for name, short in plain.items():
        parts = short.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                votes.setdefault(_prefix(name, parts[:i]), []).append(name)
    if not votes:
        raise UserError(f"no tensor is called '{min(wanted)}', with or without a prefix; {names_of(tensors)}")
    most = max(map(len, votes.values()))
    best = [prefix for prefix, names in votes.items() if len(names) == most]
    first = votes[best[0]]
    for prefix in best[1:]:
        if not all(torch.equal(tensors[a], tensors[b]) for a, b in zip(first, votes[prefix])):
            shown = ", ".join(f"'{prefix}'" for prefix in best)
            raise UserError(
                f"holds several networks of this kind, with the prefixes {shown}; choose one with "
                "import-weights --prefix, or save one of them alone"
            )
    return {
        plain[name].removeprefix(unwrapped(best[0])): tensor
        for name, tensor in tensors.items()
        if name.startswith(best[0])
    }


def _prefix(name: str, before: list[str]) -> str:
    """The first components of ``name``, wrappers included, that are left when ``before`` is found."""
    parts, left = name.split("."), list(before)
    taken = []
    while left or (parts and parts[0] in WRAPPERS):
        part = parts.pop(0)
        taken.append(part)
        if part not in WRAPPERS:
            left.pop(0)
    return "".join(f"{part}." for part in taken)


def unwrapped(name: str) -> str:
    """``name`` without the modules that parallel training and compilation put around others."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def names_of(tensors: Collection[str], most: int = 3) -> str:
    """What a message says of the tensors that a file does hold."""
    shown = list(tensors)[:most]
    more = f" and {len(tensors) - most} more" if len(tensors) > most else ""
    return f"its tensors are called {', '.join(shown)}{more}"
