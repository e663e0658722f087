"""The contract of evaluators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from visionkit.data.base import Source
from visionkit.types import ImageInfo, LabelSet, Prediction, Target
from visionkit.types.declared import declaration_problem, subclass_of


class Evaluator(ABC):
    """Judges one type of prediction of one head on one source.

    Built as ``Evaluator(source, labels, *, ...)``; the keyword arguments are its whole configuration. Predictions and
    targets are in original image coordinates and in the head's labels.

    Attributes:
        reads: the type of prediction (or a base of it); of the class.
        needs_targets: whether :meth:`add` must be given targets; the COCO evaluators read the annotation file instead,
            where the source has one.
    """

    reads: ClassVar[type[Prediction]]
    needs_targets: bool = True

    @classmethod
    def declaration_problem(cls) -> str:
        """The first class attribute that is missing or of the wrong type, in words; empty if there is none."""
        return declaration_problem(cls, {"reads": subclass_of(Prediction)}, ("reads",))

    def __init__(self, source: Source, labels: LabelSet, **_: Any) -> None:
        self.source = source
        self.labels = labels

    @abstractmethod
    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch."""

    @abstractmethod
    def state(self) -> Any:
        """All that was added, as plain data that another process can :meth:`merge`."""

    @abstractmethod
    def merge(self, states: Collection[Any]) -> None:
        """Take in what evaluators in other processes have seen; the same image counts once."""

    @abstractmethod
    def result(self) -> dict[str, float]:
        """Metrics by their official names.

        A metric that nothing was measured for, such as the mean over no pixels, is ``float("nan")``: JSON files then
        hold ``null``, and tables ``n/a``. No number may stand for it.
        """
