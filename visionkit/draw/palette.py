"""Colours of classes and of instances: the same for the same index, far apart for any eye, calm for stuff.

Distances are taken in OKLab (Ottosson, "A perceptual color space for image processing", 2020), for full colour vision
and for the two common deficiencies (Machado et al., "A physiologically-based model for simulation of color vision
deficiency", 2009, severity 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from visionkit.types import LabelSet

Color = tuple[int, int, int]
"""RGB, 0-255."""

GREY: Color = (128, 128, 128)

# Okabe and Ito's set, which things start with: known to be told apart by everyone, and bright on photographs.
_FIRST_THINGS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (240, 228, 66),
    (0, 114, 178),
)
_TO_LMS = np.array(
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
)
_TO_LAB = np.array(
    (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
)
_PROTAN = np.array(((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)))
_DEUTAN = np.array(((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)))


def class_colors(label_sets: Iterable[LabelSet]) -> dict[str, Color]:
    """A colour for every class name, shared by heads that share the name.

    A label set's own colours come first. Else the n-th thing and the n-th stuff class get the n-th colour of two
    palettes, so that detectors and label maps over the same things agree; ``background`` is grey.
    """
    colors: dict[str, Color] = {}
    counts = {True: 0, False: 0}
    for labels in label_sets:
        for i, (name, thing) in enumerate(zip(labels.names, labels.things)):
            if name in colors:
                continue
            if labels.colors:
                colors[name] = labels.colors[i]
            elif name == "background":
                colors[name] = GREY
            else:
                colors[name] = palette(thing=thing)[counts[thing] % 256]
                counts[thing] += 1
    return colors


@lru_cache
def palette(*, thing: bool) -> tuple[Color, ...]:
    """256 colours, each the one farthest from all before it: vivid for things, muted for stuff."""
    chroma = np.arange(0.12, 0.25, 0.03) if thing else np.arange(0.03, 0.09, 0.025)
    light = np.arange(0.55, 0.86, 0.05) if thing else np.arange(0.58, 0.91, 0.06)
    grid = np.meshgrid(light, chroma, np.linspace(0, 2 * np.pi, 36, endpoint=False), indexing="ij")
    linear = _from_lch(*grid).reshape(-1, 3)
    linear = linear[((linear >= 0) & (linear <= 1)).all(1)]
    first = np.array(_FIRST_THINGS if thing else ((122, 139, 160),)) / 255.0
    linear = np.concatenate((_decode(first), linear))

    full, protan, deutan = _lab(linear), _lab(linear @ _PROTAN.T), _lab(linear @ _DEUTAN.T)
    nearest = np.full(len(linear), np.inf)
    chosen: list[int] = []
    while len(chosen) < 256:
        i = len(chosen) if len(chosen) < len(first) else int(nearest.argmax())
        apart = [np.linalg.norm(view - view[i], axis=1) for view in (full, protan, deutan)]
        nearest = np.minimum(nearest, apart[0] + 0.6 * (apart[1] + apart[2]))
        chosen.append(i)
    return tuple(_rgb(linear[i]) for i in chosen)


def shade(color: Color, index: int, spread: float) -> Color:
    """The colour of the ``index``-th instance of a class: hue within ``spread`` degrees, lightness within 0.28."""
    lab = _lab(_decode(np.array(color) / 255.0))
    # Multiples of the plastic number's inverses fill the (hue, lightness) square evenly, however many there are.
    turn, lift = (index * 0.7548776662) % 1.0, (index * 0.5698402910) % 1.0
    hue = np.arctan2(lab[2], lab[1]) + np.radians(spread) * (turn - 0.5 if index else 0.0)
    light = np.clip(lab[0] + 0.28 * (lift - 0.5 if index else 0.0), 0.4, 0.9)
    return _rgb(_from_lch(light, np.hypot(lab[1], lab[2]), hue))


def text_color(background: Color) -> Color:
    """Black or white, whichever is read more easily on a colour (WCAG relative luminance)."""
    luminance = float(_decode(np.array(background) / 255.0) @ (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def _lab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(np.clip(linear, 0, 1) @ _TO_LMS.T) @ _TO_LAB.T


def _from_lch(light: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    lab = np.stack(np.broadcast_arrays(light, chroma * np.cos(hue), chroma * np.sin(hue)), -1)
    return (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T


def _decode(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _rgb(linear: np.ndarray) -> Color:
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    r, g, b = (srgb * 255).round().astype(int).tolist()
    return r, g, b
