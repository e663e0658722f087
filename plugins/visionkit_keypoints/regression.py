"""Keypoints as coordinates (DeepPose, Toshev & Szegedy, CVPR 2014; residual log-likelihood, Li et al., ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.errors import UserError
from visionkit.layers.keypoint_maps import swapped
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
from visionkit_keypoints.flow import RealNVP
from visionkit_keypoints.persons import (
    in_regions,
    in_whole_images,
    mirrored_boxes,
    of_crops,
    padded,
    pixels,
    prediction,
    whole_images,
)

LossName = Literal["l1", "l2", "wing", "rle"]
SIDE = 256.0  # of the box in the units that the wing loss is given in


@dataclass
class CoordinateOutput(Output):
    """Coordinates in whole images; or, where boxes are read, what those in the boxes are made from.

    Attributes:
        values: (B, K, 2 or 4): x and y as shares of the image; then logits of how far off each may be.
        features: level -> (B, C, h, w), where boxes are read.
        regions: the boxes.
        mirrored: the features of the mirrored images.
    """

    values: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    regions: RegionOutput | None = None
    mirrored: Mapping[str, Tensor] = field(default_factory=dict)


class KeypointRegression(Head):
    """Coordinates of keypoints by one fully connected layer on the mean of the features.

    They are shares of the box, not of the image: every image shows one object (the source ``objects`` and the transform
    ``crop_object`` see to it); with ``reads: {regions: HEAD}`` the boxes are those that another head finds.

    Args:
        levels: one level; or, where boxes are read, the levels of a pyramid.
        loss: ``l1`` and ``l2`` of the shares; ``wing`` (Feng et al., CVPR 2018), steep for small errors; ``rle``, the
            likelihood of the errors under a density that is learnt with them, beside a scale for each coordinate.
        wing: where its logarithm ends, and how steep it is at 0, both in 256ths of the box.
        flip_test: predict from the image and its mirror image.
        weight: of the loss.
        keypoint_score: keypoints that score no more do not count for the score of their object. A keypoint scores 1
            less its scale with ``rle``, else 1.
        pool_size, sampling_ratio, aligned, canonical_size: see :class:`~visionkit.layers.roi.RegionPool`; where boxes
            are read.
        padding: factor by which boxes that are read are enlarged.

    Raises:
        ValueError: the labels have no keypoints.
    """

    task = "keypoints"
    makes = KeypointPrediction
    output = CoordinateOutput
    may_read = {"regions": RegionOutput}
    loss_names = ("coordinates",)
    evaluators = ("coco_keypoints",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("c5",),
        loss: LossName = "l1",
        wing: tuple[float, float] = (10.0, 2.0),
        flip_test: bool = False,
        weight: float = 1.0,
        keypoint_score: float = 0.2,
        pool_size: int = 7,
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
        padding: float = 1.25,
    ) -> None:
        super().__init__(spec, labels)
        if not labels.keypoints:
            raise ValueError(f"the labels of a keypoint head ({', '.join(labels.names)}) must name keypoints")
        self.levels, self.spec, self.mirrors = tuple(levels), spec, flip_test
        self.loss, self.wing, self.weight = loss, wing, weight
        self.keypoint_score, self.padding = keypoint_score, padding
        self.each = 4 if loss == "rle" else 2
        self.last = nn.Linear(spec[levels[0]].channels, len(labels.keypoints) * self.each)
        nn.init.normal_(self.last.weight, std=0.01)
        with torch.no_grad():
            bias = torch.zeros(len(labels.keypoints), self.each)
            bias[:, :2] = 0.5  # the middle of the box
            self.last.bias.copy_(bias.flatten())
        self.flow = RealNVP() if loss == "rle" else None
        self.pool_options: dict[str, Any] = {
            "size": pool_size, "sampling_ratio": sampling_ratio, "aligned": aligned, "canonical_size": canonical_size
        }  # fmt: skip
        self.pool: RegionPool | None = None

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        if "regions" in port_labels:
            self.pool = RegionPool(self.spec, self.levels, **self.pool_options)
        elif len(self.levels) > 1:
            raise UserError(f"levels: without boxes to read (reads: {{regions: HEAD}}), one level is read, not "
                            f"{', '.join(self.levels)}")  # fmt: skip

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> CoordinateOutput:
        if "regions" in upstream:
            mine = {level: features[level] for level in self.levels}
            return CoordinateOutput(batch.images.new_zeros(len(batch), 0), mine, upstream["regions"])
        level = features[self.levels[0]]
        sizes = whole_images(batch.info, level)[:, 2:].flip(1) / self.spec[self.levels[0]].stride
        rows, columns = (
            torch.arange(count, device=level.device) < sizes[:, axis, None].ceil().clamp(min=1)
            for axis, count in enumerate(level.shape[2:])
        )
        inside = (rows[:, :, None] & columns[:, None, :])[:, None].float()  # the mean is not one of the padding
        return CoordinateOutput(self.values((level.float() * inside).sum((2, 3)) / inside.sum((2, 3))))

    def values(self, pooled: Tensor) -> Tensor:
        """(n, K, 2 or 4) from the mean features (n, C) of what is looked at."""
        return self.last(pooled.to(self.last.weight.dtype)).float().unflatten(1, (-1, self.each))

    def in_boxes(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """Values in boxes (n, 4) of input pixels, image after image."""
        assert self.pool is not None
        return self.values(self.pool(features, boxes).float().mean((2, 3)))

    def losses(self, output: CoordinateOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        count = len(self.labels.keypoints)
        if output.regions is None:
            learnt = in_whole_images(batch, count)
            values, joined = output.values[learnt.rows], output.values.sum()
        else:
            learnt = in_regions(output.regions, batch, count, self.padding)
            values = self.in_boxes(output.features, [learnt.boxes[learnt.rows == row] for row in range(len(batch))])
            joined = values.sum()
        labelled = learnt.keypoints[..., 2] > 0
        error = self.errors(values, learnt.keypoints[..., :2])
        total = torch.where(labelled[..., None], error, 0.0).sum() * self.weight
        if self.flow is not None:  # so that it is in the graph where there is nothing to learn from
            joined = joined + sum(parameter.sum() for parameter in self.flow.parameters())
        return {"coordinates": Mean(total + 0.0 * joined, labelled.sum() * 2)}

    def errors(self, values: Tensor, wanted: Tensor) -> Tensor:
        """The loss of every coordinate (n, K, 2)."""
        apart = (values[..., :2] - wanted).abs()
        if self.loss == "l1":
            return apart
        if self.loss == "l2":
            return apart.square()
        if self.loss == "wing":
            return wing_loss(apart * SIDE, *self.wing)
        assert self.flow is not None
        return residual_likelihood(values[..., :2] - wanted, values[..., 2:].sigmoid(), self.flow)

    def join_mirrored(self, output: CoordinateOutput, mirrored: CoordinateOutput, batch: Batch) -> CoordinateOutput:
        if output.regions is not None:
            return replace(output, mirrored=mirrored.features)
        return replace(output, values=self.joined(output.values, mirrored.values))

    def joined(self, values: Tensor, mirrored: Tensor) -> Tensor:
        """The mean of values (n, K, 2 or 4) and of those for the mirror image."""
        back = mirrored[:, swapped(mirrored.shape[1], self.labels.swaps)]
        back = torch.cat((1 - back[..., :1], back[..., 1:]), -1)
        return (values + back) / 2

    @torch.no_grad()
    def predict(self, output: CoordinateOutput, batch: Batch) -> list[KeypointPrediction]:
        if output.regions is not None:
            return self._predict_boxes(output, output.regions, batch)
        points = pixels(output.values[..., :2], whole_images(batch.info, output.values))
        return of_crops(batch, points, self.scores(output.values), self.labels, self.keypoint_score)

    def _predict_boxes(self, output: CoordinateOutput, regions: RegionOutput, batch: Batch) -> list[KeypointPrediction]:
        found = regions.detections_for(self.labels)
        boxes = [padded(f.boxes, self.padding) for f in found]
        values = self.in_boxes(output.features, boxes)
        if output.mirrored:
            there = [mirrored_boxes(own, info.size[1]) for own, info in zip(boxes, batch.info)]
            values = self.joined(values, self.in_boxes(output.mirrored, there))
        counts = [len(f.boxes) for f in found]
        points, scores = pixels(values[..., :2], torch.cat(boxes)), self.scores(values)
        return [
            prediction(info, f, info.boxes_to_original(f.boxes), own, said, self.keypoint_score)
            for info, f, own, said in zip(batch.info, found, points.split(counts), scores.split(counts))
        ]

    def scores(self, values: Tensor) -> Tensor:
        """(n, K): 1 less the mean scale of a keypoint's coordinates; 1 where no scale is learnt."""
        return 1 - values[..., 2:].sigmoid().mean(-1) if self.loss == "rle" else torch.ones_like(values[..., 0])


def wing_loss(apart: Tensor, width: float, curvature: float) -> Tensor:
    """``width log(1 + d / curvature)`` of distances below ``width``, a straight line beyond (Feng et al., CVPR 2018,
    equation 5)."""
    inner = width * torch.log1p(apart / curvature)
    return torch.where(apart < width, inner, apart - width + width * math.log1p(width / curvature))


def residual_likelihood(error: Tensor, scale: Tensor, flow: RealNVP) -> Tensor:
    """Negative log-likelihood of each coordinate: a Laplace density, times the density that a flow learns, of the error
    in scales (Li et al., ICCV 2021, equation 11; the flow's share counts once for x and once for y, as in their code).

    Args:
        error, scale: (n, K, 2) in shares of the box.
        flow: density of (error / scale).
    """
    scaled = error / (scale + 1e-9)
    residual = scale.log() - flow.log_density(scaled)[..., None]
    return residual + (2 * scale).log() + scaled.abs()
