"""The evaluators of boxes, masks and keypoints by COCO's metrics.

hotcoco computes them (``visionkit.evaluate.coco_metrics`` says why); ``backend="pycocotools"`` gives the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from visionkit.coco.annotations import CocoAnnotations, parse_annotations
from visionkit.coco.categories import Category
from visionkit.data.base import Source
from visionkit.evaluate.base import Evaluator
from visionkit.evaluate.coco_metrics import Backend, Type, evaluate_coco, keypoint_sigmas
from visionkit.numbers import Positive, PositiveFloat
from visionkit.types import (
    BoxPrediction,
    ImageInfo,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    MaskPrediction,
    Prediction,
    Target,
)

LabelMap = Mapping[str, str | None]
Record = dict[str, Any]


class CocoEvaluator(Evaluator):
    """What the three have in common: records are kept as COCO has them, masks as run lengths.

    The ground truth is the source's annotation file, restricted to the images that were added. Where the source has no
    such file, the ground truth is made of the targets, and images without a target don't count. Several classes of the
    source that stand for one class of the head are one category, with the ID of the first. Predictions of classes that
    the source doesn't know are left out. Where every object is a sample of its own, the predictions for the objects of
    one image are evaluated together. Metrics without anything to detect are NaN.

    Args:
        source: what the images come from.
        labels: of the head.
        backend: ``"fast"`` or ``"pycocotools"``, with the same numbers.
        max_detections: how many of the best detections of an image and class count.
        per_class: also ``AP/<class name>``.
        label_map: class name of the source -> of the head, or ``None`` to leave it out; a name that is missing stands
            for itself, and is left out where the head has no such class.
    """

    type: ClassVar[Type]
    task: ClassVar[str]

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        backend: Backend = "fast",
        max_detections: Positive = 100,
        per_class: bool = False,
        label_map: LabelMap | None = None,
    ) -> None:
        super().__init__(source, labels)
        self.backend, self.max_detections, self.per_class = backend, max_detections, per_class
        self.source_labels = next(source.labels[t] for t in (self.task, *source.labels) if t in source.labels)
        mapped = _mapped_names(self.source_labels, labels, label_map or {})
        first = {
            name: number for number, name in reversed(list(zip(self.source_labels.ids, mapped))) if name is not None
        }
        self.named = dataclasses.replace(labels, ids=tuple(first.get(name, -1) for name in labels.names))
        self.mapped = dict(zip(self.source_labels.ids, mapped))
        truth = source.coco_ground_truth()
        self.truth = truth if truth is None or isinstance(truth, CocoAnnotations) else parse_annotations(
            truth, "the ground truth of the source"
        )  # fmt: skip
        self.needs_targets = self.truth is None
        self.images: dict[int | str, dict[str, Any]] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; ``targets`` are looked at only where ``needs_targets``."""
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            if image.key in self.images or (self.needs_targets and target is None):
                continue
            # By the class that is read: a mask prediction that is judged by its boxes needs no masks in its records.
            records = self.reads.to_coco(prediction, image.id, self.named)
            self.images[image.key] = {
                "id": image.id,
                "size": image.original_size,
                "records": [record for record in records if record["category_id"] != -1],
                "annotations": _annotations(target, self.named) if self.needs_targets else [],
            }

    def state(self) -> dict[int | str, dict[str, Any]]:
        return self.images

    def merge(self, states: Collection[dict[int | str, dict[str, Any]]]) -> None:
        for state in states:
            self.images = state | self.images

    def result(self) -> dict[str, float]:
        return self._evaluate(max_dets=[n for n in (1, 10) if n < self.max_detections] + [self.max_detections])

    def _evaluate(self, **options: Any) -> dict[str, float]:
        metrics = evaluate_coco(
            self._ground_truth(),
            [record for image in self.images.values() for record in image["records"]],
            self.type,
            backend=self.backend,
            per_class=self.per_class,
            **options,
        )
        # COCO's tools say -1 where there is nothing to detect.
        return {name: float("nan") if value == -1 else value for name, value in metrics.items()}

    def _ground_truth(self) -> CocoAnnotations | dict[str, Any]:
        """The ground truth of the images that were added, in the categories that are evaluated."""
        categories = [
            Category(number, name, keypoints=self.labels.keypoints if self.type == "keypoints" else ())
            for number, name in zip(self.named.ids, self.named.names)
            if number != -1
        ]
        if self.truth is not None:
            position = {category.name: label for label, category in enumerate(categories)}
            label_of = {
                label: position[name]
                for label, category in enumerate(self.truth.categories)
                if (name := self.mapped.get(category.id)) is not None
            }
            image_ids = [image["id"] for image in self.images.values()]
            points = self.labels.keypoints if self.type == "keypoints" else ()
            return self.truth.restrict(image_ids, label_of, categories, points)
        sizes = {image["id"]: image["size"] for image in self.images.values()}
        annotations = [
            {**annotation, "image_id": image["id"]}
            for image in self.images.values()
            for annotation in image["annotations"]
        ]
        for index, annotation in enumerate(annotations):
            annotation["id"] = index + 1
        return {
            "images": [{"id": number, "height": size[0], "width": size[1]} for number, size in sizes.items()],
            "annotations": annotations,
            "categories": [{"id": c.id, "name": c.name, "keypoints": list(c.keypoints)} for c in categories],
        }


class CocoBoxes(CocoEvaluator):
    """AP and AR of boxes; reads masks and keypoints too, which have boxes."""

    type = "bbox"
    task = "boxes"
    reads = BoxPrediction


class CocoMasks(CocoEvaluator):
    """AP and AR of masks."""

    type = "segm"
    task = "masks"
    reads = MaskPrediction


class CocoKeypoints(CocoEvaluator):
    """AP and AR of keypoints by object keypoint similarity.

    Args:
        max_detections: as for boxes, but 20.
        sigmas: fall-off of each keypoint; else those of the labels of the head, else of the source, else COCO's for 17
            keypoints, else 0.05 for each.

    Raises:
        DataError: another number of sigmas than of keypoints.
    """

    type = "keypoints"
    task = "keypoints"
    reads = KeypointPrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        backend: Backend = "fast",
        sigmas: list[PositiveFloat] | None = None,
        max_detections: Positive = 20,
        per_class: bool = False,
        label_map: LabelMap | None = None,
    ) -> None:
        super().__init__(
            source,
            labels,
            backend=backend,
            max_detections=max_detections,
            per_class=per_class,
            label_map=label_map,
        )
        self.sigmas = sigmas or labels.sigmas or self.source_labels.sigmas or None
        if points := len(labels.keypoints or self.source_labels.keypoints):
            keypoint_sigmas(self.sigmas, points)  # a wrong number is told before the images are predicted

    def result(self) -> dict[str, float]:
        return self._evaluate(max_dets=[self.max_detections], sigmas=self.sigmas)


def _mapped_names(source: LabelSet, head: LabelSet, label_map: LabelMap) -> list[str | None]:
    """The class name of the head for each class of the source; ``None`` for those that are not evaluated."""
    names = [label_map.get(name, name) for name in source.names]
    return [name if name in head.names else None for name in names]


def _annotations(target: Target | None, labels: LabelSet) -> list[Record]:
    """COCO annotations of one image, without ids."""
    if not isinstance(target, InstanceTarget):
        raise TypeError(f"COCO's metrics need an InstanceTarget, not a {type(target).__name__}")
    corners = target.boxes.double().cpu()
    boxes = torch.cat((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
    out: list[Record] = [
        {"category_id": labels.ids[label], "bbox": box, "area": area, "iscrowd": int(crowd)}
        for label, box, area, crowd in zip(*map(Tensor.tolist, (target.labels, boxes, target.areas, target.crowd)))
    ]
    if target.masks is not None:
        for annotation, encoded in zip(out, target.masks.to_rles()):
            if encoded is not None:
                annotation["segmentation"] = encoded
    if target.keypoints is not None:
        for annotation, points in zip(out, target.keypoints.double().cpu().flatten(1).tolist()):
            annotation["keypoints"] = points
    return [annotation for annotation in out if annotation["category_id"] != -1]
