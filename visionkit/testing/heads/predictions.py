"""Predictions: their type, their coordinates, how they are judged, drawn and written."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from visionkit.testing.case import NAME, SIDES, HeadCase, losses, number, outputs, predictions
from visionkit.testing.compare import alike, difference, tensors
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.types import (
    BoxPrediction,
    ImageInfo,
    KeypointPrediction,
    LabelSet,
    MaskPrediction,
    MixedBatch,
    Prediction,
    SemanticPrediction,
)


def check_predicts_once_an_image_without_targets(case: HeadCase) -> None:
    """`predict` makes one prediction an image, of the class in `makes`, from images without targets."""
    model, batch = case.model().eval(), case.images(3)
    made = predictions(model, batch)
    if len(made) != len(batch):
        raise Broken(f"predict returns {len(made)} predictions for {len(batch)} images")
    for prediction in made:
        if not isinstance(prediction, case.cls.makes):
            raise Broken(f"predict returns a {type(prediction).__name__}; the head declares {case.cls.makes.__name__}")


def check_types_do_not_depend_on_the_mode(case: HeadCase) -> None:
    """In training and in evaluation mode, outputs, losses and predictions are of the same types."""
    model, batch, found = case.model(), case.batch(), []
    for mode in (True, False):
        model.train(mode)
        output = outputs(model, batch)[NAME]
        named = model.head(NAME).losses(output, case.view(batch, targets=True))
        made = predictions(model, batch)
        types = {"forward": type(output), "predict": [type(p) for p in made], "losses": sorted(named)}
        found.append({**types, "fields of the output": _kinds(output), "fields of predictions": _kinds(made)})
    for what in found[0]:
        if found[0][what] != found[1][what]:
            raise Broken(f"{what}: {found[0][what]} in training, {found[1][what]} in evaluation")


def check_mode_is_not_looked_at(case: HeadCase) -> None:
    """With batch norms and dropout held still, outputs, losses and predictions do not follow `self.training`."""
    model, batch, found = case.model().eval(), case.batch(), []
    own = [
        m for m in model.head(NAME).modules() if not type(m).__module__.startswith(("torch.", "torchvision.", "timm."))
    ]
    for mode in (False, True):
        for module in own:
            module.training = mode
        with seeded():
            output = outputs(model, batch)[NAME]
            named = {n: getattr(v, "total", v) for n, v in
                     model.head(NAME).losses(output, case.view(batch, targets=True)).items()}  # fmt: skip
        found.append((tensors(output), named, predictions(model, batch)))
    for what, one, other in zip(("its output", "its losses", "its predictions"), *found):
        if said := difference(one, other):
            raise Broken(f"{what} follow self.training ({said}); losses and predictions are both just asked for")


def check_coordinates_are_those_of_the_original(case: HeadCase) -> None:
    """The same input said to be an original of twice the size gives boxes, points, masks and maps of twice the size."""
    model, batch = case.model().eval(), case.images(2)
    once, twice = (_as_if_shrunk(batch, scale) for scale in (1, 2))
    for info, one, other in zip(twice.info, predictions(model, once), predictions(model, twice)):
        for what, said in _not_doubled(one, other):
            if said:
                raise Broken(f"{what} do not grow with the original ({said}); use batch.info[i].{what}_to_original")
        _assert_size(other, info)


def _as_if_shrunk(batch: MixedBatch, scale: int) -> MixedBatch:
    """The same images, said to be so many times smaller than their originals."""
    affine = (1.0 / scale, 0.0, 0.0, 0.0, 1.0 / scale, 0.0)
    info = [replace(i, original_size=(i.size[0] * scale, i.size[1] * scale), affine=affine) for i in batch.info]
    return replace(batch, info=tuple(info))


def _not_doubled(one: Prediction, other: Prediction) -> Iterator[tuple[str, str]]:
    """What of two predictions is in coordinates that have not doubled, and how it differs."""
    if isinstance(one, BoxPrediction) and isinstance(other, BoxPrediction):
        yield "boxes", difference(one.boxes * 2, other.boxes, rtol=1e-4)
    if isinstance(one, KeypointPrediction) and isinstance(other, KeypointPrediction):
        yield "points", difference(one.keypoints[..., :2] * 2, other.keypoints[..., :2], rtol=1e-4)


def check_values_are_in_range(case: HeadCase) -> None:
    """Boxes lie in the original image, best first, scores in 0 ... 1, labels are those of the head, and no number is
    undefined."""
    for sides in (SIDES, ((33, 96), (96, 33))):
        batch = case.images(2, sides=sides)
        for info, prediction in zip(batch.info, predictions(case.model().eval(), batch)):
            _assert_in_range(prediction, info, case.labels)


def check_truth_is_judged_perfect(case: HeadCase) -> None:
    """Made from the targets, predictions get the best value of each evaluator's first metric (1, 100 or infinity for a
    score, 0 for an error), and with those of another image a different one."""
    if not case.cls.evaluators:
        raise NotApplicable("it names no evaluators")
    truth = _truth(case)
    for name in case.cls.evaluators:
        results = []
        for shift in (0, 1):
            evaluator = case.plugins.load("evaluator", name)(case.source, case.labels)
            made = truth[shift:] + truth[:shift]
            targets, info = [case.target(s) for s in case.samples], [s.info for s in case.samples]
            if shift and any(s.info.original_size != case.samples[0].info.original_size for s in case.samples):
                continue  # a map of another size is no wrong answer, but none
            evaluator.add(made, targets, info)
            results.append(evaluator.result())
        metric, value = next(iter(results[0].items()))
        if value not in (0.0, 100.0) and not math.isinf(value) and abs(value - 1.0) > 1e-6:
            raise Broken(
                f"predictions made from the truth get {metric} {value:.4g} of '{name}', which is no perfect value"
            )
        if len(results) > 1 and results[1][metric] == value and len({repr(t) for t in truth}) > 1:
            raise Broken(f"predictions of other images get {metric} {value:.4g} of '{name}' too")


def check_odd_sizes_work(case: HeadCase) -> None:
    """Images of odd sizes, of which every one is padded, are learnt from and predicted."""
    model, sides = case.model(), ((61, 83), (47, 75))
    named = losses(model, case.batch(sides=sides))
    if bad := [name for name, value in named.items() if not bool(value.isfinite())]:
        raise Broken(f"in images of odd sizes loss '{bad[0]}' is {number(named[bad[0]])}")
    batch = case.images(sides=sides)
    for info, prediction in zip(batch.info, predictions(model.eval(), batch)):
        _assert_size(prediction, info)


def check_an_image_alone_is_its_row_of_a_batch(case: HeadCase) -> None:
    """In evaluation mode, what is said of an image does not depend on the images beside it."""
    model, batch = case.model().eval(), case.images(3, sides=((96, 80),))
    with torch.no_grad():
        output, together = outputs(model, batch)[NAME], predictions(model, batch)
    for row in range(len(batch)):
        one = replace(batch, images=batch.images[row : row + 1], info=batch.info[row : row + 1])
        with torch.no_grad():
            alone = outputs(model, one)[NAME]
        mine, theirs = tensors(output.rows([row], len(batch))), tensors(alone)
        if said := difference(mine, theirs, rtol=1e-3, share=0.99):
            raise Broken(f"the output for an image alone is not that of its row in a batch ({said})")
        if said := alike(together[row], predictions(model, one)[0]):
            raise Broken(f"the prediction for an image alone is not that of its row in a batch ({said})")


def check_predictions_are_drawn(case: HeadCase) -> None:
    """`draw` returns an overlay of the size of the image, (H, W, 3) uint8, and leaves the image as it is."""
    for prediction, info in _shown(case):
        image = np.full((*info.original_size, 3), 128, np.uint8)
        drawn = prediction.draw(image, case.labels)
        if not isinstance(drawn, np.ndarray) or drawn.shape != image.shape or drawn.dtype != np.uint8:
            shown = f"{drawn.dtype} {drawn.shape}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
            raise Broken(f"draw returns {shown} for an image uint8 {image.shape}")
        if bool((image != 128).any()):
            raise Broken("draw changes the image that it is given; draw on a copy")


def check_predictions_are_written(case: HeadCase) -> None:
    """`to_coco` gives records that JSON can hold, and `files` pictures that PNG can hold."""
    for prediction, info in _shown(case):
        for record in prediction.to_coco(info.id, case.labels):
            if record.get("image_id") != info.id:
                raise Broken(f"a record of to_coco has the image_id {record.get('image_id')!r}, not {info.id!r}")
            try:
                json.dumps(record)
            except (TypeError, ValueError) as error:
                raise Broken(f"to_coco gives a record that JSON cannot hold: {error}") from error
        for name, picture in prediction.files().items():
            if not isinstance(picture, np.ndarray) or picture.dtype not in (np.uint8, np.uint16):
                kind = picture.dtype if isinstance(picture, np.ndarray) else type(picture).__name__
                raise Broken(f"picture '{name}' of files is {kind}; a PNG holds arrays of uint8 or uint16")
            if not cv2.imencode(".png", picture)[0]:
                raise Broken(f"picture '{name}' of files, of shape {picture.shape}, cannot be written as PNG")


def _shown(case: HeadCase) -> list[tuple[Prediction, ImageInfo]]:
    """Predictions of a new head, and where they can be made those of a perfect one."""
    batch = case.images(2)
    found = list(zip(predictions(case.model().eval(), batch), batch.info))
    with contextlib.suppress(NotApplicable):
        found += list(zip(_truth(case), (sample.info for sample in case.samples)))
    return found


def _truth(case: HeadCase) -> list[Prediction]:
    made = case.cls.makes
    if made.from_target.__func__ is Prediction.from_target.__func__:  # type: ignore[attr-defined]
        raise NotApplicable(f"a {made.__name__} cannot be made from a target: it has no from_target")
    return [made.from_target(case.target(s), s.info, case.labels) for s in case.samples]


def _assert_in_range(prediction: Prediction, info: ImageInfo, labels: LabelSet) -> None:
    for path, value in tensors(prediction).items():
        if value.is_floating_point() and bool(value.isnan().any()):
            raise Broken(f"'{path}' of a {type(prediction).__name__} holds numbers that are not finite")
    if isinstance(prediction, BoxPrediction):
        height, width = info.original_size
        boxes, scores = prediction.boxes, prediction.scores
        if len(boxes) and bool((boxes < -0.01).any() | (boxes > boxes.new_tensor((width, height) * 2) + 0.01).any()):
            raise Broken(f"boxes reach from {float(boxes.min()):.1f} to {float(boxes.max()):.1f}, beyond their "
                         f"image of {height} x {width} pixels; use batch.info[i].boxes_to_original")  # fmt: skip
        if bool((boxes[:, 2:] < boxes[:, :2]).any()):
            raise Broken("boxes must be left, top, right, bottom; some have their right or bottom first")
        if bool((scores < 0).any() | (scores > 1).any()):
            raise Broken(
                f"scores reach from {float(scores.min()):.3g} to {float(scores.max()):.3g}, not within 0 ... 1"
            )
        if bool((scores.diff() > 0).any()):
            raise Broken("boxes must come best first; their scores are not in order")
    assert_labels(prediction, labels)


def assert_labels(prediction: Prediction, labels: LabelSet) -> None:
    """Labels of boxes and pixels are those of the label set."""
    if isinstance(prediction, BoxPrediction | SemanticPrediction) and prediction.labels.numel():
        low, high = int(prediction.labels.min()), int(prediction.labels.max())
        if low < 0 or high >= len(labels):
            raise Broken(f"labels reach from {low} to {high}; the head has the labels 0 to {len(labels) - 1}")


def _assert_size(prediction: Prediction, info: ImageInfo) -> None:
    """Whatever of a prediction is a picture of what is where is of the size of the original."""
    files = prediction.files() if prediction.located else {}
    shapes = {f"the picture '{name}' of files": value.shape[:2] for name, value in files.items()}
    if isinstance(prediction, SemanticPrediction):
        shapes["a label map"] = tuple(prediction.labels.shape)
    if isinstance(prediction, MaskPrediction):
        shapes |= {f"mask {number}": tuple(rle["size"]) for number, rle in enumerate(prediction.rles)}
    for what, shape in shapes.items():
        if tuple(shape) != tuple(info.original_size):
            raise Broken(f"{what} has {shape[0]} x {shape[1]} pixels, the original image "
                         f"{info.original_size[0]} x {info.original_size[1]}")  # fmt: skip


def _kinds(value: Any) -> dict[str, Any]:
    """Types of tensors by path, without what depends on how many objects there are."""
    return {path.partition("[")[0]: (type(leaf).__name__, leaf.dtype) for path, leaf in tensors(value).items()}


CHECKS = (
    check_predicts_once_an_image_without_targets,
    check_types_do_not_depend_on_the_mode,
    check_mode_is_not_looked_at,
    check_coordinates_are_those_of_the_original,
    check_values_are_in_range,
    check_truth_is_judged_perfect,
    check_odd_sizes_work,
    check_an_image_alone_is_its_row_of_a_batch,
    check_predictions_are_drawn,
    check_predictions_are_written,
)
