"""Values of JSON files, converted to the type that a field must have, or refused with a message that shows them.

Annotation tools write numbers as strings, booleans as 0, 1, "0" or true, and sizes as 640.0. This module is the one
place that decides which of these are accepted. Every function takes the value and ``where``: the file, the entry and
the field, with which its message starts.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import msgspec

from visionkit.errors import DataError

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
MAX_WHOLE = 2**53  # beyond this, a float does not hold every whole number


def load_json(path: str | Path) -> Any:
    """The content of a JSON file, as dictionaries, lists, strings, numbers, booleans and ``None``.

    ``NaN`` and ``Infinity``, which Python writes, are read, so that messages can name the entry that holds them.

    Raises:
        DataError: the file cannot be read or is not valid JSON; the message names the file and the line.
    """
    return parse_json(read_bytes(path), path)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, without a byte order mark. Raises ``DataError`` that names it."""
    try:
        if not (Path(path).is_file() or Path(path).is_dir()) and Path(path).exists():
            raise DataError(f"{path}: is not a regular file")  # a pipe would wait for somebody to write to it
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a JSON file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read: {reason}") from None
    return data[3:] if data.startswith(b"\xef\xbb\xbf") else data


def parse_json(data: bytes, path: str | Path) -> Any:
    """As :func:`load_json`, of bytes that were read before."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass  # Python's decoder reads NaN and Infinity, and says in which line an error is.
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise DataError(f"{path}: not valid UTF-8 (byte 0x{byte:02x} at offset {error.start})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path}: not valid JSON: lists or objects are nested too deeply") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise DataError(f"{path}: not valid JSON: {error}") from None


def describe(value: Any, limit: int = 60) -> str:
    """A value with its type, as error messages show it: ``'64' (a string)``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"an object with {len(value)} keys" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    kind = "a string" if isinstance(value, str) else "a number" if isinstance(value, int | float) else "a value"
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python converts
        return "a number of thousands of digits"
    return f"{text if len(text) <= limit else text[:limit] + '...'} ({kind})"


def number(value: Any, where: str) -> float:
    """A finite number, which may be stored as a string."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            out = float(value)
        except OverflowError:
            out = math.inf
        if math.isfinite(out):
            return out
        raise DataError(f"{where} must be a finite number, not {describe(value)}")
    raise DataError(f"{where} must be a number, not {describe(value)}")


def whole(value: Any, where: str, *, least: int = -MAX_WHOLE) -> int:
    """A whole number of at least ``least``, which may be stored as a string or as a float such as 640.0."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = float(value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and abs(value) <= MAX_WHOLE and (out := int(value)) == value:
        if out >= least:
            return out
        raise DataError(f"{where} must be a whole number of {least} or more, not {describe(value)}")
    raise DataError(f"{where} must be a whole number, not {describe(value)}")


def flag(value: Any, where: str) -> bool:
    """A yes or no: true, false, 0, 1, or one of these as a string."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if isinstance(plain, bool | int | float | str) and plain in (0, 1, "0", "1", "true", "false", "0.0", "1.0"):
        return plain in (1, "1", "true", "1.0")
    raise DataError(f"{where} must be 0 or 1, not {describe(value)}")


def text(value: Any, where: str) -> str:
    """A string that is not empty."""
    if isinstance(value, str) and value:
        return _unicode(value, where)
    raise DataError(f"{where} must be a string that is not empty, not {describe(value)}")


def _unicode(value: str, where: str) -> str:
    """The string, which JSON may have filled with halves of characters that no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} must be valid Unicode, not {describe(value)}") from None
    return value


def identifier(value: Any, where: str) -> int | str:
    """An ID: a whole number or a string. Whether two IDs are the same is decided by :func:`same_id`."""
    if isinstance(value, str) and value:
        return _unicode(value, where)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, bool | str) or not isinstance(value, Real):
        raise DataError(f"{where} must be a whole number or a string, not {describe(value)}")
    return whole(value, where)


def same_id(value: int | str) -> int | str:
    """The key under which an ID is looked up: ``7`` and ``"7"`` are the same ID, ``"007"`` is another."""
    return (
        int(value)
        if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value[:18])) == value
        else value
    )


def entries(data: Any, name: str, where: str) -> list[Mapping[str, Any]]:
    """The list of objects ``data[name]``."""
    rows = data.get(name) if isinstance(data, Mapping) else None
    if not isinstance(rows, list):
        kind = (
            "is missing"
            if isinstance(data, Mapping) and name not in data
            else (
                f"is {describe(rows)}" if isinstance(data, Mapping) else f"is missing: the file holds {describe(data)}"
            )
        )
        raise DataError(f"{where}: the list '{name}' {kind}")
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: entry {index} of '{name}' must be an object, not {describe(row)}")
    return rows


def field(row: Mapping[str, Any], key: str, where: str) -> Any:
    """``row[key]``, which must be there."""
    try:
        return row[key]
    except KeyError:
        keys = ", ".join(map(str, list(row)[:12])) or "no key"
        raise DataError(f"{where} has no '{key}' (it has {keys})") from None


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of new objects, none of them garbage: to search them takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
