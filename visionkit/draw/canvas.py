"""Strokes and fills in image coordinates: a pixel covers [i, i + 1), so its centre lies at i + 0.5."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from visionkit.draw.palette import Color

MAX_SIDE = 2048
"""Of the image in a visualization, in pixels; larger images are drawn smaller."""

_BITS = 4  # of sub-pixel precision that OpenCV draws with


def upscaling(image: np.ndarray, wanted: int = 640) -> int:
    """How many times a small picture is enlarged, so that names on it can be read; 1 for a large one."""
    return max(1, round(wanted / max(image.shape[:2])))


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """A copy of ``image``, ``scale`` times as large."""
    if scale == 1:
        return image.copy()
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def bounded(image: np.ndarray, limit: int = MAX_SIDE) -> np.ndarray:
    """The image, or a smaller copy whose longer side is ``limit`` pixels: nobody looks at more, and the memory that
    drawing needs is bounded."""
    factor = limit / max(image.shape[:2])
    if factor >= 1:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def unit(canvas: np.ndarray) -> float:
    """The measure of line widths and text: 1 on a picture of 640 x 480 pixels."""
    return max(0.75, math.sqrt(canvas.shape[0] * canvas.shape[1] / (640 * 480)))


def text_size(canvas: np.ndarray) -> int:
    """Height of the letters in pixels that suits the picture."""
    return max(10, round(13 * unit(canvas)))


def blend(patch: np.ndarray, color: Color, alpha: np.ndarray | float) -> None:
    """Paint over ``patch`` (h, w, 3) in place; ``alpha`` (h, w) or one number in 0 ... 1."""
    if isinstance(alpha, np.ndarray):
        alpha = alpha[:, :, None]
    patch[:] = patch * (1 - alpha) + np.asarray(color, np.float32) * alpha + 0.5


def stripes(corner: tuple[int, int], shape: tuple[int, ...], period: float) -> np.ndarray:
    """(height, width) of 0 ... 1: diagonal stripes that go on evenly from one patch of a picture to the next.

    Args:
        corner: row and column of the patch in the picture.
        shape: (height, width) of the patch.
        period: of the stripes in pixels.
    """
    place = (np.arange(shape[0])[:, None] + np.arange(shape[1]) + sum(corner)) % period
    return np.clip(np.abs(place - period / 2) - period / 4 + 0.5, 0, 1).astype(np.float32)


def line(
    canvas: np.ndarray, a: Iterable[float], b: Iterable[float], color: Color, width: int, *, dash: float = 0.0
) -> None:
    """A smooth line; with ``dash``, one of strokes and gaps of about that length in pixels."""
    a, b = np.asarray(tuple(a)), np.asarray(tuple(b))
    pieces = max(1, int(np.linalg.norm(b - a) / dash)) | 1 if dash else 1  # an odd number: ends with a stroke
    for i in range(0, pieces, 2):
        ends = (a + (b - a) * i / pieces, a + (b - a) * (i + 1) / pieces)
        cv2.line(canvas, _fixed(ends[0]), _fixed(ends[1]), color, width, cv2.LINE_AA, _BITS)


def rectangle(canvas: np.ndarray, box: Iterable[float], color: Color, width: int, *, dash: float = 0.0) -> None:
    """The edge of a box, drawn on its inside."""
    if dash:
        x0, y0, x1, y1 = box
        inset = min(width / 2, (x1 - x0) / 2, (y1 - y0) / 2)
        x0, y0, x1, y1 = x0 + inset, y0 + inset, x1 - inset, y1 - inset
        corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        for a, b in zip(corners, corners[1:] + corners[:1]):
            line(canvas, a, b, color, width, dash=dash)
        return
    left, top, right, bottom = (round(min(max(v, -1e5), 1e5)) for v in box)
    for x0, y0, x1, y1 in (
        (left, top, right, min(top + width, bottom)),
        (left, max(bottom - width, top), right, bottom),
        (left, top, min(left + width, right), bottom),
        (max(right - width, left), top, right, bottom),
    ):
        canvas[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = color


def dot(canvas: np.ndarray, center: Iterable[float], radius: float, color: Color) -> None:
    """A disc."""
    cv2.circle(canvas, _fixed(center), round(radius * (1 << _BITS)), color, -1, cv2.LINE_AA, _BITS)


def _fixed(point: Iterable[float]) -> tuple[int, int]:
    x, y = point
    # Far outside is as good as infinity, and overflows nothing.
    return tuple(round(min(max(v - 0.5, -1e5), 1e5) * (1 << _BITS)) for v in (x, y))  # type: ignore[return-value]
