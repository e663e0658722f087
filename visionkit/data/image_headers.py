"""What an image file claims to hold, read before anything is decoded: format, size, bits, and EXIF orientation."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from visionkit.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Others that Pillow reads are left out: some of them start programs, and none is in use for training images.
_PILLOW = ("BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF", "SUN")
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        format: ``"JPEG"``, ``"PNG"``, ``"TIFF"`` or another name that Pillow gives to a format.
        stored_size: (height, width) of the stored pixels.
        bits: per channel.
        channels: per pixel, as they are stored.
        palette: whether pixels are indices into a palette (PNG only).
        orientation: of EXIF, 1 ... 8.
        orientation_at: where a TIFF stores it, in bytes.
    """

    format: str
    stored_size: tuple[int, int]
    bits: int = 8
    channels: int = 3
    palette: bool = False
    orientation: int = 1
    orientation_at: tuple[int, bytes] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as the image is displayed."""
        return self.stored_size if self.orientation < 5 else self.stored_size[::-1]

    def neutral(self, data: bytes) -> bytes:
        """The file without what decoders treat differently: the orientation of a TIFF, which some apply twice and some
        never, and the color profiles and texts of a PNG, about which libpng prints warnings for each image."""
        if self.format == "PNG":
            return _without_extras(data)
        if self.orientation == 1 or self.orientation_at is None:
            return data
        at, one = self.orientation_at
        return data[:at] + one + data[at + len(one) :]


def read_header(path: str, data: bytes) -> Header:
    """The header of an image file.

    Raises:
        DataError: it is not an image of a known format, or its end is missing; the message names ``path``.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(_TIFF):
            return _tiff(data)
        return _other(data)
    except _Damaged as error:
        raise DataError(f"{path}: {error} ({len(data)} bytes)") from None


class _Damaged(Exception):
    """What is wrong with a file."""


def _jpeg(data: bytes) -> Header:
    """The segments before the first scan. A thumbnail among them has an end marker of its own."""
    header: Header | None = None
    orientation = 1
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and orientation == 1 and data.startswith(b"Exif\0\0", start):
            orientation = _exif_orientation(data[start + 6 : end])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and end - start >= 6:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            header = Header("JPEG", (height, width), bits, channels)
        if marker == 0xDA:
            if header is None:
                raise _Damaged("not an image that can be decoded: a JPEG without a frame header")
            if data.rfind(b"\xff\xd9", end) < 0:
                raise _Damaged("truncated JPEG: its end marker is missing")
            return Header("JPEG", header.stored_size, header.bits, header.channels, orientation=orientation)
    raise _Damaged("truncated JPEG: its headers end early")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of the content of each segment that is complete."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if end > len(data):
            return
        yield data[at + 1], at + 4, end
        at = end


def _png(data: bytes) -> Header:
    """All chunks, with their checksums: a decoder may show the rows before a damaged one and fill in the rest."""
    header: Header | None = None
    orientation, at = 1, len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise _Damaged(f"damaged PNG: wrong checksum of a chunk {kind.decode('latin-1')!r}")
        if kind == b"IHDR" and length >= 13:
            width, height, bits, color, compression, method, interlace = struct.unpack_from(">IIBBBBB", data, at + 8)
            if bits not in _PNG_BITS.get(color, ()) or compression or method or interlace > 1:
                raise _Damaged(f"not an image that can be decoded: a PNG of color type {color} with {bits} bits, "
                               f"compression {compression}, filter {method}, interlace {interlace}")  # fmt: skip
            header = Header("PNG", (height, width), bits, _PNG_CHANNELS.get(color, 0), palette=color == 3)
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end - 4])
        elif kind == b"IEND":
            if header is None:
                raise _Damaged("not an image that can be decoded: a PNG without a header")
            return Header("PNG", header.stored_size, header.bits, header.channels, header.palette, orientation)
        at = end
    raise _Damaged("truncated PNG: its end marker is missing")


def _without_extras(data: bytes) -> bytes:
    """A PNG with only those of its chunks that say what the pixels are; one that :func:`_png` has checked."""
    parts, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"tRNS" or not kind[0] & 0x20:
            parts.append(data[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _tiff(data: bytes) -> Header:
    tags = _tiff_tags(data)
    try:
        height, width = tags[257][0][0], tags[256][0][0]
    except (KeyError, IndexError):
        raise _Damaged("truncated TIFF: its directory is missing or incomplete") from None
    bits = tags.get(258, ((1,), 0))[0]
    channels = (tags.get(277, ((), 0))[0] or (len(bits),))[0]
    orientation, at = tags.get(_ORIENTATION, ((1,), 0))
    valid = bool(orientation) and 1 <= orientation[0] <= 8
    one = struct.pack(">H" if data[:1] == b"M" else "<H", 1)
    return Header("TIFF", (height, width), max(bits or (1,)), channels, orientation=orientation[0] if valid else 1,
                  orientation_at=(at, one) if valid else None)  # fmt: skip


def _other(data: bytes) -> Header:
    from PIL import Image

    Image.init()
    for kind in _PILLOW:
        opener, accepts = Image.OPEN.get(kind, (None, None))
        # The second part may also return a text: why this build of Pillow cannot read the format.
        if opener is None or accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            image = opener(BytesIO(data), "")
        except Exception as error:  # Pillow's parsers raise whatever a damaged header makes them raise
            raise _Damaged(f"not an image that can be decoded: damaged {kind} ({error})") from None
        exif = image.info.get("exif") if kind in ("WEBP", "AVIF") else None
        orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0")) if isinstance(exif, bytes) else 1
        return Header(kind, (image.height, image.width), channels=len(image.getbands()), orientation=orientation)
    raise _Damaged("not an image that can be decoded: no known format")


def _exif_orientation(data: bytes) -> int:
    """The orientation in EXIF, which is laid out as a TIFF; 1 where there is none that is valid."""
    values = _tiff_tags(data).get(_ORIENTATION, ((), 0))[0]
    return values[0] if values and 1 <= values[0] <= 8 else 1


def _tiff_tags(data: bytes) -> Mapping[int, tuple[tuple[int, ...], int]]:
    """By number, the whole numbers of each tag in the first directory of a TIFF, and where the first one is stored.

    What is damaged is left out.
    """
    tags: dict[int, tuple[tuple[int, ...], int]] = {}
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return tags

    def unpack(code: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + code, data, at)

    try:
        big = unpack("H", 2)[0] == 43  # BigTIFF
        offset, count, first, entry = ("Q", "Q", 8, 20) if big else ("I", "H", 4, 12)
        start = unpack(offset, first)[0]
        (entries,) = unpack(count, start)
        start += struct.calcsize("<" + count)
        for at in range(start, start + entry * min(entries, 4096), entry):
            tag, kind, number = unpack("HH" + offset, at)
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
            if code is None or not 1 <= number <= 64:
                continue
            where = at + 4 + struct.calcsize("<" + offset)
            if struct.calcsize(f"<{number}{code}") > struct.calcsize("<" + offset):
                where = unpack(offset, where)[0]
            tags[tag] = unpack(f"{number}{code}", where), where
    except (struct.error, OverflowError):
        pass
    return tags
