"""The evaluator ``pq``: panoptic quality."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from visionkit.data.base import Source
from visionkit.errors import DataError
from visionkit.evaluate.base import Evaluator
from visionkit.evaluate.panoptic_metrics import Counts, Segments, match, occurring, summary, total
from visionkit.types import ImageInfo, LabelSet, PanopticPrediction, PanopticTarget, Prediction, Target


class PanopticEvaluator(Evaluator):
    """PQ, SQ and RQ over all classes, over things (``PQ_th`` ...) and over stuff (``PQ_st`` ...), as fractions.

    The rules are those of COCO's panoptic task: :func:`visionkit.evaluate.panoptic_metrics.match`. A class of stuff is
    one segment of an image: where classes of the source became one of the head, their regions are joined. Predictions
    of classes that the source does not know are nothing that it could judge, and left out.

    Args:
        source, labels: as for every evaluator.
        per_class: also ``PQ/<class name>``.
        label_map: class name of the source -> of the head, or ``None`` to leave it out; a name that is missing stands
            for itself.
    """

    reads = PanopticPrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        per_class: bool = False,
        label_map: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(source, labels)
        self.per_class = per_class
        theirs = next((source.labels[task] for task in ("panoptic", *source.labels) if task in source.labels), labels)
        mapped = {(label_map or {}).get(name, name) for name in theirs.names}
        self.known = torch.tensor([name in mapped for name in labels.names])
        # By image, its classes and their counts: an image that two processes saw must count once.
        self.images: dict[int | str, tuple[np.ndarray, Counts]] = {}

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
            truth, found = cast(PanopticTarget, target), cast(PanopticPrediction, prediction)
            if not self.known.all():
                found = found.only(self.known[found.labels.cpu()])
            try:
                counts = match(*self._truth(truth), *_arrays(found), len(self.labels))
            except DataError as error:
                raise DataError(f"image {image.id} ({image.path}): {error}") from None
            self.images[image.id] = occurring(counts)

    def _truth(self, target: PanopticTarget) -> tuple[np.ndarray, Segments]:
        segments, own = _arrays(target)
        crowd = target.crowd.cpu().numpy()
        stuff = ~np.array(self.labels.things)[own.labels] & ~crowd
        first = {label: number for number, label in reversed([*zip(own.ids[stuff], own.labels[stuff])])}
        if len(first) < stuff.sum():
            number = [first[label] if joined else i for i, label, joined in zip(own.ids, own.labels, stuff)]
            segments, keep = np.array([0, *number])[segments], np.equal(own.ids, number)
            own, crowd = Segments(own.ids[keep], own.labels[keep]), crowd[keep]
        return segments, Segments(own.ids, own.labels, crowd)

    def state(self) -> dict[int | str, tuple[np.ndarray, Counts]]:
        return self.images

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.images = state | self.images

    def result(self) -> dict[str, float]:
        counts = total(self.images, len(self.labels))
        return summary(counts, self.labels.things, self.labels.names if self.per_class else None)


def _arrays(item: PanopticTarget | PanopticPrediction) -> tuple[np.ndarray, Segments]:
    """The map and its segments, which are numbered from 1."""
    return item.segments.cpu().numpy(), Segments(np.arange(1, len(item) + 1), item.labels.cpu().numpy())
