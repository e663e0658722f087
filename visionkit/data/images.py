"""Reading images and label maps, whole or not at all."""

from __future__ import annotations

import os
from pathlib import PurePath

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
# Annotations lie on the stored pixels, so the orientation that a camera noted in EXIF must not be applied.
_COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_image(path: str) -> Tensor:
    """An image file as (3, H, W) uint8 RGB; grey is repeated, alpha dropped, 16 bit reduced to 8.

    The memory is ordered (H, W, 3), as OpenCV and channels-last convolutions like it.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    bgr = cv2.imdecode(_read(path), _COLOR)
    if bgr is None:
        raise DataError(f"{path}: not an image that can be decoded")
    return from_hwc(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr))


def read_label_map(path: str) -> np.ndarray:
    """A PNG of class indices as (H, W) uint8 or uint16; of a palette image, the indices and not the colours.

    RGB files come back as (H, W, 3) uint8 RGB.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    data = _read(path)
    if data[:8].tobytes() == _PNG and len(data) > 25 and data[25] == 3:
        return _read_palette_indices(path)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{path}: not an image that can be decoded")
    return cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def _read_palette_indices(path: str) -> np.ndarray:
    from PIL import Image  # OpenCV turns a palette into colours; torchvision brings PIL

    with Image.open(path) as image:
        return np.array(image)


def _read(path: str) -> np.ndarray:
    """The bytes of an image file, which must not end early: some decoders silently fill what is missing with grey."""
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not len(data):
        raise DataError(f"{path}: the image file is empty")
    if what := _truncated(data.tobytes()):
        raise DataError(f"{path}: truncated {what} ({len(data)} bytes, and its end marker is missing)")
    return data


def _truncated(data: bytes) -> str | None:
    """The format of an image file that ends early, else ``None``."""
    if data.startswith(b"\xff\xd8"):
        return None if data.rfind(b"\xff\xd9", _scan_start(data)) >= 0 else "JPEG"
    if data.startswith(_PNG):
        return None if data.rfind(b"IEND\xaeB`\x82") >= 0 else "PNG"
    return None


def _scan_start(data: bytes) -> int:
    """Where the first scan of a JPEG begins: a thumbnail in the headers before it has an end marker of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return at
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return len(data)


def as_hwc(image: Tensor) -> np.ndarray:
    """(3, H, W) as a contiguous array (H, W, 3), without a copy where the memory is in that order already."""
    pixels = image.permute(1, 2, 0).numpy()
    # NumPy would copy value by value, which takes twenty times as long.
    return pixels if pixels.flags.c_contiguous else cv2.merge([np.ascontiguousarray(p) for p in image.numpy()])


def from_hwc(image: np.ndarray) -> Tensor:
    """(H, W, 3) as a tensor (3, H, W) over the same memory."""
    return torch.from_numpy(image).permute(2, 0, 1)


def inside(root: str, name: str, where: str) -> str:
    """``root/name``, of which ``name`` must not lead out of ``root``.

    Raises:
        DataError: it is absolute or goes up; the message starts with ``where``.
    """
    if name.startswith(("/", "\\")) or ".." in name or ":" in name:  # the slow look is for the few that need it
        pure = PurePath(name)
        if pure.is_absolute() or pure.drive or ".." in name.replace("\\", "/").split("/") or name.startswith("\\"):
            raise DataError(f"{where}: file name '{name}' leads out of the folder {root}")
    return os.path.join(root, name)
