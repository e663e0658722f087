"""PNGs of panoptic segments: every pixel is checked to have been stored as it is read. Imports no torch."""

from __future__ import annotations

import os
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import cv2
import numpy as np

from visionkit.errors import DataError
from visionkit.layers.segments import from_rgb

MAX_PIXELS = 2**28
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHER = {
    b"\xff\xd8": "a JPEG",
    b"BM": "a BMP",
    b"GIF8": "a GIF",
    b"RIFF": "a WebP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
}
_COLORS = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGBA"}
_stderr_lock = threading.Lock()


class Header(NamedTuple):
    """What the first bytes of a PNG say."""

    height: int
    width: int
    bits: int
    color: int


def read_header(path: str) -> Header:
    """The header of a panoptic PNG, without decoding it.

    Raises:
        DataError: the file is missing, isn't a PNG, is too large, or doesn't hold RGB colors of 8 bits per channel. A
            palette of such colors and an alpha channel, which is ignored, are accepted.
    """
    return _parse_header(_read(path, 33), path)


def read_rgb(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The colors of a PNG: (H, W, 3) uint8 RGB.

    Args:
        path: the PNG.
        size: the height and width that it must have.

    Raises:
        DataError: as :func:`read_header`; or the size is another, or the file is truncated or corrupt.
    """
    data = _read(path)
    header = _parse_header(data, path)
    if size is not None and (header.height, header.width) != size:
        raise DataError(f"{path}: is {header.height}x{header.width} (height x width); its image is {size[0]}x{size[1]}")
    _check_chunks(data, path)
    try:
        with _silence():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError):
        image = None
    if image is None or image.shape[:2] != (header.height, header.width):
        raise DataError(f"{path}: the PNG is corrupt and cannot be decoded")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_ids(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """The segment IDs of a panoptic PNG, ``R + 256 G + 65536 B``: (H, W) int32. Errors as :func:`read_rgb`."""
    return from_rgb(read_rgb(path, size))


def _read(path: str, size: int = -1) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe might never end
            raise DataError(f"{path}: is {'a folder' if os.path.isdir(path) else 'a special file'}, not a PNG file")
        with open(path, "rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read: {reason}") from None


def _parse_header(data: bytes, path: str) -> Header:
    if not data.startswith(_SIGNATURE):
        kind = next((kind for start, kind in _OTHER.items() if data.startswith(start)), None)
        what = f"is {kind} file" if kind else "the file is empty" if not data else "is not a PNG file"
        raise DataError(f"{path}: {what}; panoptic segments are stored in PNGs")
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise DataError(f"{path}: the PNG is truncated ({len(data)} bytes)")
    header = Header(int.from_bytes(data[20:24]), int.from_bytes(data[16:20]), data[24], data[25])
    if zlib.crc32(data[12:29]) != int.from_bytes(data[29:33]) or not header.height or not header.width:
        raise DataError(f"{path}: the PNG is corrupt (its header)")
    if header.color != 3 and (header.color not in (2, 6) or header.bits != 8):
        kind = _COLORS.get(header.color, f"of color type {header.color}")
        raise DataError(f"{path}: a panoptic PNG must be RGB with 8 bits per channel; this one is {kind} with "
                        f"{header.bits} bits")  # fmt: skip
    if header.height * header.width > MAX_PIXELS:
        raise DataError(f"{path}: a PNG of {header.height}x{header.width} pixels is too large; the limit is "
                        f"{MAX_PIXELS:,} pixels")  # fmt: skip
    return header


def _check_chunks(data: bytes, path: str) -> None:
    """Check the length and the checksum of every chunk: decoders fill what is missing with black."""
    at, kind, view = len(_SIGNATURE), b"", memoryview(data)
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if len(data) < end + 4:
            raise DataError(f"{path}: the PNG is truncated ({len(data)} bytes)")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise DataError(f"{path}: the PNG is corrupt (wrong checksum at byte {at})")
        at = end + 4


@contextmanager
def _silence() -> Iterator[None]:
    """libpng writes its complaints straight to file descriptor 2; the error that is raised says them."""
    with _stderr_lock:
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
