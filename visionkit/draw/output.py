"""Drawings as the bytes of image files, and the rule that a drawing that fails costs nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable

import cv2
import numpy as np

from visionkit.draw.canvas import bounded

MAX_SIDE = 4 * 2048
"""Of a whole visualization in pixels; JPEG ends at 65,535."""

log = logging.getLogger("visionkit.draw")


def visualization(draw: Callable[[], np.ndarray], name: str) -> bytes | None:
    """A drawing as JPEG; ``None`` if it cannot be drawn, which is reported with one line.

    Whatever goes wrong while drawing, in a plugin, in OpenCV or for want of memory, must not cost the results that the
    drawing shows.

    Args:
        draw: returns (H, W, 3) uint8 RGB.
        name: of the image, for the message.
    """
    try:
        return encode_image(bounded(draw(), MAX_SIDE), ".jpg")
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        log.warning("%s: no visualization: %s: %s", name, type(error).__name__, lines[0])
        return None


def encode_image(image: np.ndarray, suffix: str) -> bytes:
    """(H, W) or (H, W, 3) RGB, uint8 or uint16, in the format of a file suffix.

    Raises:
        ValueError: the format has no such images, for which OpenCV would write other values.
    """
    depths: tuple[type, ...] = (np.uint8, np.uint16) if suffix == ".png" else (np.uint8,)
    if image.dtype not in depths or not image.size or (image.ndim != 2 and image.shape[2:] != (3,)):
        raise ValueError(f"{image.dtype} of shape {image.shape} cannot be written as {suffix}")
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(suffix, stored, [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else [])
    if not ok:
        raise ValueError(f"{image.dtype} of shape {image.shape} cannot be written as {suffix}")
    return data.tobytes()
