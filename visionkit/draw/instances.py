"""Pictures of objects: boxes, masks, keypoints and names, of predictions and of truth alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from visionkit.draw import canvas as paint
from visionkit.draw.palette import Color, class_colors, palette, shade
from visionkit.draw.text import Words
from visionkit.types import BoxPrediction, InstanceMasks, InstanceTarget, KeypointPrediction, LabelSet, MaskPrediction

HIDDEN, VISIBLE = 1, 2
SIDES: dict[str, Color] = {"left": (240, 228, 66), "right": (213, 94, 0)}
"""Colours of the limbs of one side: of Okabe and Ito's set, told apart by everyone."""
MANY = 12
"""Objects on a picture, beyond which not every one is written upon."""


@dataclass(frozen=True)
class Crop:
    """A mask cut to what it covers: ``bitmap`` (h, w) uint8 of 0 and 1 at pixel (``left``, ``top``)."""

    left: int
    top: int
    bitmap: np.ndarray


@dataclass(frozen=True)
class Drawn:
    """One object as it is drawn, whatever it comes from.

    Attributes:
        name: of its class.
        color: of its class.
        box: left, top, right, bottom in pixels of the image.
        score: ``None`` for truth.
        crowd: a box that covers many objects.
        mask: where there is one.
        points: (K, 3) of x, y and 0 (not drawn), ``HIDDEN`` or ``VISIBLE``, where there are keypoints.
        limbs: pairs of keypoint indices.
        sides: of each keypoint, ``"left"``, ``"right"`` or ``""``.
        spread: degrees of hue that the instances of its class are spread over.
    """

    name: str
    color: Color
    box: tuple[float, float, float, float]
    score: float | None = None
    crowd: bool = False
    mask: Crop | None = None
    points: np.ndarray | None = None
    limbs: tuple[tuple[int, int], ...] = ()
    sides: tuple[str, ...] = ()
    spread: float = 30.0


def draw_instances(
    image: np.ndarray,
    instances: BoxPrediction | InstanceTarget,
    labels: LabelSet,
    *,
    min_score: float | None = None,
    min_keypoint_score: float | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Boxes, with masks and keypoints where there are any, over an image.

    Objects of one class have shades of its colour. Truth shows crowds hatched and dashed, hidden keypoints hollow.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        instances: in pixels of ``image``.
        labels: names of the classes, and the skeleton.
        min_score: predictions below this are not drawn, see :func:`shown`.
        min_keypoint_score: keypoints below this are not drawn; ``None`` draws them all.
        scale: how many times larger the picture is than ``image``.

    Returns:
        (scale H, scale W, 3) uint8 RGB.
    """
    objects = to_drawn(
        instances, labels, class_colors([labels]), min_score=min_score, min_keypoint_score=min_keypoint_score
    )
    canvas = paint.enlarge(image, scale)
    paint_objects(canvas, objects, scale)
    tag_objects(Words(canvas, paint.text_size(canvas)), objects, scale)
    return canvas


def shown(prediction: BoxPrediction, min_score: float | None) -> Tensor:
    """Which of the objects (n,) are drawn: those that score ``min_score``; ``None``: what its kind is drawn from."""
    return prediction.scores >= (prediction.drawn_from if min_score is None else min_score)


def to_drawn(
    instances: BoxPrediction | InstanceTarget,
    labels: LabelSet,
    colors: Mapping[str, Color],
    *,
    min_score: float | None = None,
    min_keypoint_score: float | None = None,
) -> list[Drawn]:
    """The objects of a prediction (best first) or target (largest first) that are to be drawn."""
    boxes, classes = instances.boxes.double().tolist(), instances.labels.tolist()
    scores: list[float | None] = [None] * len(boxes)
    crowd = [False] * len(boxes)
    if isinstance(instances, InstanceTarget):
        crowd = instances.crowd.tolist()
        order = instances.areas.argsort(descending=True, stable=True).tolist()
    else:
        scores = instances.scores.double().tolist()
        seen = shown(instances, min_score).tolist()
        order = [i for i in instances.scores.argsort(descending=True, stable=True).tolist() if seen[i]]
    spread = float(np.clip(240 / len(labels), 45, 100))
    return [
        Drawn(
            name=labels.names[classes[i]],
            color=colors[labels.names[classes[i]]],
            box=tuple(boxes[i]),
            score=scores[i],
            crowd=crowd[i],
            mask=mask,
            points=_points(instances, i, min_keypoint_score),
            limbs=labels.skeleton,
            sides=sides_of(labels),
            spread=spread,
        )
        for i, mask in zip(order, _masks(instances, order))
    ]


def sides_of(labels: LabelSet) -> tuple[str, ...]:
    """The side of each keypoint: what its name says, where another keypoint is its mirror image; else none."""
    paired = {i for pair in labels.swaps for i in pair}
    return tuple(
        next((side for side in SIDES if i in paired and side in name.lower()), "")
        for i, name in enumerate(labels.keypoints)
    )


def _masks(instances: BoxPrediction | InstanceTarget, rows: Sequence[int]) -> list[Crop | None]:
    """The mask of each of these objects; ``None`` for an object that has no mask or no pixel."""
    if isinstance(instances, MaskPrediction) and rows:
        masks = InstanceMasks.from_rles([instances.rles[row] for row in rows], instances.rles[0]["size"])
    elif isinstance(instances, InstanceTarget) and instances.masks is not None:
        masks = instances.masks.select(torch.tensor(rows, dtype=torch.int64))
    else:
        return [None] * len(rows)
    return [
        Crop(left, top, crop.cpu().numpy()) if crop.numel() else None
        for crop, (left, top, _, _) in zip(masks.crops(), masks.windows.tolist())
    ]


def _points(instances: BoxPrediction | InstanceTarget, i: int, min_score: float | None) -> np.ndarray | None:
    if isinstance(instances, KeypointPrediction):
        points = instances.keypoints[i].double().cpu().numpy().copy()
        points[:, 2] = VISIBLE if min_score is None else np.where(points[:, 2] >= min_score, VISIBLE, 0)
        return points
    if isinstance(instances, InstanceTarget) and instances.keypoints is not None:
        return instances.keypoints[i].double().cpu().numpy()
    return None


def join(groups: Sequence[Sequence[Drawn]]) -> list[Drawn]:
    """The objects of several heads as one list: what is the same box of the same class to two heads is drawn once.

    Two boxes are the same if they overlap by 0.9 (intersection over union); the mask and the keypoints are those of the
    first that has any.
    """
    joined: list[Drawn] = []
    for group in groups:
        known = len(joined)  # objects of one head are never joined with one another
        for new in group:
            same = [i for i in range(known) if joined[i].name == new.name and _iou(joined[i].box, new.box) >= 0.9]
            if not same:
                joined.append(new)
                continue
            old = joined[same[0]]
            points = old.points if old.points is not None else new.points
            mask = old.mask if old.mask is not None else new.mask
            limbs, sides = old.limbs or new.limbs, old.sides or new.sides
            joined[same[0]] = replace(
                old, mask=mask, points=points, limbs=limbs, sides=sides, crowd=old.crowd or new.crowd
            )
    return joined


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0.0) * max(h, 0.0)
    total = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / total if total > 0 else 0.0


def paint_objects(canvas: np.ndarray, objects: Sequence[Drawn], scale: int = 1) -> None:
    """Paint objects onto ``canvas`` in place, whose pixels are ``scale`` times smaller than theirs."""
    shades = _shades(objects)
    by_size = sorted(range(len(objects)), key=lambda i: -_area(objects[i].box))  # small ones on top of large ones
    for i in by_size:
        if objects[i].mask is not None:
            _paint_mask(canvas, objects[i], shades[i], scale)
    for i in by_size:
        if objects[i].mask is None or objects[i].crowd or not _dense(objects):
            _paint_box(canvas, objects[i], shades[i], scale)
    for i in by_size:
        if objects[i].points is not None:
            _paint_skeleton(canvas, objects[i], shades[i], scale)


def tag_objects(words: Words, objects: Sequence[Drawn], scale: int = 1) -> None:
    """Write names and scores at objects whose pixels are ``scale`` times larger than the picture's."""
    many, dense, named = len(objects) > MANY, _dense(objects), set()
    for thing, color in zip(objects, _shades(objects)):
        # Where there are many, a name on each small one would hide more than it tells: one of each class is enough.
        needed = (60 if dense else 12 if thing.name in named else 3) * words.size**2
        text, box = _caption(thing, named=not dense), [v * scale for v in thing.box]
        if text and (not many or thing.crowd or _area(box) >= needed) and words.tag(text, box, color):
            named.add(thing.name)


def _dense(objects: Sequence[Drawn]) -> bool:
    """Whether there are many and all of one class."""
    return len(objects) > MANY and len({thing.name for thing in objects}) == 1


def _shades(objects: Sequence[Drawn]) -> list[Color]:
    counts: dict[str, int] = {}
    shades: list[Color] = []
    for thing in objects:
        counts[thing.name] = counts.get(thing.name, -1) + 1
        own = thing.mask is not None or thing.points is not None  # bare boxes keep the plain colour of their class
        shades.append(shade(thing.color, counts[thing.name], thing.spread) if own else thing.color)
    return shades


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _caption(thing: Drawn, *, named: bool) -> str:
    words = [thing.name] if named else []
    words += ["(crowd)"] if thing.crowd else []
    words += [f"{thing.score:.2f}"] if thing.score is not None else []
    return " ".join(words)


def _paint_mask(canvas: np.ndarray, thing: Drawn, color: Color, scale: int) -> None:
    """A translucent fill and an edge, neither of them outside the mask; a crowd is hatched."""
    assert thing.mask is not None
    bitmap = cv2.copyMakeBorder(thing.mask.bitmap, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cover: np.ndarray = bitmap.astype(np.float32)
    if scale > 1:
        smooth = cv2.resize(cover, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        smooth = cv2.GaussianBlur(smooth, (0, 0), 0.5 * scale)
        cover = np.clip((smooth - 0.5) * scale + 0.5, 0, 1)  # the edge is one pixel of the picture wide
    width = max(1, round(1.6 * paint.unit(canvas)))
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    inner = cv2.erode(cover, brush, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inner, cover = (m[scale : len(m) - scale, scale : m.shape[1] - scale] for m in (inner, cover))

    corner = thing.mask.top * scale, thing.mask.left * scale
    fill: np.ndarray | float = 0.42
    if thing.crowd:
        fill = 0.12 + 0.6 * paint.stripes(corner, cover.shape, 10 * paint.unit(canvas))
    patch = canvas[corner[0] : corner[0] + len(cover), corner[1] : corner[1] + cover.shape[1]]
    paint.blend(patch, color, 0.95 * cover - (0.95 - fill) * inner)  # full colour on the edge, less inside


def _paint_box(canvas: np.ndarray, thing: Drawn, color: Color, scale: int) -> None:
    width = max(1, round((1.0 if thing.mask is not None else 2.0) * paint.unit(canvas)))
    dash = 7 * paint.unit(canvas) if thing.crowd else 0.0
    paint.rectangle(canvas, (v * scale for v in thing.box), color, width, dash=dash)


def _paint_skeleton(canvas: np.ndarray, thing: Drawn, color: Color, scale: int) -> None:
    """Limbs in the colour of their side, those in the middle in the object's shade, keypoints in a colour each; what is
    hidden is dashed and hollow. On a small object keypoints are no larger than limbs, and have their colours."""
    assert thing.points is not None
    u = paint.unit(canvas)
    states = thing.points[:, 2]
    xy = thing.points[:, :2] * scale
    roomy = np.sqrt(_area(thing.box)) * scale / 30  # a dot of this radius does not cover its neighbours
    small = roomy < 2.0 * u
    radius = float(np.clip(roomy, 1.0 * u, 4.2 * u))
    width = max(1, round(min(2.4 * u, radius if not small else 1.4 * radius)))
    rim = 1 if small else 1.2 * u
    limbs = [(a, b) for a, b in thing.limbs if states[a] > 0 and states[b] > 0]
    for below in (True, False):  # a dark rim under all limbs keeps them visible on any ground
        for a, b in limbs:
            dash = max(4 * u, 3 * width) if HIDDEN in (states[a], states[b]) and not small else 0.0
            own = (20, 20, 20) if below else _side_color(thing, (a, b), color)
            paint.line(canvas, xy[a], xy[b], own, width + 2 * below, dash=dash)
    for i in np.flatnonzero(states > 0).tolist():
        own = _side_color(thing, (i,), color) if small else palette(thing=True)[i % 256]
        paint.dot(canvas, xy[i], radius + rim, (20, 20, 20))
        paint.dot(canvas, xy[i], radius, own)
        if states[i] == HIDDEN:
            paint.dot(canvas, xy[i], radius * 0.55, (255, 255, 255))


def _side_color(thing: Drawn, keypoints: Sequence[int], middle: Color) -> Color:
    """The colour of the side on which all of these keypoints lie, leaving out those in the middle."""
    sides = {thing.sides[i] for i in keypoints if thing.sides and thing.sides[i]}
    return SIDES[sides.pop()] if len(sides) == 1 else middle
