"""Drawn scenes: a landscape of textured regions, and shapes and little robots in it that hide one another.

All that is random follows from the generator that is passed in; the pictures are in RGB.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from visionkit import rle

THINGS = ("circle", "square", "triangle", "star", "robot")
STUFF = ("sky", "grass", "water", "sand")
COLORS = {
    "circle": (230, 60, 60), "square": (240, 140, 40), "triangle": (160, 80, 230), "star": (250, 220, 50),
    "robot": (50, 190, 180), "sky": (140, 190, 240), "grass": (95, 160, 70), "water": (45, 100, 170),
    "sand": (222, 196, 140),
}  # fmt: skip
KEYPOINTS = ("head", "body", "left_hand", "right_hand", "left_foot", "right_foot")
SKELETON = ((0, 1), (1, 2), (1, 3), (1, 4), (1, 5))
FIRST_OBJECT = 16  # segment numbers: 1 + index for stuff, from here on objects
_FINE = 4  # bits behind the point in the coordinates that OpenCV draws


@dataclass
class Thing:
    """One object of a scene.

    Attributes:
        segment: its number in :attr:`Scene.segments`.
        kind: class name.
        total: pixels that it covered when it was drawn, hidden ones included.
        polygon: (N, 2) its outline, if it is one polygon and wholly inside the image.
        keypoints: (6, 2) in pixels, of a robot.
        crowd: many objects that were not told apart.
    """

    segment: int
    kind: str
    total: int
    polygon: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    crowd: bool = False


@dataclass
class Scene:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        segments: (H, W) uint8; what each pixel shows: 1 + index into ``STUFF``, or the number of a thing.
        things: in the order in which they were drawn, the nearest last.
    """

    image: np.ndarray
    segments: np.ndarray
    things: list[Thing] = field(default_factory=list)


def draw_scene(rng: np.random.Generator, height: int, width: int, most: int = 8) -> Scene:
    """A scene of 2 ... ``most`` objects, large and small."""
    image, stuff = _landscape(rng, height, width)
    scene = Scene(image, stuff)
    if rng.random() < 0.08:
        _draw_crowd(rng, scene)
    # Large things mostly come first, or the small ones would be hidden; not always, or size would tell depth.
    sizes = np.exp(rng.uniform(math.log(0.07), math.log(0.27), int(rng.integers(2, most + 1)))) * min(height, width)
    for radius in sorted(sizes, key=lambda r: r * rng.uniform(0.5, 1.5), reverse=True):
        for _ in range(4):  # a place where it hides nothing altogether
            if _draw_thing(rng, scene, float(radius)):
                break
    return scene


def _draw_thing(rng: np.random.Generator, scene: Scene, radius: float) -> bool:
    height, width = scene.segments.shape
    kind = THINGS[rng.choice(len(THINGS), p=(0.18, 0.18, 0.18, 0.16, 0.3))]
    if kind == "robot":
        radius = max(radius * 1.25, 0.13 * min(height, width))  # a robot is thin: the smallest could not be read
    low = 0.25 * height if kind == "robot" else 0.0  # robots do not fly
    center = np.array((rng.uniform(0.05, 0.95) * width, rng.uniform(low, 0.97 * height)))
    canvas = scene.image.copy()
    if kind == "robot":
        mask, keypoints = _draw_robot(rng, canvas, center, radius)
        thing = Thing(0, kind, 0, keypoints=keypoints)
    else:
        outline = np.round(center + radius * _rotate(_OUTLINES[kind], rng.uniform(-math.pi, math.pi)), 2)
        mask = _draw_shape(rng, canvas, kind, center, outline, radius)
        inside = (outline >= 0).all() and (outline < (width, height)).all()
        thing = Thing(0, kind, 0, polygon=outline if inside else None)
    return _keep(scene, thing, canvas, mask)


def _keep(scene: Scene, thing: Thing, canvas: np.ndarray, mask: np.ndarray) -> bool:
    """Take the drawing over if enough of it, and of all things behind it, is still to be seen."""
    thing.total = int(np.count_nonzero(mask))
    if thing.total < 24 or len(scene.things) + FIRST_OBJECT > 254:
        return False
    left = np.bincount(scene.segments[~mask], minlength=256)
    if any(left[other.segment] < max(0.45 * other.total, 24) for other in scene.things):
        return False
    thing.segment = FIRST_OBJECT + len(scene.things)
    scene.things.append(thing)
    scene.image = canvas
    scene.segments[mask] = thing.segment
    return True


# -- things ---------------------------------------------------------------------------------------------------------


def _ring(corners: int, *radii: float) -> np.ndarray:
    """Corners (N, 2) around the origin, at these distances in turn."""
    angle = 2 * math.pi * np.arange(corners) / corners - math.pi / 2
    return np.stack((np.cos(angle), np.sin(angle)), 1) * np.resize(radii, corners)[:, None]


_OUTLINES = {
    "circle": _ring(40, 1.0),
    "square": _ring(4, 1.2),
    "triangle": _ring(3, 1.25),
    "star": _ring(10, 1.25, 0.55),
}


def _rotate(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return points @ np.array(((c, s), (-s, c)))


def _fixed(points: np.ndarray) -> np.ndarray:
    # OpenCV's pixel centres lie at whole numbers, ours at halves.
    return np.round((points - 0.5) * (1 << _FINE)).astype(np.int32)


def _vivid(rng: np.random.Generator, kind: str) -> np.ndarray:
    """A bright colour, as (3,) float32: mostly one that is typical of the kind, as apples are red, but any at all
    in a fifth of cases, so that shape has to be learnt too."""
    typical = colorsys.rgb_to_hsv(*(v / 255 for v in COLORS[kind]))[0] + rng.normal(0, 0.02)
    hue = typical if rng.random() < 0.8 else rng.uniform()
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.65, 0.95), rng.uniform(0.75, 1.0)), np.float32) * 255


def _draw_shape(
    rng: np.random.Generator, canvas: np.ndarray, kind: str, center: np.ndarray, outline: np.ndarray, radius: float
) -> np.ndarray:
    """Draw a filled outline with an edge and a shadow; returns the pixels (H, W) bool that COCO counts inside it."""
    height, width = canvas.shape[:2]
    stroke = max(1, round(radius / 14))
    mask = rle.decode(rle.from_polygons([outline.ravel().tolist()], height, width)).astype(bool)
    # OpenCV fills half a pixel, and the edge half its width, beyond the line that they are given.
    outline = center + (outline - center) * (1 - (0.5 + stroke / 2) / radius)
    alpha = np.zeros((height, width), np.uint8)
    cv2.fillPoly(alpha, [_fixed(outline)], 255, cv2.LINE_AA, _FINE)
    _shade(canvas, alpha, radius)
    x, y, w, h = cv2.boundingRect(alpha)
    if w == 0 or h == 0:
        return mask
    patch, weight = canvas[y : y + h, x : x + w], alpha[y : y + h, x : x + w, None].astype(np.float32) / 255
    fill = _fill(rng, kind, h, w)
    canvas[y : y + h, x : x + w] = patch + (fill - patch) * weight
    edge = tuple(int(v) for v in fill.mean((0, 1)) * 0.45)
    cv2.polylines(canvas, [_fixed(outline)], True, edge, stroke, cv2.LINE_AA, _FINE)
    return mask


def _fill(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """A solid, shaded, speckled or striped surface (H, W, 3) float32."""
    color = _vivid(rng, kind)
    style = rng.choice(("solid", "shaded", "speckled", "striped"), p=(0.25, 0.4, 0.15, 0.2))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    if style == "solid":
        return np.broadcast_to(color, (height, width, 3)).copy()
    angle = rng.uniform(0, 2 * math.pi)
    along = (x * math.cos(angle) + y * math.sin(angle)) / max(height, width)
    if style == "shaded":
        light = 1.15 - 0.55 * (along - along.min())
    elif style == "speckled":
        light = 0.8 + 0.4 * rng.random((height, width), dtype=np.float32)
    else:
        light = 0.9 + 0.25 * np.tanh(4 * np.sin(along * rng.uniform(14, 24)))
    return np.clip(color * light[..., None], 0, 255)


def _shade(canvas: np.ndarray, alpha: np.ndarray, radius: float) -> None:
    """A soft shadow, a little below and to the right of what ``alpha`` covers."""
    step = max(1, round(radius * 0.12))
    x, y, w, h = cv2.boundingRect(alpha)
    left, top = max(0, x - 2 * step), max(0, y - 2 * step)
    right, bottom = min(alpha.shape[1], x + w + 4 * step), min(alpha.shape[0], y + h + 4 * step)
    if right <= left or bottom <= top:
        return
    part = alpha[top:bottom, left:right]
    move = np.array(((1, 0, step), (0, 1, step)), np.float32)
    shadow = cv2.blur(cv2.warpAffine(part, move, part.shape[::-1]), (2 * step + 1, 2 * step + 1))
    patch = canvas[top:bottom, left:right]
    patch[:] = patch * (1 - shadow[..., None].astype(np.float32) * (0.35 / 255))


def _draw_crowd(rng: np.random.Generator, scene: Scene) -> None:
    """A heap of little circles that nobody told apart."""
    height, width = scene.segments.shape
    canvas, mask = scene.image.copy(), np.zeros(scene.segments.shape, bool)
    middle = np.array((rng.uniform(0.2, 0.8) * width, rng.uniform(0.3, 0.9) * height))
    radius = 0.035 * min(height, width)
    for _ in range(int(rng.integers(12, 24))):
        spot = middle + rng.normal(size=2) * radius * (3.2, 1.8)
        mask |= _draw_shape(
            rng, canvas, "circle", spot, spot + radius * _OUTLINES["circle"] * rng.uniform(0.8, 1.2), radius
        )
    _keep(scene, Thing(0, "circle", 0, crowd=True), canvas, mask)


def _draw_robot(
    rng: np.random.Generator, canvas: np.ndarray, center: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a robot that faces us, arms and legs at random; returns its pixels (H, W) bool and keypoints (6, 2).

    Left and right are its own, as in COCO: its left hand is to the right in the image.
    """
    pose = _robot_pose(rng)
    tilt = rng.uniform(-0.35, 0.35)
    at = {name: center + radius * _rotate(np.asarray(points, np.float64), tilt) for name, points in pose.items()}
    metal, paint = np.array((1.0, 1.03, 1.08)) * rng.uniform(110, 190), _vivid(rng, "robot")
    dark, light = metal * 0.55, np.minimum(metal * 1.25, 255)
    alpha = np.zeros(canvas.shape[:2], np.uint8)
    limb = max(2, round(radius * 0.17))

    def line(name: str, color: np.ndarray, thickness: int) -> None:
        for target, ink in ((alpha, (255,)), (canvas, tuple(color.tolist()))):
            cv2.polylines(target, [_fixed(at[name])], False, ink, thickness, cv2.LINE_AA, _FINE)

    def solid(name: str, color: np.ndarray) -> None:
        for target, ink in ((alpha, (255,)), (canvas, tuple(color.tolist()))):
            cv2.fillPoly(target, [_fixed(at[name])], ink, cv2.LINE_AA, _FINE)

    def disc(point: np.ndarray, size: float, color: np.ndarray, covers: bool = True) -> None:
        for target, ink in ((alpha, (255,)), (canvas, tuple(color.tolist())))[0 if covers else 1 :]:
            place = tuple(int(v) for v in _fixed(point))
            cv2.circle(target, place, round(size * radius * (1 << _FINE)), ink, -1, cv2.LINE_AA, _FINE)

    for side in ("left", "right"):
        line(f"{side}_leg", dark, limb)
        line(f"{side}_arm", metal, limb)
    solid("torso", paint)
    line("antenna", dark, max(1, limb // 2))
    solid("face", light)
    disc(at["antenna"][1], 0.09, paint)
    for side in ("left", "right"):
        disc(at[f"{side}_arm"][-1], 0.14, light)
        disc(at[f"{side}_leg"][-1], 0.15, paint * 0.6)
    for eye in at["eyes"]:
        disc(eye, 0.075, np.array((25.0, 30.0, 40.0)), covers=False)
    points = [at["head"], at["body"], at["left_arm"][-1], at["right_arm"][-1], at["left_leg"][-1], at["right_leg"][-1]]
    return alpha > 127, np.array(points)


def _robot_pose(rng: np.random.Generator) -> dict[str, object]:
    """Joints of a robot of height 2 around the origin, y down."""
    pose: dict[str, object] = {
        "head": (0.0, -0.72),
        "body": (0.0, -0.1),
        "face": ((-0.3, -0.95), (0.3, -0.95), (0.3, -0.5), (-0.3, -0.5)),
        "eyes": ((-0.13, -0.74), (0.13, -0.74)),
        "antenna": ((0.0, -0.95), (0.0, -1.2)),
        "torso": ((-0.34, -0.44), (0.34, -0.44), (0.28, 0.28), (-0.28, 0.28)),
    }
    for side, sign in (("left", 1), ("right", -1)):
        raised, bend, stride = rng.uniform(0.25, 2.6), rng.uniform(-0.7, 0.7), rng.uniform(-0.05, 0.45)
        shoulder = np.array((sign * 0.34, -0.34))
        elbow = shoulder + 0.38 * np.array((sign * math.sin(raised), math.cos(raised)))
        hand = elbow + 0.36 * np.array((sign * math.sin(raised + bend), math.cos(raised + bend)))
        hip = np.array((sign * 0.17, 0.25))
        pose[f"{side}_arm"] = (shoulder, elbow, hand)
        pose[f"{side}_leg"] = (hip, hip + 0.7 * np.array((sign * math.sin(stride), math.cos(stride))))
    return pose


# -- the land -------------------------------------------------------------------------------------------------------


def _landscape(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky over one to three bands of ground: the picture (H, W, 3) uint8 and the segments (H, W) uint8."""
    grounds = list(rng.permutation(STUFF[1:])[: rng.integers(1, 4)])
    image = _sky(rng, height, width)
    segments = np.full((height, width), 1 + STUFF.index("sky"), np.uint8)
    row = np.arange(height, dtype=np.float32)[:, None]
    top = rng.uniform(0.25, 0.5)
    for ground in grounds:
        below = row >= top * height + _waves(rng, width) * height * 0.03
        texture = _GROUNDS[ground](rng, height, width)
        np.copyto(image, texture, where=below[..., None])
        segments[below] = 1 + STUFF.index(ground)
        top += rng.uniform(0.6, 1.2) * (1 - top) / len(grounds)
    return np.clip(image, 0, 255).astype(np.uint8), segments


def _waves(rng: np.random.Generator, width: int) -> np.ndarray:
    x = np.linspace(0, 2 * math.pi, width, dtype=np.float32)
    return sum(a * np.sin(f * x + p) for f, a, p in zip(rng.uniform(0.5, 4, 3), (1.0, 0.6, 0.4), rng.uniform(0, 6, 3)))


def _noise(rng: np.random.Generator, height: int, width: int, rows: float, columns: float) -> np.ndarray:
    """Smooth noise (H, W) float32 about 0 ... 1, with so many pixels between its values down and across."""
    small = rng.random((max(2, round(height / rows)), max(2, round(width / columns))), dtype=np.float32)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def _ramp(height: int, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    t = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    return (1 - t) * top.astype(np.float32) + t * bottom.astype(np.float32)


def _sky(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    if rng.random() < 0.25:  # evening
        top, bottom = np.array((105, 115, 190)), np.array((255, 190, 140))
    else:
        top, bottom = np.array((85, 150, 235)) + rng.uniform(-20, 20), np.array((215, 235, 252))
    unit = min(height, width)
    sky = np.broadcast_to(_ramp(height, top, bottom * 1.0), (height, width, 3))
    coarse, fine = (_noise(rng, height, width, unit / rows, unit / columns) for rows, columns in ((9, 4), (22, 12)))
    cloud = 0.65 * coarse + 0.35 * fine
    weight = np.clip((cloud - 0.52) * 4, 0, 0.85)[..., None]
    return sky + (np.array((252, 252, 255), np.float32) - sky) * weight


def _grass(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = _ramp(height, np.array((112, 165, 80)), np.array((62, 128, 48)))
    patches = _noise(rng, height, width, height / 8, width / 6)
    blades = _noise(rng, height, width, 5, 1.6)
    return base * (0.72 + 0.3 * patches + 0.3 * blades)[..., None]


def _water(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = _ramp(height, np.array((110, 170, 205)), np.array((18, 70, 140)))
    y = np.arange(height, dtype=np.float32)[:, None]
    ripples = np.sin(y * rng.uniform(0.7, 1.0) * 160 / height + 7 * _noise(rng, height, width, height / 14, width / 5))
    return base * (1 + 0.13 * ripples)[..., None]


def _sand(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    base = _ramp(height, np.array((236, 214, 164)), np.array((205, 172, 112)))
    dunes = _noise(rng, height, width, height / 10, width / 3)
    grain = rng.random((height, width), dtype=np.float32)
    return base * (0.84 + 0.16 * dunes + 0.14 * grain)[..., None]


_GROUNDS = {"grass": _grass, "water": _water, "sand": _sand}
