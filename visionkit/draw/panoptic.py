"""Pictures of panoptic segmentations: a class has a colour, its instances have shades of it, and each has a name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from visionkit.draw import canvas as paint
from visionkit.draw.palette import Color, class_colors, shade
from visionkit.draw.semantic import enlarge_map
from visionkit.draw.text import Words, text_width
from visionkit.types import LabelSet, PanopticPrediction, PanopticTarget

STUFF, THING, CROWD = 0.5, 0.58, 0.3
"""How strongly the colours cover the image."""


@dataclass(frozen=True)
class Map:
    """A segmentation as it is drawn.

    Attributes:
        segments: (H, W) int32 at the size of the picture; number ``n`` is item ``n - 1`` of the lists, 0 is void.
        names, colors, things, crowd: of the segments.
    """

    segments: np.ndarray
    names: list[str]
    colors: list[Color]
    things: list[bool]
    crowd: list[bool]


def draw_panoptic(
    image: np.ndarray, item: PanopticPrediction | PanopticTarget, labels: LabelSet, *, scale: int = 1
) -> np.ndarray:
    """A panoptic segmentation over an image, with thin outlines and names.

    Stuff has the colour of its class, things have shades of it. Crowds are striped in their colour, void in grey.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        item: in pixels of ``image``.
        labels: names of the classes.
        scale: how many times larger the picture is than ``image``.

    Returns:
        (scale H, scale W, 3) uint8 RGB.
    """
    drawn = to_map(item, labels, class_colors([labels]), scale)
    canvas = fill_segments(paint.enlarge(image, scale), drawn)
    name_segments(Words(canvas, paint.text_size(canvas)), drawn)
    return canvas


def to_map(
    item: PanopticPrediction | PanopticTarget, labels: LabelSet, colors: Mapping[str, Color], scale: int = 1
) -> Map:
    """What is to be drawn of a prediction or target; shades are given out by size, largest first."""
    segments, classes = item.segments.cpu().numpy(), item.labels.tolist()
    spread = float(np.clip(240 / max(sum(labels.things), 1), 45, 100))
    areas = np.bincount(segments.ravel(), minlength=len(classes) + 1)[1:]
    shades, counts = [colors[labels.names[c]] for c in classes], [0] * len(labels)
    for i in np.argsort(-areas, kind="stable").tolist():
        if labels.things[classes[i]]:
            shades[i] = shade(shades[i], counts[classes[i]], spread)
            counts[classes[i]] += 1
    return Map(
        segments=enlarge_map(segments, scale),
        names=[labels.names[c] for c in classes],
        colors=shades,
        things=[labels.things[c] for c in classes],
        crowd=item.crowd.tolist() if isinstance(item, PanopticTarget) else [False] * len(classes),
    )


def fill_segments(canvas: np.ndarray, drawn: Map) -> np.ndarray:
    """The segments and their outlines over ``canvas``, both of one size."""
    segments = drawn.segments
    color = np.array([(128, 128, 128), *drawn.colors], np.float32)
    crowd = np.array([False, *drawn.crowd])
    strength = np.array([0.0, *(THING if thing else STUFF for thing in drawn.things)], np.float32)
    strength[crowd] = CROWD

    # Half of the photograph's own colour is taken out, so that the hues seen are those of the classes.
    grey = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    alpha = strength[segments]
    striped = (segments == 0) | crowd[segments]
    if striped.any():
        stripes = paint.stripes((0, 0), segments.shape, 9 * paint.unit(canvas))
        alpha = np.where(striped, alpha + 0.4 * stripes, alpha)
    alpha = alpha[:, :, None]
    out = (0.5 * canvas + 0.5 * grey) * (1 - alpha) + color[segments] * alpha

    edge, width = borders(segments), max(1, round(paint.unit(canvas)))
    if width > 1:
        edge = cv2.dilate(edge.view(np.uint8), np.ones((width, width), np.uint8)).astype(bool)
    out[edge] = out[edge] * 0.2 + 255 * 0.8
    return (out + 0.5).clip(0, 255).astype(np.uint8)


def borders(segments: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose left or upper neighbour belongs to another segment."""
    edge = np.zeros(segments.shape, bool)
    edge[:, 1:] |= segments[:, 1:] != segments[:, :-1]
    edge[1:] |= segments[1:] != segments[:-1]
    return edge


def name_segments(words: Words, drawn: Map, leave_out: Collection[str] = ()) -> None:
    """Write names at the heart of each segment that has room, and at least once for each class that covers a third of
    a per cent of the picture."""
    size, named = words.size, set(leave_out) | {"background"}
    areas = np.bincount(drawn.segments.ravel(), minlength=len(drawn.names) + 1)[1:]
    for i in np.argsort(-areas, kind="stable").tolist():
        name = drawn.names[i]
        first = name not in named
        if name in {*leave_out, "background"} or areas[i] < (0.003 * drawn.segments.size if first else 4 * size * size):
            continue
        mask = drawn.segments == i + 1
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        center, depth = heart(mask[top : top + height, left : left + width])
        text = f"{name} (crowd)" if drawn.crowd[i] else name
        roomy = depth > 0.6 * size and width > 0.8 * text_width(text, size)
        if (first or roomy) and words.name(text, (left + center[0], top + center[1])):
            named.add(name)


def heart(mask: np.ndarray) -> tuple[tuple[float, float], float]:
    """The point (x, y) that lies deepest inside a mask (h, w), and how deep that is in pixels."""
    depth = cv2.distanceTransform(
        cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3
    )
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return (column - 0.5, row - 0.5), float(depth[row, column])
