"""Semantic segmentation: intersection over union and accuracy from one confusion matrix of the whole set."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from visionkit.data.base import Source
from visionkit.errors import DataError
from visionkit.evaluate.base import Evaluator
from visionkit.numbers import Count
from visionkit.types import IGNORE, ImageInfo, LabelSet, Prediction, SemanticPrediction, SemanticTarget, Target


class SemanticEvaluator(Evaluator):
    """mIoU, pixel_accuracy and mean_accuracy, as fractions.

    Pixels are counted over the whole set before anything is divided (Long et al., Fully Convolutional Networks, 2015,
    section 5). mIoU is the mean over the classes that occur in the truth or in a prediction, mean_accuracy over those
    in the truth. A metric for which there is not a single pixel is NaN.

    Args:
        source, labels: as for every evaluator.
        ignore: label of pixels in the truth that count for nothing.
        per_class: also ``IoU/<class name>``.
        label_map: not needed, for targets come in the labels of the head.
    """

    reads = SemanticPrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        ignore: Count = IGNORE,
        per_class: bool = False,
        label_map: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(source, labels)
        self.ignore, self.per_class = ignore, per_class
        # By image, the cells of its confusion matrix (truth * classes + prediction) that are not 0, and their counts:
        # an image that two processes saw must count once.
        self.images: dict[int | str, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; images without a target do not count.

        Raises:
            DataError: a prediction is not of the size of its target, or one of them holds an unknown label.
        """
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            if target is None or image.id in self.images:
                continue
            seen = cast(SemanticPrediction, prediction).labels.cpu()
            truth = cast(SemanticTarget, target).labels.cpu()
            name = f"image {image.id} ({image.path})" if image.path else f"image {image.id}"
            cells = _confusion(truth, seen, len(self.labels), self.ignore, name)
            where = np.flatnonzero(cells)
            self.images[image.id] = where, cells[where]

    def state(self) -> dict[int | str, tuple[np.ndarray, np.ndarray]]:
        return self.images

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.images = state | self.images

    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 pixels: row truth, column prediction."""
        n = len(self.labels)
        total = np.zeros(n * n, dtype=np.int64)
        for where, counts in self.images.values():
            total[where] += counts
        return total.reshape(n, n)

    def result(self) -> dict[str, float]:
        matrix = self.confusion()
        hit, true, seen = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        union = true + seen - hit
        iou = hit[union > 0] / union[union > 0]
        out = {
            "mIoU": _mean(iou),
            "pixel_accuracy": float(hit.sum() / matrix.sum()) if matrix.any() else math.nan,
            "mean_accuracy": _mean(hit[true > 0] / true[true > 0]),
        }
        if self.per_class:
            out |= {f"IoU/{n}": float(h / u) if u else math.nan for n, h, u in zip(self.labels.names, hit, union)}
        return out


def _confusion(truth: torch.Tensor, seen: torch.Tensor, classes: int, ignore: int, name: str) -> np.ndarray:
    """(classes * classes,) pixels of each pair of labels."""
    if truth.shape != seen.shape:
        raise DataError(f"{name}: a prediction of {tuple(seen.shape)} pixels for a label map of {tuple(truth.shape)}")
    if not truth.numel():
        return np.zeros(classes * classes, dtype=np.int64)
    if int(seen.max()) >= classes or int(truth.max()) > IGNORE or int(truth.min()) < 0 or int(seen.min()) < 0:
        raise DataError(
            f"{name}: labels {int(truth.max())} (truth) and {int(seen.max())} (prediction) of {classes} classes"
        )
    # One row for every value that a byte can have: to leave out rows afterwards is cheaper than to leave out pixels.
    pairs = truth.flatten().to(torch.int32) * classes + seen.flatten()
    rows = torch.bincount(pairs, minlength=(IGNORE + 1) * classes).view(IGNORE + 1, classes).numpy()
    rows[ignore] = 0
    if rows[classes:].any():
        wrong = classes + int(np.flatnonzero(rows[classes:].any(1))[0])
        raise DataError(f"{name}: label {wrong} in the truth; there are {classes} classes, and {ignore} is ignored")
    return rows[:classes].ravel()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
