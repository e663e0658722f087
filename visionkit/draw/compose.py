"""All that the heads say of an image, or all that is annotated on it, in one picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from visionkit.draw import canvas as paint
from visionkit.draw.instances import SIDES, join, paint_objects, shown, sides_of, tag_objects, to_drawn
from visionkit.draw.palette import class_colors, palette
from visionkit.draw.panoptic import Map, fill_segments, name_segments, to_map
from visionkit.draw.semantic import enlarge_labels, fill_regions, name_regions
from visionkit.draw.sheet import legend, sheet
from visionkit.draw.shrink import shrink
from visionkit.draw.text import Words
from visionkit.types import (
    BoxPrediction,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    PanopticPrediction,
    PanopticTarget,
    PictureTarget,
    Prediction,
    SemanticPrediction,
    SemanticTarget,
    Target,
)


def draw_prediction(
    image: np.ndarray,
    predictions: Mapping[str, Prediction | Target | None],
    labels: Mapping[str, LabelSet],
    *,
    min_score: float | None = None,
    min_keypoint_score: float | None = None,
    scale: int | None = None,
) -> np.ndarray:
    """One picture of several heads: label maps below, then masks, boxes and keypoints, each object once.

    An image whose longer side is above 2048 pixels is drawn smaller, and predictions of the core with it. A prediction
    that draws itself does so at full size, and the result is scaled down.

    A panoptic segmentation stands for label maps, boxes and masks, which are not drawn beside it; keypoints are.
    A class has the same colour in every head. A kind of prediction that is not the core's own paints itself first, by
    its ``draw``, and so is a target of another kind.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        predictions: by head name, or targets by head name; ``None`` is left out.
        labels: the label set of each of these heads.
        min_score: objects below this are not drawn; ``None``: below what their kind is drawn from.
        min_keypoint_score: keypoints below this are not drawn; ``None`` draws them all.
        scale: how many times larger the picture is than ``image``; ``None`` enlarges small images until names can be
            read.

    Returns:
        (scale H, scale W, 3) uint8 RGB; of a large image, H and W are the smaller size.
    """
    colors = class_colors(labels[head] for head in predictions)
    scale = paint.upscaling(image) if scale is None else scale
    small = paint.bounded(image)
    sizes = image.shape[:2], small.shape[:2]
    regions, groups, canvas = [], [], image
    panoptic: Map | None = None
    for head, item in predictions.items():
        if isinstance(item, SemanticPrediction | SemanticTarget) and _draws_as(item, SemanticPrediction):
            label_map = shrink(item, *sizes).labels.cpu().numpy()
            regions.append((enlarge_labels(label_map, scale), labels[head]))
        elif isinstance(item, BoxPrediction | InstanceTarget) and _draws_as(item, BoxPrediction):
            thresholds = {"min_score": min_score, "min_keypoint_score": min_keypoint_score}
            groups.append(to_drawn(shrink(item, *sizes), labels[head], colors, **thresholds))
        elif isinstance(item, PanopticPrediction | PanopticTarget) and _draws_as(item, PanopticPrediction):
            panoptic = panoptic or to_map(shrink(item, *sizes), labels[head], colors, scale)
        elif isinstance(item, Prediction | Target):
            canvas = _draw_itself(canvas, item, labels[head])

    canvas = paint.enlarge(small if canvas is image else paint.bounded(canvas), scale)
    objects = join(groups)
    if panoptic is not None:
        canvas = fill_segments(canvas, panoptic)
        regions, objects = [], [replace(thing, mask=None) for thing in objects if thing.points is not None]
    for label_map, names in regions:
        canvas = fill_regions(canvas, label_map, names, colors, 0.4 if objects else 0.55)
    paint_objects(canvas, objects, scale)
    words = Words(canvas, paint.text_size(canvas))
    if panoptic is not None:
        name_segments(words, panoptic, leave_out={thing.name for thing in objects})
    for label_map, names in regions:
        name_regions(words, label_map, names, leave_out={thing.name for thing in objects})
    tag_objects(words, objects, scale)
    return canvas


def overlay(
    image: np.ndarray,
    predictions: Mapping[str, Prediction],
    labels: Mapping[str, LabelSet],
    *,
    min_score: float | None = None,
) -> np.ndarray:
    """All predictions in one picture, as :func:`draw_prediction` makes it; those that cover the image have one of their
    own each, beside the image.

    Args:
        image, predictions, labels, min_score: as there.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    apart = [head for head, item in predictions.items() if item.covers] if len(predictions) > 1 else []
    if not apart:
        return draw_prediction(image, predictions, labels, min_score=min_score)
    together = {head: item for head, item in predictions.items() if head not in apart}
    parts = [(", ".join(together), together)] if together else []
    parts += [(head, {head: predictions[head]}) for head in apart]
    tiles = [paint.enlarge(paint.bounded(image), paint.upscaling(image))]
    tiles += [draw_prediction(image, part, labels, min_score=min_score) for _, part in parts]
    return sheet(tiles, min(len(tiles), 4), ["input", *(title for title, _ in parts)])


def _by_core(item: Prediction | Target | None) -> bool:
    """Whether the core draws a prediction, rather than the prediction itself."""
    kinds = (BoxPrediction, SemanticPrediction, PanopticPrediction)
    return any(isinstance(item, kind) and type(item).draw is kind.draw for kind in kinds)


def _draws_as(item: Prediction | Target, kind: type[Prediction]) -> bool:
    """Whether ``item`` leaves its drawing to the core: targets do, and predictions that keep the draw of ``kind``."""
    return isinstance(item, Target) or type(item).draw is kind.draw


def _draw_itself(image: np.ndarray, item: Prediction | Target, labels: LabelSet) -> np.ndarray:
    try:
        drawn = item.draw(image, labels)
    except NotImplementedError as error:
        warnings.warn(str(error), stacklevel=2)
        return image
    if drawn.shape != image.shape or drawn.dtype != np.uint8:
        kind = type(item).__name__
        raise ValueError(f"{kind}.draw returned {drawn.dtype} {drawn.shape} for an image of shape {image.shape}")
    return drawn


def comparison(
    image: np.ndarray,
    targets: Mapping[str, Target | None],
    predictions: Mapping[str, Prediction],
    labels: Mapping[str, LabelSet],
    *,
    min_score: float | None = None,
    min_keypoint_score: float | None = None,
) -> np.ndarray:
    """Input, truth and prediction side by side, with a legend of the classes that are seen.

    Panoptic heads have a row each below the others; so have heads whose predictions are not the core's own, and so
    paint themselves.

    Args:
        image: (H, W, 3) uint8 RGB.
        targets: by head name, in original coordinates and the head's labels; ``None`` where it is not annotated.
        predictions: by head name.
        labels: the label set of each head.
        min_score, min_keypoint_score: as in :func:`draw_prediction`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    plain = paint.enlarge(paint.bounded(image), paint.upscaling(image))
    # These may cover every pixel, so that one picture of all heads would show them alone.
    covering = [h for h, item in predictions.items() if isinstance(item, PanopticPrediction) or not _by_core(item)]
    apart = covering if len(predictions) > 1 else []
    together = [head for head in dict.fromkeys((*targets, *predictions)) if head not in apart]
    tiles, titles = [], []
    for heads in filter(None, (together, *([head] for head in apart))):
        theirs = {head: targets[head] for head in heads if head in targets}
        found = {head: predictions[head] for head in heads if head in predictions}
        truth = draw_prediction(image, theirs, labels)
        if all(target is None for target in theirs.values()):
            truth = (plain * 0.35).astype(np.uint8)
            Words(truth, round(paint.text_size(plain) * 1.4)).name(
                "not annotated", (plain.shape[1] / 2, plain.shape[0] / 2)
            )
        whose = f": {heads[0]}" if heads[0] in apart else ""
        examples = theirs and all(isinstance(t, PictureTarget) and not t.paired for t in theirs.values())
        tiles += [plain, truth]
        tiles.append(draw_prediction(image, found, labels, min_score=min_score, min_keypoint_score=min_keypoint_score))
        titles += ["input", f"{'example' if examples else 'truth'}{whose}", f"prediction{whose}"]
    columns = 1 if plain.shape[1] > 2 * plain.shape[0] else 3
    picture = sheet(tiles, columns, titles)
    sets = {head: labels[head] for head in (*targets, *predictions)}
    seen = _seen(targets, labels) | _seen(predictions, labels, min_score)
    classes = {name: color for name, color in class_colors(sets.values()).items() if name in seen}
    pointed = [sets[h] for items in (targets, predictions) for h, item in items.items() if _has_points(item, min_score)]
    points = {name: palette(thing=True)[i] for s in pointed for i, name in enumerate(s.keypoints)}
    points |= {f"{side} limbs": color for side, color in SIDES.items() if any(side in sides_of(s) for s in pointed)}
    return np.concatenate((picture, legend(classes, picture.shape[1], paint.text_size(plain), dots=points)))


def _seen(
    items: Mapping[str, Prediction | Target | None], labels: Mapping[str, LabelSet], min_score: float | None = None
) -> set[str]:
    """Names of the classes that a picture of these shows."""
    names: set[str] = set()
    for head, item in items.items():
        if isinstance(item, SemanticPrediction | SemanticTarget):
            values = np.unique(item.labels.cpu().numpy())
        elif isinstance(item, BoxPrediction):
            values = item.labels[shown(item, min_score)].unique().tolist()
        elif isinstance(item, InstanceTarget | PanopticPrediction | PanopticTarget):
            values = item.labels.unique().tolist()
        else:
            continue
        names |= {labels[head].names[v] for v in values if v < len(labels[head])}
    return names - {"background"}


def _has_points(item: Prediction | Target | None, min_score: float | None) -> bool:
    if isinstance(item, InstanceTarget):
        return item.keypoints is not None and bool((item.keypoints[..., 2] > 0).any())
    return isinstance(item, KeypointPrediction) and bool(shown(item, min_score).any())
