"""What a head's ``forward`` returns: tensors in input coordinates, and the typed ports that other heads may read."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.types.batch import Batch
from visionkit.types.device import constant, to_device, true_rows
from visionkit.types.labels import LabelSet
from visionkit.types.predictions import MaskPrediction
from visionkit.types.targets import InstanceTarget


@dataclass
class Output:
    """Base of what a head's ``forward`` returns; a subclass is a dataclass that adds fields.

    One rule lets the core hand on some rows of an output: in a tensor the first axis is the image; a ``list`` holds one
    item an image; tuples, mappings and outputs inside are looked into; anything else is kept as it is.
    """

    def rows(self, rows: Sequence[int], total: int) -> Self:
        """The output of just these rows, of ``total`` in the batch."""
        return take_rows(self, rows, total)


def take_rows(value: Any, rows: Sequence[int], total: int) -> Any:
    """Some rows of ``value`` by the rule of :class:`Output`; the very same object where that is all of them."""
    rows = list(rows)
    return value if rows == list(range(total)) else _take(value, rows)


def _take(value: Any, rows: list[int]) -> Any:
    if isinstance(value, Tensor):
        if rows == list(range(rows[0], rows[-1] + 1)):
            return value[rows[0] : rows[-1] + 1]  # a view: no copy of what may be a large feature map
        return value[constant(rows, value, torch.int64)]
    if isinstance(value, Output):
        new = copy.copy(value)
        for field in dataclasses.fields(value):
            setattr(new, field.name, _take(getattr(value, field.name), rows))
        return new
    if isinstance(value, list):
        return [value[row] for row in rows]
    if isinstance(value, tuple):
        return tuple(_take(v, rows) for v in value)
    if isinstance(value, Mapping):
        return {k: _take(v, rows) for k, v in value.items()}
    return value


@dataclass
class SemanticOutput(Output):
    """Port: scores of every class for every pixel.

    Attributes:
        logits: (B, classes, h, w), at the head's own resolution; cell (0, 0) has its corner on the image's.
    """

    logits: Tensor


@dataclass(frozen=True)
class RegionSamples:
    """Regions of one image chosen for learning.

    Attributes:
        boxes: (n, 4) in input pixels.
        matched: (n,) int64 index of the object in the image's target, or -1 for background.
        labels: (n,) int64 label of that object, or -1 for background.
    """

    boxes: Tensor
    matched: Tensor
    labels: Tensor

    def positives(self) -> RegionSamples:
        """Only the regions that lie on an object."""
        return select_samples([self], [self.matched >= 0])[0]

    def on(self, objects: Tensor) -> RegionSamples:
        """Only the regions that lie on an object for which ``objects``, (objects of the image,) bool, is true."""
        return samples_on([self], [objects])[0]


def select_samples(samples: Sequence[RegionSamples], keep: Sequence[Tensor]) -> list[RegionSamples]:
    """The regions of each image for which ``keep``, (n,) bool, is true. The host waits for the device once."""
    return [RegionSamples(s.boxes[i], s.matched[i], s.labels[i]) for s, i in zip(samples, true_rows(keep))]


def samples_on(samples: Sequence[RegionSamples], objects: Sequence[Tensor]) -> list[RegionSamples]:
    """:meth:`RegionSamples.on` of each image. The host waits for the device once for all images."""
    keep = [(s.matched >= 0) & (own[s.matched.clamp(min=0)] if len(own) else False) for s, own in zip(samples, objects)]
    return select_samples(samples, keep)


@dataclass(frozen=True)
class Detections:
    """Final boxes of one image, best first: boxes (n, 4) in input pixels, scores (n,), labels (n,) int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class RegionOutput(Output):
    """Port: boxes that further branches work on (masks, keypoints, dense pose, a panoptic merge).

    Both questions are answered on demand and only once, so that training never pays for final detections, nor
    inference for samples, and neither ``forward`` nor its return type need to know the mode.

    Attributes:
        labels: the label set of the head that made it, which the labels of its detections index.
    """

    labels: LabelSet

    @abstractmethod
    def samples(self, targets: Sequence[InstanceTarget]) -> list[RegionSamples]:
        """Regions to learn from, one item an image: the same boxes, however many heads ask, each matched with the
        objects of the ``targets`` that are given."""

    @abstractmethod
    def detections(self) -> list[Detections]:
        """Final boxes, one item an image."""

    def detections_for(self, labels: LabelSet) -> list[Detections]:
        """Final boxes of those classes that are in ``labels`` too (by name), labelled as there.

        Raises:
            UserError: no class is in both.
        """
        if labels.names == self.labels.names:
            return self.detections()
        table = torch.tensor([labels.names.index(n) if n in labels.names else -1 for n in self.labels.names])
        if bool((table < 0).all()):
            raise UserError(f"none of the classes {', '.join(labels.names)} is among those of the boxes that are read: "
                            f"{', '.join(self.labels.names)}")  # fmt: skip
        detections = self.detections()
        own = [to_device([table], found.labels.device)[0][found.labels] for found in detections]
        keep = true_rows([labels >= 0 for labels in own])
        return [Detections(f.boxes[i], f.scores[i], labels[i]) for f, labels, i in zip(detections, own, keep)]


@dataclass
class MaskOutput(Output):
    """Port: objects with a mask each, as a head that merges them reads them (a panoptic one)."""

    @abstractmethod
    def instances(self, batch: Batch) -> list[MaskPrediction]:
        """What the head predicts, one item an image of ``batch``, which has the rows of this output; worked out once,
        however many ask."""


@dataclass
class RegionMaskOutput(MaskOutput):
    """Port: masks inside any boxes that are asked for.

    Attributes:
        regions: the boxes that it finds masks for.
    """

    regions: RegionOutput

    @abstractmethod
    def mask_logits(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Logits (n, S, S) of the masks of these classes inside these boxes, an item an image.

        Args:
            boxes: (n, 4) in input pixels, an item an image.
            labels: (n,) int64 of the head's own label set.
        """


@dataclass(frozen=True)
class Anchors:
    """The anchors of each level, (A, 4) in input pixels, finest level first; all images of a batch share them."""

    levels: tuple[Tensor, ...]

    def all(self) -> Tensor:
        """Those of all levels, one after the other."""
        return torch.cat(self.levels)


@dataclass
class PyramidOutput(RegionOutput):
    """Port: a detector that speaks at every anchor of a pyramid, so that further towers can speak at the same ones.

    A head that reads it learns at the anchors that are ``matched`` with an object, and predicts by picking what it says
    at the anchors that detections were ``found_at``.

    Attributes:
        towers: the last features of each tower by its name, (B, C, h, w) a level.
        anchors: in the order in which everything that is said of them stands.
    """

    towers: Mapping[str, tuple[Tensor, ...]]
    anchors: Anchors

    @abstractmethod
    def matched(self, targets: Sequence[InstanceTarget]) -> list[Tensor]:
        """What every anchor learns from, one item an image: (anchors,) int64 index of an object in its target, -1
        (background) or -2 (ignored)."""

    @abstractmethod
    def found_at(self) -> list[Tensor]:
        """For each of the ``detections()``, the index of the anchor that said it: (n,) int64, one item an image."""
