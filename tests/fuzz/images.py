"""Damage to image files that keeps them plausible: header fields with a correct checksum, chunks, EXIF, directories."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.fuzz.mutations import change_bytes

SIZES = (0, 1, 2, 3, 7, 255, 256, 1000, 16_384, 65_535, 65_536, 100_000, 2**30, 2**31 - 1, 2**31, 2**32 - 1)
PNG = b"\x89PNG\r\n\x1a\n"


def mutate_image(rng: Random, path: Path) -> None:
    """Damage an image file, by its format."""
    data = path.read_bytes()
    change: Callable[[Random, bytes], bytes] = change_bytes
    if rng.random() < 0.75:
        if data.startswith(PNG):
            change = change_png
        elif data.startswith(b"\xff\xd8"):
            change = change_jpeg
        elif data[:4] in (b"II*\0", b"MM\0*"):
            change = change_tiff
        elif data.startswith((b"BM", b"RIFF")):
            change = change_header
    for _ in range(rng.choice((1, 1, 2))):
        data = change(rng, data)
    path.write_bytes(data)


def change_png(rng: Random, data: bytes) -> bytes:
    """One change to the chunks of a PNG, with checksums that are right unless the change is a wrong one."""
    chunks = list(png_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return change_bytes(rng, data)
    at = rng.randrange(len(chunks))
    form = rng.randrange(8)
    if form in (0, 1):
        fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = rng.randrange(7)
        choices = {0: SIZES, 1: SIZES, 2: (0, 1, 2, 4, 8, 16, 32, 255), 3: (0, 1, 2, 3, 4, 6, 7, 255), 6: (0, 1, 2)}
        fields[field] = rng.choice(choices.get(field, (0, 1, 255)))
        chunks[0] = b"IHDR", struct.pack(">IIBBBBB", *fields)
    elif form == 2:
        del chunks[at]
    elif form == 3:
        chunks.insert(rng.randrange(len(chunks) + 1), chunks[at])
    elif form == 4:
        rng.shuffle(chunks)
    elif form == 5:
        chunks[at] = chunks[at][0], change_bytes(rng, chunks[at][1])
    elif form == 6:
        text = rng.choice((b"tEXt", b"eXIf", b"iCCP", b"gAMA", b"tRNS", b"PLTE", b"acTL", b"cHRM", b"zTXt", b"sRGB"))
        content = (
            exif_block(rng) if text == b"eXIf" else bytes(rng.randrange(256) for _ in range(rng.choice((0, 3, 9))))
        )
        chunks.insert(rng.randrange(1, len(chunks) + 1), (text, content))
    else:
        bomb = zlib.compress(bytes(rng.choice((0, 100, 50_000_000))), 9)  # less or far more than the size says
        chunks = [(name, bomb if name == b"IDAT" else content) for name, content in chunks]
    out = PNG + b"".join(png_chunk(name, content) for name, content in chunks)
    return out if rng.random() < 0.9 else change_bytes(rng, out)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of every chunk."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def change_jpeg(rng: Random, data: bytes) -> bytes:
    """One change to the segments of a JPEG."""
    segments = list(jpeg_segments(data))
    if not segments:
        return change_bytes(rng, data)
    head = segments[:-1]  # the last one is the scan, up to the end of the file
    at = rng.randrange(len(segments))
    form = rng.randrange(7)
    if form == 0:
        del segments[at]
    elif form == 1:
        segments.insert(rng.randrange(len(segments) + 1), segments[at])
    elif form == 2:
        segments[at] = segments[at][:4] + change_bytes(rng, segments[at][4:])
    elif form == 3:
        segments.insert(0, jpeg_segment(0xE1, b"Exif\0\0" + exif_block(rng)))
    elif form == 4:
        for i, segment in enumerate(head):
            if segment[1] in (0xC0, 0xC1, 0xC2):  # precision, height, width, number of components
                field = rng.choice((4, 5, 7, 9, 11))
                new = (
                    struct.pack(">H", min(rng.choice(SIZES), 65_535))
                    if field in (5, 7)
                    else bytes([rng.randrange(256)])
                )
                segments[i] = segment[:field] + new + segment[field + len(new) :]
    elif form == 5:
        marker = rng.choice((0xC1, 0xC2, 0xC3, 0xC9, 0xDD, 0xEE, 0xE2, 0xFE, 0xD8))
        segments.insert(
            rng.randrange(len(segments)), jpeg_segment(marker, bytes(rng.randrange(256) for _ in range(14)))
        )
    else:
        scan = segments[-1]
        segments[-1] = scan[: rng.randrange(len(scan) + 1)] + rng.choice((b"", b"\xff\xd9"))
    return b"\xff\xd8" + b"".join(segments)


def jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Every segment with its marker; the last is everything from the start of the scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
        yield data[at : at + length]
        at += length
    yield data[at:]


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


def exif_block(rng: Random) -> bytes:
    """A TIFF directory with an orientation, which may be wrong, cyclic, or noise."""
    order = rng.choice("<>")
    tags = [(0x0112, 3, 1, rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65535)))]
    tags += [(rng.choice((0x0112, 0x8769, 0x0100, 0x0101, 0x010F)), rng.choice((0, 1, 2, 3, 4, 5, 99)),
              rng.choice((0, 1, 2**31)), rng.choice((0, 8, 6, 2**31))) for _ in range(rng.randrange(3))]  # fmt: skip
    entries = b""
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        field = struct.pack(order + "HH", value & 0xFFFF, 0) if short else struct.pack(order + "I", value)
        entries += struct.pack(order + "HHI", tag, kind, count) + field
    following = rng.choice((0, 0, 8, 2**31))  # 8: the directory follows itself
    block = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    block += entries + struct.pack(order + "I", following)
    return block if rng.random() < 0.7 else change_bytes(rng, block)


def change_tiff(rng: Random, data: bytes) -> bytes:
    """One change to an entry of the first directory of a TIFF, or a directory that follows itself."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        out = bytearray(data)
        form = rng.randrange(5)
        if form == 0:
            struct.pack_into(order + "I", out, start + 2 + 12 * count, rng.choice((start, 0, len(data), 2**32 - 1)))
        elif form == 1:
            struct.pack_into(order + "H", out, start, rng.choice((0, 1, count - 1, count + 1, 65_535)))
        else:
            entry = start + 2 + 12 * rng.randrange(count)
            if form == 2:  # type
                struct.pack_into(order + "H", out, entry + 2, rng.choice((0, 1, 2, 3, 4, 5, 11, 12, 16, 65_535)))
            elif form == 3:  # number of values
                struct.pack_into(order + "I", out, entry + 4, rng.choice(SIZES))
            else:  # value or offset
                struct.pack_into(order + "I", out, entry + 8, rng.choice(SIZES))
        return bytes(out)
    except (struct.error, ValueError):  # an earlier change left no directory
        return change_bytes(rng, data)


def change_header(rng: Random, data: bytes) -> bytes:
    """One 16- or 32-bit field within the first 60 bytes: sizes, depths and offsets of BMP and WebP."""
    out = bytearray(data)
    at = rng.randrange(min(60, len(data)))
    field = struct.pack("<I", rng.choice(SIZES))[: rng.choice((1, 2, 4))]
    out[at : at + len(field)] = field
    return bytes(out)
