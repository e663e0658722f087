"""Decoding of images and label maps: what is accepted, what is corrected, and what is refused in one line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from visionkit.data import images
from visionkit.data.images import (
    as_hwc,
    check_size,
    image_header,
    read_image,
    read_label_map,
    to_rgb,
    to_uint8,
)
from visionkit.errors import DataError, UserError

HEIGHT, WIDTH = 10, 20
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = PIXELS[..., 0]
FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "PNG": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
}


def decoded(path: Path) -> np.ndarray:
    return as_hwc(read_image(str(path)))


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# -- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", FORMATS)
def test_every_orientation_is_applied_as_pillow_applies_it(kind: str, orientation: int, tmp_path: Path) -> None:
    file = tmp_path / "x"
    Image.fromarray(PIXELS).save(file, kind, exif=with_orientation(orientation), **FORMATS[kind])
    expected = np.array(ImageOps.exif_transpose(Image.open(file)))
    np.testing.assert_array_equal(decoded(file), expected)
    np.testing.assert_array_equal(to_rgb(Image.open(file), "image 0"), expected)
    assert image_header(str(file)).size == expected.shape[:2]
    np.testing.assert_array_equal(read_label_map(str(file)), expected)


@pytest.mark.parametrize("orientation", [3, 6])
def test_deep_tiffs_are_rotated_once(orientation: int, tmp_path: Path) -> None:
    """OpenCV decodes them, and rotates a TIFF by itself."""
    file = tmp_path / "deep.tif"
    cv2.imwrite(str(file), (PIXELS.astype(np.uint16) * 257)[..., ::-1])
    data = file.read_bytes()
    upright = decoded(file)
    assert upright.shape == (HEIGHT, WIDTH, 3)
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    entries = data[start + 2 : start + 2 + 12 * count] + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    directory = struct.pack("<H", count + 1) + entries + bytes(4)
    file.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + directory)
    np.testing.assert_array_equal(decoded(file), np.rot90(upright, {3: 2, 6: -1}[orientation]))


def test_a_wrong_size_is_explained_by_the_orientation(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=with_orientation(6))
    Image.fromarray(PIXELS).save(tmp_path / "b.jpg")
    check_size(str(tmp_path / "a.jpg"), (WIDTH, HEIGHT), (WIDTH, HEIGHT), "x says")
    with pytest.raises(DataError, match=r"a\.jpg: is 20x10 .*, but x says 10x20 for image 7; .*EXIF orientation 6"):
        check_size(str(tmp_path / "a.jpg"), (WIDTH, HEIGHT), (HEIGHT, WIDTH), "x says", of=" for image 7")
    with pytest.raises(DataError, match=r"b\.jpg: is 10x20 \(height x width\), but x says 3x3$"):
        check_size(str(tmp_path / "b.jpg"), (HEIGHT, WIDTH), (3, 3), "x says")


def test_invalid_orientations_count_for_nothing(tmp_path: Path) -> None:
    for number, exif in enumerate((with_orientation(9).tobytes(), b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM")):
        Image.fromarray(PIXELS).save(tmp_path / f"{number}.jpg", exif=exif)
        assert decoded(tmp_path / f"{number}.jpg").shape == (HEIGHT, WIDTH, 3)


# -- kinds of pixels --------------------------------------------------------------------------------------------------


def test_decoding_equals_pillow(tmp_path: Path) -> None:
    y, x = np.mgrid[0:48, 0:64]
    smooth = np.stack((x * 4, y * 5, x + y), 2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(decoded(tmp_path / "a.jpg").astype(int) - np.array(Image.open(tmp_path / "a.jpg"))).max() <= 2


MODES = {
    "JPEG": ["1", "L", "RGB", "CMYK"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB"],
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_modes_become_rgb_as_in_pillow(kind: str, mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / "x", kind, **FORMATS.get(kind, {}))
    np.testing.assert_array_equal(decoded(tmp_path / "x"), np.array(Image.open(tmp_path / "x").convert("RGB")))
    np.testing.assert_array_equal(to_rgb(image, "image 0"), np.array(image.convert("RGB")))


def test_the_color_of_transparent_pixels_stays(tmp_path: Path) -> None:
    rgba = np.dstack((PIXELS, GRAY // 2))
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(decoded(tmp_path / "rgba.png"), PIXELS)
    palette = Image.fromarray(GRAY, mode="P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    palette.info["transparency"] = bytes(range(256))
    palette.save(tmp_path / "p.png")
    expected = np.stack((GRAY, 255 - GRAY, np.full_like(GRAY, 7)), 2)
    np.testing.assert_array_equal(decoded(tmp_path / "p.png"), expected)
    np.testing.assert_array_equal(to_rgb(palette, "image 0"), expected)


def test_deep_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = PIXELS.astype(np.uint16) * 257
    gray = np.repeat(GRAY[..., None], 3, 2)
    for name in ("rgb.png", "rgb.tif"):
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
        np.testing.assert_array_equal(decoded(tmp_path / name), PIXELS)
    for name in ("gray.png", "gray.tif"):
        Image.fromarray(deep[..., 0]).save(tmp_path / name)
        np.testing.assert_array_equal(decoded(tmp_path / name), gray)
    for name, values in (("i.tif", deep[..., 0].astype(np.int32)), ("f.tif", GRAY.astype(np.float32) / 255)):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(decoded(tmp_path / name), gray)
        np.testing.assert_array_equal(to_rgb(Image.fromarray(values), "image 0"), gray)
    cv2.imwrite(str(tmp_path / "color.tif"), (PIXELS / np.float32(255))[..., ::-1])
    np.testing.assert_array_equal(decoded(tmp_path / "color.tif"), PIXELS)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64])
def test_arrays_of_any_type_are_scaled(kind: type) -> None:
    factor = {"u": 1 if kind is np.uint8 else 257, "i": 257, "f": 1 / 255}[np.dtype(kind).kind]
    out = to_rgb((PIXELS * np.float64(factor)).astype(kind), "image 0")
    np.testing.assert_array_equal(out, PIXELS)
    assert out.flags.c_contiguous


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_uint8(values, ""), np.rint(values / 257.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2, 3), 7.5), r"float64 values 7\.5 \.\.\. 7\.5; .* must lie in 0 \.\.\. 1"),
        (np.full((2, 2, 3), -0.5, np.float32), r"float32 values -0\.5"),
        (np.full((2, 2, 3), np.nan), "values that include NaN"),
        (np.full((2, 2, 3), np.inf), "values inf"),
        (np.full((2, 2, 3), 200, np.int64), r"int64 values 200 \.\.\. 200, whose scale is unknown"),
        (np.full((2, 2, 3), -1, np.int16), "int16 values -1"),
        (np.full((2, 2, 3), 70000, np.int32), "int32 values 70000"),
        (np.zeros((0, 2, 3), np.uint8), "has no pixels"),
        (Image.fromarray(np.full((2, 2), 300.0, np.float32)), "float32 values 300"),
        (np.zeros((2, 2, 3), np.complex64), "not a complex64 array"),
    ],
)
def test_values_without_a_known_scale_are_refused(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^image 3: .*{message}"):
        to_rgb(values, "image 3")


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (10, 200)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:])
        assert abs(int(decoded(tmp_path / "x").max()) - 10) <= 2


# -- label maps -------------------------------------------------------------------------------------------------------


def test_label_maps_keep_their_values(tmp_path: Path) -> None:
    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    palette = Image.fromarray(values, mode="P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "palette.png")), values)
    for name in ("deep.png", "deep.tif"):
        cv2.imwrite(str(tmp_path / name), values.astype(np.uint16) * 300)
        np.testing.assert_array_equal(read_label_map(str(tmp_path / name)), values.astype(np.uint16) * 300)
    Image.fromarray(np.dstack((values, values + 99)), "LA").save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_label_map(str(tmp_path / "alpha.png")), values)
    bits = Image.fromarray(values % 2 == 1)
    for name in ("bits.png", "bits.tif", "bits.bmp"):
        bits.save(tmp_path / name)
        np.testing.assert_array_equal(read_label_map(str(tmp_path / name)), values % 2)


def test_gray_pngs_of_few_bits_hold_small_indices(tmp_path: Path) -> None:
    for bits in (2, 4):
        values = np.arange(16, dtype=np.uint8).reshape(2, 8) % 2**bits
        unpacked = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(2, -1)
        rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(unpacked, axis=1))
        (tmp_path / "x.png").write_bytes(png(8, 2, rows, bits=bits, color=0))
        np.testing.assert_array_equal(read_label_map(str(tmp_path / "x.png")), values)


def test_label_maps_with_values_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.jpg")
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(GRAY.astype(np.int32) * 70000).save(tmp_path / "i.tif")
    cv2.imwrite(str(tmp_path / "deep.png"), PIXELS.astype(np.uint16) * 257)
    for name, message in (
        ("a.jpg", "is a JPEG, whose compression changes values"),
        ("f.tif", r"not float32 values 0|not float32 values \d"),
        ("i.tif", "not int32 values"),
        ("deep.png", r"not uint16 values .* in color"),
    ):
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            read_label_map(str(tmp_path / name))


# -- damaged and extreme files ----------------------------------------------------------------------------------------


def png(width: int, height: int, rows: bytes, *, bits: int = 8, color: int = 2) -> bytes:
    """A PNG with the given header, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def saved(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.tile(PIXELS, (5, 5, 1))).save(out, kind, **(options or FORMATS.get(kind, {})))
    return out.getvalue()


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("kind", [*FORMATS, "BMP", "GIF", "PPM", "JPEG2000"])
def test_truncated_files_are_refused(kind: str, kept: float, tmp_path: Path) -> None:
    data = saved(kind)
    (tmp_path / "a.img").write_bytes(data[: int(kept * len(data))])
    for read in (read_image, read_label_map):
        with pytest.raises(DataError, match=r"a\.img: .*(truncated|cannot|can be) ?") as caught:
            read(str(tmp_path / "a.img"))
        assert "\n" not in str(caught.value)


def test_the_end_marker_of_a_thumbnail_is_not_that_of_the_image(tmp_path: Path) -> None:
    data = saved("JPEG", exif=b"Exif\0\0" + saved("JPEG"))
    (tmp_path / "a.jpg").write_bytes(data)
    decoded(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(data[: int(0.8 * len(data))])
    with pytest.raises(DataError, match=r"a\.jpg: truncated JPEG"):
        decoded(tmp_path / "a.jpg")


def test_damage_inside_of_a_png_is_found(tmp_path: Path) -> None:
    for mode in ("RGB", "P", "L"):
        Image.fromarray(PIXELS).convert(mode).save(tmp_path / "a.png")
        data = bytearray((tmp_path / "a.png").read_bytes())
        data[data.index(b"IDAT") + 20] ^= 0x55
        (tmp_path / "a.png").write_bytes(data)
        for read in (read_image, read_label_map):
            with pytest.raises(DataError, match=r"a\.png: damaged PNG: wrong checksum of a chunk 'IDAT'"):
                read(str(tmp_path / "a.png"))
    (tmp_path / "a.png").write_bytes(png(8, 8, bytes(25 * 3)))  # three rows of eight
    with pytest.raises(DataError, match=r"a\.png: not an image that can be decoded"):
        decoded(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"tEXt"])
def test_metadata_of_a_png_is_not_looked_at(kind: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = saved("PNG")
    content = kind + b"not what libpng expects here"
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    (tmp_path / "b.png").write_bytes(whole)
    assert np.array_equal(decoded(tmp_path / "a.png"), decoded(tmp_path / "b.png"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("bits", "color"), [(3, 0), (4, 2), (16, 3), (8, 1), (8, 7)])
def test_a_png_of_an_unknown_kind_is_refused(
    bits: int, color: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 2, b"\0" * 14, bits=bits, color=color))
    with pytest.raises(DataError, match=rf"a\.png: .* a PNG of color type {color} with {bits} bits"):
        read_image(str(tmp_path / "a.png"))
    assert capfd.readouterr().err == ""


def test_random_damage_never_raises_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for kind in (*FORMATS, "BMP", "GIF", "PPM", "JPEG2000"):
        data = saved(kind)
        for _ in range(20):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 200), 3):
                damaged[at] = rng.integers(256)
            (tmp_path / "x").write_bytes(damaged)
            for read in (read_image, read_label_map):
                message = ""
                try:
                    read(str(tmp_path / "x"))
                except DataError as error:
                    message = str(error)
                assert not message or message.startswith(f"{tmp_path}/x: ")
                assert "\n" not in message


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("hello"), "not an image that can be decoded: no known format"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
        (_pipe, "is a special file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a special file"),
        (lambda path: None, "no such image file"),
        (lambda path: path.write_bytes(saved("PDF")), "no known format"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xd9"), "truncated JPEG"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff\xc0\x00\x11\x08\x00"), "truncated JPEG"),
        (lambda path: path.write_bytes(b"II*\0\x08\0\0\0\xff\xff"), "truncated TIFF"),
    ],
)
def test_what_is_not_an_image_file_is_named(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "x.jpg")
    for read in (read_image, read_label_map, image_header):
        with pytest.raises(DataError, match=rf"x\.jpg: .*{message}"):
            read(str(tmp_path / "x.jpg"))


def test_images_that_claim_to_be_huge_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ((60_000, 60_000), (2**21, 1), (2**31 - 1, 2**31 - 1)):
        (tmp_path / "a.png").write_bytes(png(*size, b"\0"))
        with pytest.raises(DataError, match=rf"a\.png: its header claims {size[1]}x{size[0]} .*at most 225,000,000 "):
            decoded(tmp_path / "a.png")
    monkeypatch.setenv("VISIONKIT_MAX_IMAGE_PIXELS", "150")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="at most 150 pixels"):
        decoded(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"image 0: .*at most 37 pixels"):
        to_rgb(Image.fromarray(PIXELS), "image 0")
    monkeypatch.setenv("VISIONKIT_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(UserError, match="VISIONKIT_MAX_IMAGE_PIXELS is 'many'"):
        decoded(tmp_path / "a.png")


def test_one_pixel_and_very_wide_images_are_images(tmp_path: Path) -> None:
    for height, width in ((1, 1), (1, 70_000), (70_000, 1)):
        for name in ("a.png", "a.tif", "a.bmp"):
            Image.fromarray(np.full((height, width, 3), 9, np.uint8)).save(tmp_path / name)
            assert decoded(tmp_path / name).shape == (height, width, 3)


def test_memory_that_does_not_suffice_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images.cv2, "imdecode", fail)
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: there is not enough memory"):
        decoded(tmp_path / "a.png")
