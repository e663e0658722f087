"""Tables of numbers as pictures: a heat map that explains itself."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from visionkit.draw.palette import Color, text_color
from visionkit.draw.text import put_text, text_width

_INK: Color = (40, 40, 40)
_SOFT: Color = (110, 110, 110)
_EMPTY: Color = (238, 238, 238)
# Okabe and Ito's vermilion and blue, which everyone tells apart, with white between.
_LOW, _MIDDLE, _HIGH = (np.array(c, np.float64) for c in ((213, 94, 0), (250, 250, 250), (0, 114, 178)))


def heat_map(
    values: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    notes: np.ndarray | None = None,
    ends: tuple[str, str, str] = ("-", "0", "+"),
    bars: Mapping[str, float] | None = None,
    bars_title: str = "",
    lines: Sequence[str] = (),
    size: int = 16,
) -> np.ndarray:
    """A square of signed numbers about 0, with a scale in words.

    Args:
        values: (K, K); not a number where there is nothing to show. The diagonal is not coloured.
        names: of rows and columns.
        title: in one line above.
        subtitle: what the numbers are.
        notes: (K, K) of strings, small under each number.
        ends: what the lowest, middle and highest colour mean.
        bars: by name, a positive number drawn as a bar beside its row.
        bars_title: what those are.
        lines: sentences below.
        size: of the text in pixels.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    count, gap = len(names), round(size * 1.2)
    cell = max(8 * size, max(text_width(name, size) for name in names) + size)
    left = gap + max(text_width(name, size) for name in names) + size // 2
    top = gap + round(size * 5.4)
    beside = 9 * size if bars else 0
    width = max(left + count * cell + beside + gap, text_width(title, round(size * 1.4)) + 2 * gap, 34 * size)
    wrapped = _wrapped([subtitle], width - 2 * gap, size) if subtitle else []
    top += round(size * 1.4) * max(len(wrapped) - 1, 0)
    below = _wrapped(lines, width - 2 * gap, size)
    height = top + count * cell // 2 + 5 * size + round(size * 1.5) * len(below) + gap
    canvas = np.full((height, width, 3), 255, np.uint8)

    put_text(canvas, title, gap, gap + size, round(size * 1.4), _INK)
    for i, text in enumerate(wrapped):
        put_text(canvas, text, gap, gap + round(size * (2.8 + 1.4 * i)), size, _SOFT)
    limit = _limit(values)
    rows = cell // 2
    for i, name in enumerate(names):
        put_text(
            canvas, name, left - size // 2 - text_width(name, size), _middle(top + i * rows, rows, size), size, _INK
        )
        put_text(canvas, name, left + i * cell + (cell - text_width(name, size)) // 2, top - size // 2, size, _INK)
        for j in range(count):
            box = (left + j * cell, top + i * rows, cell - 2, rows - 2)
            _cell(canvas, box, values[i, j], "" if notes is None else str(notes[i, j]), limit, i == j, size)
    if bars:
        _bars(canvas, names, bars, bars_title, (left + count * cell + size, top, beside - 2 * size, rows), size)
    bottom = top + count * rows
    _scale(canvas, ends, limit, (left, bottom + size, count * cell - 2, size), size)
    for i, text in enumerate(below):
        put_text(canvas, text, gap, bottom + round(size * (5 + 1.5 * i)), size, _INK)
    return canvas


def _cell(
    canvas: np.ndarray, box: tuple[int, int, int, int], value: float, note: str, limit: float, own: bool, size: int
) -> None:
    x, y, width, height = box
    color = _EMPTY if own or np.isnan(value) else _color(value / limit)
    canvas[y : y + height, x : x + width] = color
    if own:
        return
    text = "?" if np.isnan(value) else f"{value:+.2f}"
    ink, large, small = text_color(color), round(size * 1.2), round(size * 0.75)
    up = size // 2 if note else 0
    put_text(canvas, text, x + (width - text_width(text, large)) // 2, _middle(y - up, height, large), large, ink)
    if note:
        put_text(canvas, note, x + (width - text_width(note, small)) // 2, _middle(y + size, height, small), small, ink)


def _bars(
    canvas: np.ndarray,
    names: Sequence[str],
    bars: Mapping[str, float],
    title: str,
    box: tuple[int, int, int, int],
    size: int,
) -> None:
    x, y, width, height = box
    most = max(bars.values()) or 1.0
    put_text(canvas, title, x, y - size // 2, size, _INK)
    for i, name in enumerate(names):
        if name not in bars:
            continue
        row = y + i * height + height // 2
        canvas[row - size // 3 : row + size // 3, x : x + max(2, round(width * bars[name] / most))] = _SOFT
        put_text(canvas, f"{bars[name]:.3g}", x, row + round(size * 1.3), round(size * 0.85), _INK)


def _scale(
    canvas: np.ndarray, ends: tuple[str, str, str], limit: float, box: tuple[int, int, int, int], size: int
) -> None:
    x, y, width, height = box
    for i in range(width):
        canvas[y : y + height, x + i] = _color(2 * i / max(width - 1, 1) - 1)
    texts = (f"{ends[0]} {-limit:+.1f}", f"{ends[1]} 0", f"{ends[2]} {limit:+.1f}")
    widths = [text_width(text, size) for text in texts]
    for text, at in zip(texts, (x, x + (width - widths[1]) // 2, x + width - widths[2])):
        put_text(canvas, text, at, y + height + round(size * 1.2), size, _SOFT)


def _limit(values: np.ndarray) -> float:
    """The first of a few round numbers that no coloured value exceeds."""
    off = values[~np.eye(len(values), dtype=bool)]
    most = float(np.nanmax(np.abs(off))) if np.isfinite(off).any() else 0.0
    return next((step for step in (0.2, 0.5) if most <= step), 1.0)


def _color(share: float) -> Color:
    """From -1 to 1."""
    end = _LOW if share < 0 else _HIGH
    red, green, blue = (_MIDDLE + (end - _MIDDLE) * min(abs(share), 1.0)).round().astype(int).tolist()
    return red, green, blue


def _middle(top: int, height: int, size: int) -> int:
    return top + height // 2 + round(size * 0.36)


def _wrapped(lines: Sequence[str], width: int, size: int) -> list[str]:
    letters = max(20, int(width / (text_width("abcdefghij klmnop", size) / 17)))
    return [part for line in lines for part in textwrap.wrap(line, letters)]
