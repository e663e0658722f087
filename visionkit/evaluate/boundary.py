"""Semantic segmentation along the contours: Boundary IoU and the boundary F score."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import cv2
import numpy as np

from visionkit.data.base import Source
from visionkit.errors import DataError
from visionkit.evaluate.base import Evaluator
from visionkit.numbers import Count, OpenFraction
from visionkit.types import IGNORE, ImageInfo, LabelSet, Prediction, SemanticPrediction, SemanticTarget, Target


class BoundaryEvaluator(Evaluator):
    """boundary_mIoU and boundary_F, as fractions.

    Boundary IoU (Cheng et al., CVPR 2021, equation 2) is the IoU of a class among those of its pixels that lie within a
    distance of its contour or of the edge of the image. Pixels are counted over the whole set, and the mean is over the
    classes that occur, as for mIoU.

    Boundary F (Csurka et al., BMVC 2013, section 3) is the harmonic mean of the share of contour pixels of the
    prediction that have one of the truth within a tolerance, and the reverse; a mean over the images in which a class
    occurs, then over classes.

    Where the truth ignores pixels neither counts anything, and what borders on them is no contour. What cannot be
    said, for want of a single pixel, is -1.

    Args:
        source, labels: as for every evaluator.
        width: of the band along contours, as a share of the diagonal of the image.
        tolerance: how far contours may lie apart, likewise.
        ignore: label of pixels in the truth that count for nothing.
        per_class: also ``boundary_IoU/<class name>`` and ``boundary_F/<class name>``.
    """

    reads = SemanticPrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        width: OpenFraction = 0.02,
        tolerance: OpenFraction = 0.0075,
        ignore: Count = IGNORE,
        per_class: bool = False,
    ) -> None:
        super().__init__(source, labels)
        self.width, self.tolerance, self.ignore, self.per_class = width, tolerance, ignore, per_class
        # By image and class: pixels of both bands, of either, and the F score.
        self.images: dict[int | str, dict[int, tuple[int, int, float]]] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; images without a target do not count.

        Raises:
            DataError: a prediction is not of the size of its target.
        """
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            if target is None or image.id in self.images:
                continue
            seen = cast(SemanticPrediction, prediction).labels.cpu().numpy()
            truth = cast(SemanticTarget, target).labels.cpu().numpy()
            if truth.shape != seen.shape:
                raise DataError(
                    f"image {image.id}{f' ({image.path})' if image.path else ''}: a prediction of {seen.shape} pixels "
                    f"for a label map of {truth.shape}"
                )
            self.images[image.id] = self._compare(seen, truth)

    def _compare(self, seen: np.ndarray, truth: np.ndarray) -> dict[int, tuple[int, int, float]]:
        unknown, diagonal = truth == self.ignore, math.hypot(*truth.shape)
        distance, tolerance = max(1, round(self.width * diagonal)), self.tolerance * diagonal
        there = np.union1d(truth[~unknown], seen[~unknown])
        found = {}
        for label in (int(one) for one in there if one < len(self.labels)):
            masks = [((labels == label) | unknown) for labels in (seen, truth)]
            bands = [band(mask, distance) & ~unknown for mask in masks]
            edges = [contour(mask) & ~unknown for mask in masks]
            f = f_score(edges[0], edges[1], tolerance)
            found[label] = int((bands[0] & bands[1]).sum()), int((bands[0] | bands[1]).sum()), f
        return found

    def state(self) -> dict[int | str, dict[int, tuple[int, int, float]]]:
        return self.images

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.images = state | self.images

    def result(self) -> dict[str, float]:
        ious, scores = {}, {}
        for label, name in enumerate(self.labels.names):
            mine = [found[label] for found in self.images.values() if label in found]
            both, either = sum(one[0] for one in mine), sum(one[1] for one in mine)
            ious[name] = both / either if either else math.nan
            scores[name] = sum(one[2] for one in mine) / len(mine) if mine else math.nan
        out = {"boundary_mIoU": _mean(ious), "boundary_F": _mean(scores)}
        if self.per_class:
            out |= {f"boundary_IoU/{name}": value for name, value in ious.items()}
            out |= {f"boundary_F/{name}": value for name, value in scores.items()}
        return out


def band(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask (H, W) with one that is not in it, or not in the image, at most ``distance`` rows and columns
    away."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), dtype=np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (inner == 0)


def contour(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) beside, above or below one that is not in it; the edge of the image is no contour."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def f_score(found: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """Harmonic mean of precision and recall of contours (H, W); 1 where there are none, 0 where only one has any."""
    if not found.any() or not truth.any():
        return float(found.any() == truth.any())
    precision = float((distance_to(truth)[found] <= tolerance).mean())
    recall = float((distance_to(found)[truth] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def distance_to(pixels: np.ndarray) -> np.ndarray:
    """(H, W) distance of every pixel to the nearest of ``pixels``."""
    return cv2.distanceTransform((~pixels).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _mean(values: Mapping[str, float]) -> float:
    known = [value for value in values.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
