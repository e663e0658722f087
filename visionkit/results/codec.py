"""Predictions as JSON and back, without loss and without pickle, so that an evaluation can resume.

Tensors, arrays, bytes, tuples, mappings and dataclasses become objects with one key that says which; everything else is
plain JSON. Reading runs no code of the file: it fills the fields of dataclasses that are imported already.
"""

from __future__ import annotations

import base64
import dataclasses
import sys
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class CodecError(ValueError):
    """A value that cannot be written as JSON, or JSON that is not such a value."""


def encode(value: Any) -> Any:
    """A prediction, or any part of one, as JSON.

    Raises:
        CodecError: it holds an object that is neither plain data, a tensor, an array nor a dataclass.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": [dtype, list(value.shape), _pack(flat.view(torch.uint8).numpy().tobytes())]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: [value.dtype.str, list(value.shape), _pack(value.tobytes())]}
    if isinstance(value, bytes):  # run lengths of COCO are ASCII
        return {"ascii": value.decode()} if value.isascii() else {"bytes": base64.b64encode(value).decode()}
    if type(value) is list:
        return [encode(item) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[encode(key), encode(item)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {field.name for field in dataclasses.fields(value)}
        if extra := getattr(value, "__dict__", {}).keys() - names:
            raise CodecError(f"{type(value).__name__}.{min(extra)} is not a field of the dataclass")
        fields = {name: encode(getattr(value, name)) for name in sorted(names)}
        return {"dataclass": [type(value).__module__, type(value).__qualname__, fields]}
    raise CodecError(f"a {type(value).__name__}")


def decode(data: Any) -> Any:
    """The value that :func:`encode` was given; tensors are on the CPU.

    Raises:
        CodecError: the data does not come from :func:`encode`, or a dataclass is no longer known by this name.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((kind, content),) = data.items()
        return _DECODERS[kind](content)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, zlib.error) as error:
        raise CodecError(f"{type(error).__name__}: {error}") from None


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 1)).decode()


def _unpack(text: str) -> bytearray:
    return bytearray(zlib.decompress(base64.b64decode(text)))


def _tensor(content: tuple[str, list[int], str]) -> Tensor:
    dtype, shape, text = content
    data, kind = _unpack(text), getattr(torch, dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    return flat.view(kind).reshape(shape)


def _array(content: tuple[str, list[int], str]) -> np.ndarray:
    dtype, shape, text = content
    return np.frombuffer(_unpack(text), dtype=np.dtype(dtype)).reshape(shape)


def _dataclass(content: tuple[str, str, dict[str, Any]]) -> Any:
    module, name, fields = content
    kind: Any = sys.modules[module]
    for part in name.split("."):
        kind = getattr(kind, part)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise CodecError(f"{module}.{name} is not a dataclass")
    if fields.keys() != {field.name for field in dataclasses.fields(kind)}:
        raise CodecError(f"{module}.{name} has other fields now")
    # The fields were checked when the object was first made, and may have been changed since.
    value = object.__new__(kind)
    for field, item in fields.items():
        object.__setattr__(value, field, decode(item))
    return value


_DECODERS: Mapping[str, Any] = {
    "tensor": _tensor,
    "array": _array,
    "scalar": lambda content: _array(content)[()],
    "ascii": lambda text: text.encode("ascii"),
    "bytes": lambda text: base64.b64decode(text),
    "tuple": lambda items: tuple(decode(item) for item in items),
    "mapping": lambda pairs: {decode(key): decode(item) for key, item in pairs},
    "dataclass": _dataclass,
}
