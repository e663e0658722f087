"""Text on pictures: names that stay readable on any ground and do not cover one another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from visionkit.draw.palette import Color, text_color

Rect = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def text_width(text: str, size: int) -> int:
    """Pixels that one line of ``text`` takes; ``size`` is the height of the letters' body in pixels."""
    if hasattr(cv2, "FontFace"):
        x, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, 500)
        return x + width
    return cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size / 30, 1)[0][0]


def put_text(canvas: np.ndarray, text: str, left: int, baseline: int, size: int, color: Color) -> None:
    """Write one line onto ``canvas`` in place; letters that the font lacks become question marks."""
    if hasattr(cv2, "FontFace"):  # OpenCV 5: an outline font with all the world's letters
        never = (-(1 << 20), 1 << 20)  # where to wrap
        cv2.putText(canvas, text, (left, baseline), color, cv2.FontFace("sans"), size, 500, 0, never)
    else:
        cv2.putText(canvas, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, size / 30, color, 1, cv2.LINE_AA)


@dataclass
class Words:
    """The words on one picture, each where it covers no other; where there is no room, it is left out.

    Args:
        canvas: written on in place.
        size: of the text in pixels.
    """

    canvas: np.ndarray
    size: int
    taken: list[Rect] = field(default_factory=list)

    def tag(self, text: str, box: Sequence[float], color: Color) -> bool:
        """A name tag on ``color`` at a box (left, top, right, bottom in pixels); false if there was no room."""
        pad = max(2, round(self.size * 0.25))
        width, height = text_width(text, self.size) + 2 * pad, round(self.size * 1.35)
        x0, y0, x1, y1 = (round(v) for v in box)
        places = (
            (x0, y0 - height),  # over the box, in its corners, under it, in its middle
            (x0, y0),
            (x1 - width, y0 - height),
            (x0, y1),
            (x1 - width, y0),
            (x0, y1 - height),
            (x1 - width, y1),
            (x1 - width, y1 - height),
            ((x0 + x1 - width) // 2, (y0 + y1 - height) // 2),
        )
        rect = self._first_free(places, width, height)
        if rect is None:
            return False
        left, top, right, bottom = rect
        self.canvas[top:bottom, left:right] = color
        put_text(self.canvas, text, left + pad, top + round(self.size * 1.02), self.size, text_color(color))
        return True

    def name(self, text: str, center: tuple[float, float]) -> bool:
        """White text with a dark rim about a point, for a ground of any colour; false if there was no room."""
        rim = max(1, round(self.size / 8))
        width, height = text_width(text, self.size) + 4 * rim, round(self.size * 1.6)
        x, y = round(center[0] - width / 2), round(center[1] - height / 2)
        rect = self._first_free([(x, y), (x, y - height), (x, y + height)], width, height)
        if rect is None:
            return False
        left, top, right, bottom = rect
        patch = self.canvas[top:bottom, left:right]
        letters = np.zeros((height, width, 3), np.uint8)
        put_text(letters, text, 2 * rim, round(height / 2 + self.size * 0.36), self.size, (255, 255, 255))
        letters = letters[: patch.shape[0], : patch.shape[1]]
        brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
        ground = cv2.GaussianBlur(cv2.dilate(letters, brush), (0, 0), rim * 0.6)  # the letters, spread, are the rim
        dark, white = (v.astype(np.float32) / 255 for v in (ground, letters))
        patch[:] = patch * (1 - 0.85 * dark) * (1 - white) + 255 * white
        return True

    def _first_free(self, places: Iterable[tuple[int, int]], width: int, height: int) -> Rect | None:
        """The first place, moved into the picture, that touches nothing written before; it is then taken."""
        for left, top in places:
            left = min(max(left, 0), max(self.canvas.shape[1] - width, 0))
            top = min(max(top, 0), max(self.canvas.shape[0] - height, 0))
            rect = (left, top, left + width, top + height)
            if not any(_touch(rect, other) for other in self.taken):
                self.taken.append(rect)
                return rect
        return None


def _touch(a: Rect, b: Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
