"""Safe file output: names that fit any file system, folders that are checked first, files that are written whole."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from visionkit.errors import RunError, UserError

MAX_COMPONENT_BYTES = 160
"""Of a file or folder name without suffix. File systems allow 255 bytes, which suffixes of a head are added to."""
MAX_FOLDER_BYTES = 800
"""Of the folders in a name. Linux allows paths of 4096 bytes, and the output folder is part of them."""

log = logging.getLogger("visionkit.results")

_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\\ud800-\udfff]")


@contextmanager
def write_errors(path: str | os.PathLike[str], note: str = "") -> Iterator[None]:
    """Report an ``OSError`` as one line that names ``path``.

    Raises:
        RunError: something inside raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{os.fspath(path)}: cannot be written: {error.strerror or error}{note}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that appears at ``path`` once all of it is written, or not at all.

    Raises:
        RunError: the disk is full or not writable. The previous file, if any, is intact.
    """
    temporary = ""
    try:
        with write_errors(path, "; what was there before is intact" if os.path.lexists(path) else ""):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A fixed prefix: with the file's own, a long name would no longer fit.
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".visionkit-")
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(handle)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
        raise


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all. Raises as :func:`atomic_file`."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_optional(path: Path, data: bytes) -> None:
    """Write a file that nothing depends on, such as a visualization; what goes wrong is reported with one line.

    Raises:
        RunError: the disk is full, so that nothing else could be written either.
    """
    try:
        write_atomically(path, data)
    except RunError as error:
        if isinstance(error.__context__, OSError) and disk_is_full(error.__context__):
            raise
        log.warning("%s", error)


def check_output_folder(path: Path) -> None:
    """Create a file in a folder and remove it again, and the folder too if it was not there before.

    Commands call this before hours of work. In a distributed run only the first process does.

    Raises:
        UserError: the path is a file, or nothing can be written there.
    """
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return
    created: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir()  # FileExistsError where it is a file
                created.append(folder)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".visionkit-"):
            pass
    except FileExistsError as error:
        raise UserError(f"{path}: the output needs a folder, and {error.filename} is none") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{path}: nothing can be written there: {reason}") from None
    finally:
        for folder in reversed(created):
            with suppress(OSError):
                folder.rmdir()


def json_text(value: Any, **options: Any) -> str:
    """Strict JSON: a number that is not finite becomes ``null``."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def safe_name(text: str) -> str:
    """One file name for any text, such as an image ID.

    A text that is a file name of ordinary length stays as it is. In any other, what is not allowed is replaced, the
    text is shortened, and a hash of the original is appended, so that different texts have different names.
    """
    name = _UNSAFE.sub("_", text)
    if name == text and name.strip(". ") and len(os.fsencode(name)) <= MAX_COMPONENT_BYTES:
        return name
    return f"{_shortened(name, MAX_COMPONENT_BYTES - 17)}-{_digest(text)}"


def safe_path(text: str, unique: str = "") -> str:
    """A relative path of safe names for any text; ``/`` makes folders.

    Args:
        text: the path.
        unique: where it is given, the last name ends in a hash of it.
    """
    *folders, name = [safe_name(part) for part in text.split("/") if part not in ("", ".")] or [safe_name("")]
    if unique:
        name = f"{_shortened(name, MAX_COMPONENT_BYTES - 17)}-{_digest(unique)}"
    if len(os.fsencode("/".join(folders))) > MAX_FOLDER_BYTES:
        folders = [safe_name("/".join(folders))]
    return "/".join((*folders, name))


def output_names(places: Sequence[Path]) -> list[str]:
    """A different name for the output of each image, without suffix.

    An image keeps its folders and its name without suffix. If two images would share a name, all keep their suffixes
    too; where that is not enough, on a file system that ignores case, a hash is appended.

    Args:
        places: the paths of the images, relative to a common folder; all different.
    """
    names = [place.with_suffix("").as_posix() for place in places]
    if len({name.casefold() for name in names}) < len(names):
        names = [place.as_posix() for place in places]
    counts = Counter(name.casefold() for name in names)
    return [
        safe_path(name, place.as_posix() if counts[name.casefold()] > 1 else "")
        for name, place in zip(names, places, strict=True)
    ]


def printable(text: str) -> str:
    """The text with whatever is not valid Unicode written as ``\\udc..``, such as the bytes of an undecodable name."""
    return text.encode("utf-8", "backslashreplace").decode()


def with_suffix(name: str, suffix: str) -> str:
    """``name`` (a safe path) with what a head appends to it, such as ``_depth``, which may hold the name of a class."""
    folder, slash, last = name.rpartition("/")
    ending = _UNSAFE.sub("_", suffix)
    if ending != suffix or len(os.fsencode(ending)) > 240 - MAX_COMPONENT_BYTES:
        ending = f"{_shortened(ending, 60)}-{_digest(suffix)}"
    return f"{folder}{slash}{last}{ending}"


def _shortened(text: str, size: int) -> str:
    """The text cut to ``size`` bytes, between characters."""
    data = os.fsencode(text)
    return text if len(data) <= size else data[:size].decode("utf-8", "ignore")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def disk_is_full(error: OSError) -> bool:
    """Whether nothing else can be written either."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
