"""Decoding of images and label maps: one set of rules for files, PIL images and arrays.

``image_headers`` says what a file claims to hold before anything is decoded. Here it is decoded, scaled to eight bits,
and rotated as its EXIF orientation says, so that every part of visionkit sees the image as viewers display it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.coco.files import inside as inside
from visionkit.data.image_headers import Header, read_header
from visionkit.errors import DataError, UserError

MAX_PIXELS = 15_000**2
"""Larger images are refused before they are decoded, so that none takes more than 1.5 GB. Rotated images and images of
16 bits take more memory per pixel, and formats other than JPEG, PNG and TIFF even more: of those, half and a quarter as
many pixels are read. The environment variable ``VISIONKIT_MAX_IMAGE_PIXELS`` replaces the number."""
MAX_SIDE = 2**20
"""The longest side that OpenCV decodes."""
MAX_RESIZED = 2**26
"""An image may not be resized to more than this number of pixels (8,192 x 8,192)."""
_MAX_BYTES = 2**31
# Pillow stores RGB in four bytes per pixel, warns above this number of pixels and refuses twice as many in a TIFF.
_MAX_PILLOW_TIFF = 2**26


def read_image(path: str) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, rotated as its EXIF orientation says.

    Gray is repeated, alpha is dropped, the first frame of an animation is taken, and values of more than eight bits
    are scaled by :func:`to_uint8`. The memory is ordered (H, W, 3), as OpenCV and channels-last convolutions like it.

    Raises:
        DataError: the file is missing, damaged, too large, or not an image; the message names it.
    """
    data = _read(path)
    header = _checked_header(path, data)
    with _decoding(path):
        if _is_pillows(header):
            rgb = pil_to_rgb(_pil_image(data, header), path)
        else:
            rgb = _decode(data, header, path, color=True) if header.bits <= 8 else _deep(data, header, path)
        return from_hwc(_upright(rgb, header.orientation))


def read_label_map(path: str) -> np.ndarray:
    """A label map as (H, W) uint8 or uint16 indices, of a palette image the indices and not the colors; an image in
    color as (H, W, 3) uint8 RGB.

    Images of fewer than eight bits give their stored values (0 and 1 of one bit). Like images, label maps are rotated
    as their EXIF orientation says, and alpha is dropped.

    Raises:
        DataError: the file is missing, damaged, too large, not an image, or a grayscale JPEG, whose values are not
            those that were saved; the message names it.
    """
    data = _read(path)
    header = _checked_header(path, data)
    with _decoding(path):
        if header.format == "PNG" and not header.palette:
            pixels = _stored(data, header, path)
            if pixels.ndim == 2 and header.bits < 8:  # OpenCV stretches the values to 0 ... 255
                pixels = pixels // (255 // (2**header.bits - 1))
        elif _is_pillows(header) or header.format == "PNG":
            pixels = _pil_indices(_pil_image(data, header))
        else:
            pixels = _stored(data, header, path)
    if header.format == "JPEG" and pixels.ndim == 2:
        raise DataError(f"{path}: is a JPEG, whose compression changes values; a map of class indices must be stored "
                        "without loss (as PNG)")  # fmt: skip
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() < 2**16:
        pixels = pixels.astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16) or (pixels.ndim == 3 and pixels.dtype != np.uint8):
        raise DataError(f"{path}: a label map holds indices of 8 or 16 bits or RGB colors of 8, not {pixels.dtype} "
                        f"values {_range(pixels)}{' in color' if pixels.ndim == 3 else ''}")  # fmt: skip
    return _upright(pixels, header.orientation)


def image_header(path: str) -> Header:
    """Format, size and orientation of an image file, without decoding it. Raises ``DataError`` as the others do."""
    return _checked_header(path, _read(path))


def check_size(
    path: str, size: Sequence[int], expected: Sequence[int], where: str, *, of: str = "", also: Sequence[str] = ()
) -> None:
    """Compare the displayed (height, width) of an image or label map with what is known from elsewhere.

    Args:
        path: the file that has ``size``.
        where: what goes before the expected size in the message, such as ``"train.json says"``.
        of: what goes after it, such as ``" for image 7"``.
        also: other files whose orientation may be the reason, such as the image of a label map.

    Raises:
        DataError: they differ; the message explains the EXIF orientation of a file that has one.
    """
    if tuple(size) == tuple(expected):
        return
    hint = ""
    for file in (path, *also):
        header = image_header(file)
        if header.orientation > 1:
            (height, width), (rows, columns) = header.size, header.stored_size
            hint += (
                f"; {file} is stored as {rows}x{columns} and displayed as {height}x{width} because of its EXIF "
                f"orientation {header.orientation}: annotations and label maps must fit the displayed image (if they "
                "fit the stored pixels, remove the orientation from the file, e.g. exiftool -Orientation= FILE)"
            )
    raise DataError(
        f"{path}: is {size[0]}x{size[1]} (height x width), but {where} {expected[0]}x{expected[1]}{of}{hint}"
    )


def to_rgb(image: Any, name: str) -> np.ndarray:
    """A PIL image, or an array (H, W, 3), as a contiguous array (H, W, 3) uint8 RGB.

    Raises:
        DataError: it is neither, is damaged, or holds values that cannot be scaled to eight bits; the message starts
            with ``name``.
    """
    if hasattr(image, "convert") and hasattr(image, "getexif"):  # PIL's, without importing it
        with _decoding(name):
            _check_pixels(name, Header(image.format or "", (image.height, image.width)))
            return _upright(pil_to_rgb(image, name), _orientation(image))
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype.kind in "buif":
        return np.ascontiguousarray(to_uint8(image, name))
    what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(f"{name}: an array (H, W, 3) of uint8 RGB, a PIL image or a file name, not a {what}")


def to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Values of any type as eight bits.

    uint8 stays as it is, bool becomes 0 and 255, uint16 is divided by 257 and rounded, and floating-point values must
    lie in 0 ... 1 and are multiplied by 255. Other integers must be 16-bit values.

    Raises:
        DataError: there is no pixel, or a value lies outside of that range or is NaN; the message starts with ``name``.
    """
    if not values.size:
        raise DataError(f"{name}: has no pixels (shape {values.shape})")
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is not either
            raise DataError(f"{name}: holds {values.dtype} values {_range(values)}; floating-point images must lie in "
                            "0 ... 1 (others must be scaled to 8 or 16 bits)")  # fmt: skip
    elif values.dtype != np.uint16 and not (values.min() >= 0 and (255 < values.max() < 2**16 or not values.max())):
        # Up to 255, they could be of 8 or of 16 bits.
        raise DataError(f"{name}: holds {values.dtype} values {_range(values)}, whose scale is unknown; integers must "
                        "be uint8 (0 ... 255) or uint16 (0 ... 65535)")  # fmt: skip
    factor = np.float32(255 if values.dtype.kind == "f" else 1 / 257)
    out = np.empty(values.shape, np.uint8)
    for row in range(len(values)):  # the whole image in floating point would take four times its memory
        out[row] = np.rint(values[row] * factor)
    return out


def pil_to_rgb(image: Any, name: str) -> np.ndarray:
    """A PIL image as (H, W, 3) uint8 RGB as it is stored, without its orientation."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        gray = to_uint8(np.asarray(image), name)
        return np.repeat(gray[..., None], 3, 2)
    if image.mode == "P":  # by way of RGBA, because Pillow warns of a transparent palette otherwise
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "RGBX", "RGBa"):  # the color under a transparent pixel stays as it is
        return np.ascontiguousarray(np.asarray(image)[..., :3])
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def check_resized(name: str, size: tuple[int, int]) -> None:
    """Refuse to resize an image to more than :data:`MAX_RESIZED` pixels. Raises ``DataError``."""
    if size[0] * size[1] > MAX_RESIZED:
        raise DataError(f"{name}: would be resized to {size[0]}x{size[1]} (height x width); at most {MAX_RESIZED:,} "
                        "pixels are possible (limit its longer side)")  # fmt: skip


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises (cv2.error, OSError, SyntaxError, struct.error ...) as one ``DataError``."""
    try:
        yield
    except UserError:
        raise
    except MemoryError:
        raise DataError(f"{name}: there is not enough memory to decode it") from None
    except Exception as error:
        text = " ".join(str(error).split())
        raise DataError(f"{name}: not an image that can be decoded ({text or type(error).__name__})") from None


def _read(path: str) -> bytes:
    """The bytes of an image file. A pipe or a device is not opened: reading it might never end."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a special file"
            raise DataError(f"{path}: is {kind}, not an image file")
        if status.st_size > _MAX_BYTES:
            raise DataError(f"{path}: has {status.st_size:,} bytes; image files of at most {_MAX_BYTES:,} are read")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except (OSError, ValueError) as error:  # a name that holds a null character is a ValueError
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise DataError(f"{path}: the image file is empty")
    return data


def _checked_header(path: str, data: bytes) -> Header:
    header = read_header(path, data)
    _check_pixels(path, header)
    return header


def _check_pixels(name: str, header: Header) -> None:
    height, width = header.stored_size
    setting = os.environ.get("VISIONKIT_MAX_IMAGE_PIXELS", "")
    if setting and not setting.isdecimal():
        raise UserError(f"VISIONKIT_MAX_IMAGE_PIXELS is '{setting}'; it must be a whole number of pixels")
    limit = int(setting or MAX_PIXELS)
    if header.format not in ("JPEG", "PNG", "TIFF"):
        limit //= 4
    elif header.bits > 8 or header.orientation > 1:
        limit //= 2
    if height < 1 or width < 1:
        raise DataError(f"{name}: has no pixels ({height}x{width})")
    if height * width > limit or max(height, width) > MAX_SIDE:
        raise DataError(
            f"{name}: its header claims {height}x{width} (height x width); at most {limit:,} pixels and {MAX_SIDE:,} "
            "per side are read (cut the image into tiles, or raise VISIONKIT_MAX_IMAGE_PIXELS)"
        )


def _is_pillows(header: Header) -> bool:
    """Whether Pillow decodes it. OpenCV is faster for JPEG and PNG and notices every damage in a PNG; it also knows
    several channels of more than eight bits. Everything else is Pillow's, which refuses what OpenCV fills in."""
    if header.format == "JPEG":
        return header.channels == 4
    if header.format == "PNG":
        return False
    if header.format == "TIFF":
        deep = header.bits > 8 and header.channels > 1
        return not deep and header.stored_size[0] * header.stored_size[1] <= _MAX_PILLOW_TIFF
    return True


def _decode(data: bytes, header: Header, path: str, *, color: bool = False) -> np.ndarray:
    """What OpenCV decodes: (H, W) or (H, W, C) in the order blue, green, red, alpha as it is stored; with ``color``,
    (H, W, 3) uint8 RGB."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION if color else cv2.IMREAD_UNCHANGED
    pixels = cv2.imdecode(np.frombuffer(header.neutral(data), np.uint8), flags)
    if pixels is None or pixels.shape[:2] != header.stored_size:
        raise DataError(f"{path}: not an image that can be decoded (a damaged {header.format})")
    return pixels


def _deep(data: bytes, header: Header, path: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of more than eight bits."""
    pixels = to_uint8(_decode(data, header, path), path)
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return cv2.cvtColor(pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0]), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(pixels[..., 2::-1])


def _stored(data: bytes, header: Header, path: str) -> np.ndarray:
    """A label map as it is stored: (H, W), or (H, W, 3) in the order red, green, blue."""
    color = header.channels >= 3
    pixels = _decode(data, header, path, color=color and header.bits <= 8)
    if pixels.ndim == 2 or color:
        return pixels
    return np.ascontiguousarray(pixels[..., 0])  # OpenCV repeats gray where there is alpha


def _pil_image(data: bytes, header: Header) -> Any:
    from PIL import Image  # torchvision brings it; most images never need it

    Image.init()
    # Not Image.open, which would warn of large images or refuse them by a limit of its own.
    return Image.OPEN[header.format][0](BytesIO(header.neutral(data)), "")


def _pil_indices(image: Any) -> np.ndarray:
    """(H, W) indices or (H, W, 3) colors as they are stored."""
    image.load()
    if image.mode in ("LA", "La", "PA"):
        image = image.getchannel(0)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode in ("L", "P", "F") or image.mode.startswith("I"):
        pixels = np.array(image)
        return pixels.astype(pixels.dtype.newbyteorder("="))
    return pil_to_rgb(image, "")


def _orientation(image: Any) -> int:
    """The EXIF orientation of a PIL image, 1 where there is none."""
    value = image.getexif().get(0x0112, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) as an EXIF orientation (1 ... 8) displays them."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)


def _range(values: np.ndarray) -> str:
    if values.dtype.kind == "f" and np.isnan(values).any():
        return "that include NaN"
    return f"{values.min():g} ... {values.max():g}"


def as_hwc(image: Tensor) -> np.ndarray:
    """(3, H, W) as a contiguous array (H, W, 3), without a copy where the memory is in that order already."""
    pixels = image.permute(1, 2, 0).numpy()
    # NumPy would copy value by value, which takes twenty times as long.
    return pixels if pixels.flags.c_contiguous else cv2.merge([np.ascontiguousarray(p) for p in image.numpy()])


def from_hwc(image: np.ndarray) -> Tensor:
    """(H, W, 3) as a tensor (3, H, W) over the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)
