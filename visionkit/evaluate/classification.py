"""Classification: how often the class of an image is among the likeliest ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, cast

from visionkit.data.base import Source
from visionkit.errors import DataError
from visionkit.evaluate.base import Evaluator
from visionkit.types import ClassPrediction, ClassTarget, ImageInfo, LabelSet, Prediction, Target


class ClassificationEvaluator(Evaluator):
    """top1 and top5, as fractions: images whose class is the likeliest one, or among the five likeliest (Russakovsky et
    al., ImageNet, IJCV 2015, section 4.1, which counts the errors).

    An image of none of the classes does not count. Of classes that are equally likely the first counts as likelier.
    A metric for which there is not a single image is NaN.
    """

    reads = ClassPrediction

    def __init__(self, source: Source, labels: LabelSet) -> None:
        super().__init__(source, labels)
        # By image, how many classes are likelier than its own: an image that two processes saw must count once.
        self.ranks: dict[int | str, int] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; images without a target do not count.

        Raises:
            DataError: a prediction has another number of classes than the head.
        """
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            if target is None or (label := int(cast(ClassTarget, target).label)) < 0:
                continue
            likely = cast(ClassPrediction, prediction).probabilities.cpu()
            if len(likely) != len(self.labels):
                raise DataError(f"image {image.path or image.id}: probabilities of {len(likely)} classes; there are "
                                f"{len(self.labels)}")  # fmt: skip
            self.ranks[image.id] = int((likely > likely[label]).sum() + (likely[:label] == likely[label]).sum())

    def state(self) -> dict[int | str, int]:
        return self.ranks

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.ranks = state | self.ranks

    def result(self) -> dict[str, float]:
        images = max(1, len(self.ranks))
        hits = {f"top{k}": sum(rank < k for rank in self.ranks.values()) for k in (1, 5)}
        return {name: count / images if self.ranks else math.nan for name, count in hits.items()}
