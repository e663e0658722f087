"""Pictures side by side, with captions and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visionkit.draw.canvas import dot, text_size
from visionkit.draw.palette import Color
from visionkit.draw.text import put_text, text_width

_INK: Color = (40, 40, 40)


def sheet(tiles: Sequence[np.ndarray], columns: int = 3, titles: Sequence[str] = ()) -> np.ndarray:
    """Pictures in a grid on white, row by row.

    Args:
        tiles: (h, w, 3) uint8 RGB each, of any sizes.
        columns: pictures in a row.
        titles: captions of the first tiles, over each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if not tiles or columns < 1:
        raise ValueError(f"a sheet of {len(tiles)} tiles in {columns} columns")
    rows = [list(range(i, min(i + columns, len(tiles)))) for i in range(0, len(tiles), columns)]
    widths = [max(tiles[i].shape[1] for i in range(c, len(tiles), columns)) for c in range(min(columns, len(tiles)))]
    size = text_size(max(tiles, key=lambda tile: tile.size))
    gap = max(4, size // 2)
    captions = [round(size * 1.8) if any(i < len(titles) and titles[i] for i in row) else 0 for row in rows]
    heights = [max(tiles[i].shape[0] for i in row) for row in rows]
    height = sum(heights) + sum(captions) + gap * (len(rows) + 1)
    canvas = np.full((height, sum(widths) + gap * (len(widths) + 1), 3), 255, np.uint8)

    top = gap
    for row, caption, row_height in zip(rows, captions, heights):
        left = gap
        for i, width in zip(row, widths):
            tile = tiles[i]
            if i < len(titles) and titles[i]:
                put_text(canvas, titles[i], left, top + round(size * 1.1), round(size * 1.1), _INK)
            canvas[top + caption : top + caption + tile.shape[0], left : left + tile.shape[1]] = tile
            left += width + gap
        top += caption + row_height + gap
    return canvas


def legend(
    colors: Mapping[str, Color], width: int, size: int, *, dots: Mapping[str, Color] | None = None
) -> np.ndarray:
    """Swatches with their names on white, in as many lines as ``width`` pixels ask for.

    Args:
        colors: of classes, drawn as squares.
        width: of the picture.
        size: of the text in pixels.
        dots: colours of keypoints, drawn as dots.
    """
    entries = [(name, color, False) for name, color in colors.items()]
    entries += [(name, color, True) for name, color in (dots or {}).items()]
    line, left, top = round(size * 1.8), size // 2, 0
    places = []
    for name, _, _ in entries:
        needed = size + size // 2 + text_width(name, size)
        if left + needed > width and left > size:
            left, top = size // 2, top + line
        places.append((left, top))
        left += needed + size
    canvas = np.full((top + line if places else 0, width, 3), 255, np.uint8)
    for (name, color, is_dot), (x, y) in zip(entries, places):
        middle = y + line // 2
        if is_dot:
            dot(canvas, (x + size / 2, middle), size * 0.36, color)
        else:
            canvas[middle - size // 2 : middle + (size + 1) // 2, x : x + size] = color
        put_text(canvas, name, x + size + size // 2, middle + round(size * 0.36), size, _INK)
    return canvas
