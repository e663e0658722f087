"""What heads have in common that look for keypoints in crops, or in the boxes of another head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from visionkit import Head
from visionkit.layers.roi import RegionPool
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    Mean,
    Output,
    RegionOutput,
)
from visionkit_keypoints.persons import (
    Learnt,
    in_regions,
    in_whole_images,
    mirrored_boxes,
    of_crops,
    padded,
    pixels,
    prediction,
)


@dataclass
class CropOutput(Output):
    """What a head makes of whole images; or, where boxes are read, what it will look at in these.

    Attributes:
        made: heatmaps or coordinates, B rows each; of several levels, the last predicts. Empty where boxes are read.
        features: level -> (B, C, h, w), where boxes are read.
        regions: the boxes.
        mirrored: the features of the mirrored images.
    """

    made: tuple[Tensor, ...]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    regions: RegionOutput | None = None
    mirrored: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolOptions:
    """Arguments of :class:`~visionkit.layers.roi.RegionPool`."""

    size: int
    sampling_ratio: int
    aligned: bool
    canonical_size: float


class CropHead(Head):
    """Keypoints of the one object that an image shows (the source ``objects`` and the transform ``crop_object`` see to
    it); with ``reads: {regions: HEAD}``, of the boxes that another head finds, out of the features that both share.

    A head says what it makes of an image, what of a box, and what it learns from either.

    Args:
        levels: see the heads.
        flip_test: predict from the image and its mirror image.
        keypoint_score: keypoints that score no more do not count for the score of their object.
        pool: how boxes are cut out of the features.
        padding: factor by which boxes that are read are enlarged.

    Raises:
        ValueError: the labels have no keypoints.
    """

    task = "keypoints"
    makes = KeypointPrediction
    output = CropOutput
    may_read = {"regions": RegionOutput}
    evaluators = ("coco_keypoints",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        levels: Sequence[str],
        *,
        flip_test: bool,
        keypoint_score: float,
        pool: PoolOptions,
        padding: float,
    ) -> None:
        super().__init__(spec, labels)
        if not labels.keypoints:
            raise ValueError(f"the labels of a keypoint head ({', '.join(labels.names)}) must name keypoints")
        self.levels, self.spec, self.mirrors = tuple(levels), spec, flip_test
        self.keypoint_score, self.padding, self.pool_options = keypoint_score, padding, pool
        self.pool: RegionPool | None = None

    @abstractmethod
    def of_images(self, features: Features, batch: Batch) -> tuple[Tensor, ...]:
        """What is made of whole images, as in :class:`CropOutput`."""

    @abstractmethod
    def of_pooled(self, pooled: Tensor) -> Tensor:
        """The same, of boxes (n, C, size, size) that were cut out of the features."""

    @abstractmethod
    def loss(self, made: Sequence[Tensor], learnt: Learnt, *, whole: bool) -> dict[str, Mean]:
        """The losses of what was made of n objects.

        Args:
            made: n rows each.
            learnt: of the n objects.
            whole: whether they were whole images.
        """

    @abstractmethod
    def mean_of_mirrored(self, made: Tensor, mirrored: Tensor) -> Tensor:
        """The mean of what was made of n objects and of their mirror images."""

    @abstractmethod
    def in_images(self, made: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Keypoints (B, K, 2) in input pixels, and their scores (B, K)."""

    @abstractmethod
    def in_boxes(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints (n, K, 2) as shares of their boxes, and their scores (n, K)."""

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        if "regions" in port_labels:
            options = self.pool_options
            self.pool = RegionPool(
                self.spec,
                self.levels,
                size=options.size,
                sampling_ratio=options.sampling_ratio,
                aligned=options.aligned,
                canonical_size=options.canonical_size,
            )

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> CropOutput:
        if "regions" in upstream:
            return CropOutput((), {level: features[level] for level in self.levels}, upstream["regions"])
        return CropOutput(self.of_images(features, batch))

    def of_boxes(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """What is made of boxes (n, 4) of input pixels, image after image."""
        assert self.pool is not None
        return self.of_pooled(self.pool(features, boxes))

    def losses(self, output: CropOutput, batch: Batch[InstanceTarget]) -> dict[str, Mean]:
        count = len(self.labels.keypoints)
        if output.regions is None:
            learnt, made = in_whole_images(batch, count), output.made
            losses = self.loss([one[learnt.rows] for one in made], learnt, whole=True)
        else:
            learnt = in_regions(output.regions, batch, count, self.padding)
            boxes = [learnt.boxes[learnt.rows == row] for row in range(len(batch))]
            made = (self.of_boxes(output.features, boxes),)
            losses = self.loss(made, learnt, whole=False)
        # What was made stays in the graph where there is nothing to learn from.
        joined = 0.0 * torch.stack([one.sum() for one in made]).sum()
        return {name: Mean(loss.total + joined, loss.count) for name, loss in losses.items()}

    def join_mirrored(self, output: CropOutput, mirrored: CropOutput, batch: Batch) -> CropOutput:
        if output.regions is not None:
            return replace(output, mirrored=mirrored.features)
        joined = self.mean_of_mirrored_images(output.made[-1], mirrored.made[-1], batch)
        return replace(output, made=(*output.made[:-1], joined))

    def mean_of_mirrored_images(self, made: Tensor, mirrored: Tensor, batch: Batch) -> Tensor:
        """:meth:`mean_of_mirrored`, for whole images, which may be padded."""
        return self.mean_of_mirrored(made, mirrored)

    @torch.no_grad()
    def predict(self, output: CropOutput, batch: Batch) -> list[KeypointPrediction]:
        if output.regions is not None:
            return self._predict_boxes(output, output.regions, batch)
        points, scores = self.in_images(output.made[-1], batch)
        return of_crops(batch, points, scores, self.labels, self.keypoint_score)

    def _predict_boxes(self, output: CropOutput, regions: RegionOutput, batch: Batch) -> list[KeypointPrediction]:
        found = regions.detections_for(self.labels)
        boxes = [padded(f.boxes, self.padding) for f in found]
        made = self.of_boxes(output.features, boxes)
        if output.mirrored:
            there = [mirrored_boxes(own, info.size[1]) for own, info in zip(boxes, batch.info)]
            made = self.mean_of_mirrored(made, self.of_boxes(output.mirrored, there))
        shares, scores = self.in_boxes(made)
        points = pixels(shares, torch.cat(boxes))
        counts = [len(f.boxes) for f in found]
        return [
            prediction(info, f, info.boxes_to_original(f.boxes), own, said, self.keypoint_score)
            for info, f, own, said in zip(batch.info, found, points.split(counts), scores.split(counts))
        ]
