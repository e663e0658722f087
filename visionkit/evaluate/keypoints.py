"""Keypoints in pixels: percentage of correct keypoints (PCK), its area under the curve, and the mean error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np

from visionkit.data.base import Source
from visionkit.errors import DataError
from visionkit.evaluate.base import Evaluator
from visionkit.evaluate.coco_metrics import keypoint_sigmas
from visionkit.numbers import PositiveFloat
from visionkit.types import ImageInfo, InstanceTarget, KeypointPrediction, LabelSet, Prediction, Target


class PckEvaluator(Evaluator):
    """PCK, AUC, mean error and share of found objects.

    Only labelled keypoints of objects that are no crowd count. Each object is paired with one prediction of its class
    in its image: of all pairs the one with the highest object keypoint similarity (OKS) is taken, of equal ones the one
    that is closer in the mean, then the next among what is left. Every prediction may be taken, however far away; what
    is left over costs nothing, so ``min_score`` says from where on a prediction is one. Where a sample is one object of
    an image, that object is paired with what was said of it.

    - ``PCK@t``: share of the keypoints that lie within ``t`` times the size of their object (Yang and Ramanan,
      Articulated human detection, 2013); all of an object that no prediction was left for are wrong. PCKh (Andriluka et
      al., 2D human pose estimation, 2014) is this with ``segment`` from neck to top of the head.
    - ``AUC``: area under the curve of PCK from 0 to the largest threshold, divided by it: exactly the mean of
      ``max(0, 1 - distance / (largest threshold * size))``.
    - ``mean_error_px``: mean distance in pixels of the original image, over the keypoints of the objects that were
      found; ``found`` is their share among the objects with a labelled keypoint.

    A metric for which there is not a single keypoint is NaN.

    Args:
        source, labels: as for every evaluator.
        thresholds: of PCK, as parts of an object's size.
        segment: names of two keypoints whose distance is the size of an object (torso, head); an object with one of
            them unlabelled, or both in one place, has no size and is left out of PCK and AUC. ``None``: the size is the
            longer side of the annotated box.
        factor: what that size is multiplied by.
        metric: the name of the share of correct keypoints, such as ``PCKh``.
        min_score: predictions below this score are none.
        only_visible: keypoints that are labelled but hidden do not count either.
        per_keypoint: also ``PCK@t/<keypoint name>`` and ``mean_error_px/<keypoint name>``.
        sigmas: fall-off of each keypoint for OKS; else those of the labels of the head, else of the source, else COCO's
            for 17 keypoints, else 0.05 for each.

    Raises:
        ValueError: a keypoint that there is not, a threshold or factor that is not above 0.
        DataError: another number of sigmas than of keypoints.
    """

    reads = KeypointPrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        thresholds: Sequence[PositiveFloat] = (0.05, 0.1, 0.2, 0.5),
        segment: tuple[str, str] | None = None,
        factor: PositiveFloat = 1.0,
        metric: str = "PCK",
        min_score: float = 0.0,
        only_visible: bool = False,
        per_keypoint: bool = False,
        sigmas: Sequence[PositiveFloat] | None = None,
    ) -> None:
        super().__init__(source, labels)
        if not thresholds or min(thresholds) <= 0 or factor <= 0:
            raise ValueError(f"thresholds and factor must be above 0, not {list(thresholds)} and {factor}")
        theirs = source.labels.get("keypoints", labels)
        self.names = labels.keypoints or theirs.keypoints
        self.segment = None if segment is None else (_index(self.names, segment[0]), _index(self.names, segment[1]))
        self.thresholds, self.factor, self.metric = sorted(thresholds), factor, metric
        self.min_score, self.least = min_score, 2 if only_visible else 1
        self.per_keypoint = per_keypoint
        self.sigmas = keypoint_sigmas(sigmas or labels.sigmas or theirs.sigmas or None, len(self.names))
        # By image, distances (objects, keypoints) in pixels - NaN: does not count, infinite: not found - and sizes
        # (objects,): an image that two processes saw must count once.
        self.images: dict[int | str, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; images without a target do not count.

        Raises:
            DataError: a target or prediction has another number of keypoints than the labels name.
        """
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            keypoints = cast(InstanceTarget, target).keypoints if target is not None else None
            if keypoints is None or image.key in self.images:
                continue
            found = cast(KeypointPrediction, prediction)
            for what, points in (("target", keypoints), ("prediction", found.keypoints)):
                if len(points) and points.shape[1] != len(self.names):
                    name = image.path or f"image {image.id}"
                    raise DataError(f"{name}: a {what} of {points.shape[1]} keypoints; the labels name "
                                    f"{len(self.names)}")  # fmt: skip
            self.images[image.key] = self._distances(found, cast(InstanceTarget, target))

    def _distances(self, prediction: KeypointPrediction, target: InstanceTarget) -> tuple[np.ndarray, np.ndarray]:
        """Distances (objects, keypoints) and sizes (objects,) of one image, as ``self.images`` holds them."""
        assert target.keypoints is not None
        wanted = target.select(~target.crowd & (target.keypoints[..., 2] >= self.least).any(1))
        seen = prediction.scores >= self.min_score
        made = prediction.keypoints[seen].double().cpu().numpy()
        truth = cast(Any, wanted.keypoints).double().cpu().numpy()

        if not len(truth):
            return np.zeros((0, len(self.names))), np.zeros(0)
        counts = truth[..., 2] >= self.least
        out = np.where(counts, np.inf, np.nan)
        if len(made):
            apart = np.linalg.norm(truth[:, None, :, :2] - made[None, :, :, :2], axis=-1)
            same = wanted.labels.cpu().numpy()[:, None] == prediction.labels[seen].cpu().numpy()
            for i, j in pair(apart, counts, same, wanted.areas.double().cpu().numpy(), self.sigmas):
                out[i] = np.where(counts[i], apart[i, j], np.nan)
        return out, self._sizes(wanted, truth)

    def _sizes(self, target: InstanceTarget, keypoints: np.ndarray) -> np.ndarray:
        """(N,) what distances are measured by, in pixels; NaN for an object that has none."""
        if self.segment is None:
            boxes = target.boxes.double().cpu().numpy()
            size = (boxes[:, 2:] - boxes[:, :2]).max(1)
        else:
            a, b = keypoints[:, self.segment[0]], keypoints[:, self.segment[1]]
            labelled = (a[:, 2] > 0) & (b[:, 2] > 0)
            size = np.where(labelled, np.linalg.norm(a[:, :2] - b[:, :2], axis=1), np.nan)
        return np.where(size > 0, size, np.nan) * self.factor

    def state(self) -> dict[int | str, tuple[np.ndarray, np.ndarray]]:
        return self.images

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.images = state | self.images

    def result(self) -> dict[str, float]:
        # In the order of the ids, so that sums do not depend on who saw what.
        parts = [self.images[key] for key in sorted(self.images, key=str)]
        distances = np.concatenate([np.zeros((0, len(self.names))), *(distance for distance, _ in parts)])
        sizes = np.concatenate([np.zeros(0), *(size for _, size in parts)])
        relative = distances / sizes[:, None]
        last = self.thresholds[-1]
        out = {f"{self.metric}@{t:g}": _mean(relative <= t, relative) for t in self.thresholds}
        out["AUC"] = _mean((1 - relative / last).clip(min=0), relative)
        out["mean_error_px"] = _mean(distances, np.where(np.isinf(distances), np.nan, distances))
        out["found"] = float(np.isfinite(distances).any(1).mean()) if len(distances) else math.nan
        if self.per_keypoint:
            for k, name in enumerate(self.names):
                one, pixels = relative[:, k], distances[:, k]
                out |= {f"{self.metric}@{t:g}/{name}": _mean(one <= t, one) for t in self.thresholds}
                out[f"mean_error_px/{name}"] = _mean(pixels, np.where(np.isinf(pixels), np.nan, pixels))
        return out


def pair(
    distances: np.ndarray, counts: np.ndarray, same: np.ndarray, areas: np.ndarray, sigmas: np.ndarray
) -> list[tuple[int, int]]:
    """Objects and predictions of one image that belong together: the most similar pair first, then what is left.

    Args:
        distances: (N, M, K) pixels between the keypoints of objects and predictions.
        counts: (N, K) whether a keypoint is labelled; at least one is of each object.
        same: (N, M) whether both are of one class.
        areas: (N,) of the objects, in pixels.
        sigmas: (K,) fall-off of each keypoint.

    Returns:
        Pairs of row and column, each at most once.
    """
    weight = counts[:, None] / counts.sum(1)[:, None, None]
    # OKS as in COCO's evaluation: exp(-d^2 / (2 area (2 sigma)^2)), the mean over the labelled keypoints.
    spread = 2 * np.maximum(areas, np.spacing(1))[:, None, None] * (2 * sigmas) ** 2
    oks = (np.exp(-(distances**2) / spread) * weight).sum(2)
    far = (np.where(counts[:, None], distances, 0.0) * weight).sum(2)
    left = same.copy()
    pairs: list[tuple[int, int]] = []
    for place in np.lexsort((far.ravel(), -oks.ravel())):
        i, j = divmod(int(place), same.shape[1])
        if left[i, j]:
            pairs.append((i, j))
            left[i] = left[:, j] = False
    return pairs


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    """The mean of the values at which ``where`` is a number; NaN where there is none."""
    chosen = values[~np.isnan(where)]
    return float(chosen.mean()) if chosen.size else math.nan


def _index(names: Sequence[str], name: str) -> int:
    if name in names:
        return names.index(name)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"segment: no keypoint '{name}' among {', '.join(names) or 'none'}{hint}")
