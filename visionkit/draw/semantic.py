"""Pictures of label maps: class colours, thin borders, and the name of each region in its middle."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import cv2
import numpy as np

from visionkit.draw import canvas as paint
from visionkit.draw.palette import GREY, Color, class_colors
from visionkit.draw.text import Words, text_width
from visionkit.types import IGNORE, LabelSet


def draw_semantic(
    image: np.ndarray, label_map: np.ndarray, labels: LabelSet, alpha: float = 0.55, *, scale: int = 1
) -> np.ndarray:
    """A label map over an image: a colour a class, thin borders, names; what is ignored is hatched in grey.

    A class named ``background`` is left as the image is.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        label_map: (H, W) integers; ``IGNORE``, or what is no label, counts as ignored.
        labels: names of the classes.
        alpha: how strongly the colours cover the image.
        scale: how many times larger the picture is than ``image``.

    Returns:
        (scale H, scale W, 3) uint8 RGB.
    """
    label_map = enlarge_labels(label_map, scale)
    canvas = fill_regions(paint.enlarge(image, scale), label_map, labels, class_colors([labels]), alpha)
    name_regions(Words(canvas, paint.text_size(canvas)), label_map, labels)
    return canvas


def enlarge_labels(label_map: np.ndarray, scale: int) -> np.ndarray:
    """A label map ``scale`` times as large, its borders smoothed."""
    return enlarge_map(np.where((label_map < 0) | (label_map > IGNORE), IGNORE, label_map).astype(np.uint8), scale)


def enlarge_map(values: np.ndarray, scale: int) -> np.ndarray:
    """A map (H, W) of integers ``scale`` times as large, its borders smoothed."""
    if scale == 1:
        return values
    best, out = 0.0, np.zeros(())
    for value in np.unique(values):
        share = cv2.resize((values == value) * np.float32(1), None, fx=scale, fy=scale)
        share = cv2.GaussianBlur(share, (0, 0), 0.5 * scale)
        out = np.where(share > best, value, out)
        best = np.maximum(share, best)
    return out.astype(values.dtype)


def fill_regions(
    canvas: np.ndarray, label_map: np.ndarray, labels: LabelSet, colors: Mapping[str, Color], alpha: float
) -> np.ndarray:
    """The class colours and borders over ``canvas``, both of one size."""
    table = np.full((256, 3), GREY, np.float32)
    strength = np.full(256, alpha, np.float32)
    for i, name in enumerate(labels.names):
        table[i], strength[i] = colors[name], 0.0 if name == "background" else alpha
    strength[len(labels) :] = 0.0

    # Half of the photograph's own colour is taken out, so that the hues seen are those of the classes.
    grey = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    a = strength[label_map][:, :, None]
    out = canvas * (1 - a) * 0.5 + grey * (1 - a) * 0.5
    out = np.where(a > 0, out + table[label_map] * a, canvas)

    ignored = label_map >= len(labels)
    if ignored.any():
        hatch = paint.stripes((0, 0), label_map.shape, 8 * paint.unit(canvas))[:, :, None]
        out = np.where(ignored[:, :, None], canvas * (0.55 - 0.25 * hatch) + (170 - 60 * hatch) * 0.45, out)

    border = np.zeros(label_map.shape, bool)
    border[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    border[1:] |= label_map[1:] != label_map[:-1]
    out[border] = out[border] * 0.25 + 255 * 0.75
    return (out + 0.5).clip(0, 255).astype(np.uint8)


def name_regions(words: Words, label_map: np.ndarray, labels: LabelSet, leave_out: Collection[str] = ()) -> None:
    """Write class names at the heart of each region that has room, and at least once for each class that covers half
    a per cent of the picture."""
    size = words.size
    for value in np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)[: len(labels)]).tolist():
        name = labels.names[value]
        if name in {*leave_out, "background"}:
            continue
        mask = cv2.copyMakeBorder((label_map == value).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        count, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        areas = stats[:, cv2.CC_STAT_AREA]
        for part in sorted(range(1, count), key=lambda i: -areas[i]):
            x, y, w, h, area = stats[part]
            first = area == areas[1:].max()
            if area < (0.005 * mask.size if first else 4 * size * size):
                break
            inside = np.where(parts[y : y + h, x : x + w] == part, depth[y : y + h, x : x + w], 0)
            row, column = np.unravel_index(int(inside.argmax()), inside.shape)
            if first or (w > text_width(name, size) and inside[row, column] > 0.8 * size):
                words.name(name, (x + column - 0.5, y + row - 0.5))
