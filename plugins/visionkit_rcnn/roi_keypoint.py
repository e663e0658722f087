"""Mask R-CNN's keypoint branch (He et al., ICCV 2017, section 5): one heatmap a keypoint for every box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit import Head
from visionkit.layers.norm import NormName
from visionkit.layers.roi import RegionPool
from visionkit.numbers import Count, Positive, PositiveFloat, Widths
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    Mean,
    RegionOutput,
)
from visionkit.types.outputs import samples_on
from visionkit_rcnn.branch import BranchOutput, conv_stack, init_convs


class RoIKeypoint(Head):
    """Where each keypoint of the object in a box is: a softmax over the cells of a grid in the box.

    Args:
        levels: pyramid levels that are read, finest first.
        pool_size, sampling_ratio, aligned, canonical_size: see :class:`~visionkit.layers.roi.RegionPool`.
        convs: widths of the 3 x 3 convolutions.
        norm: normalisation after each of them.
        scores: a keypoint's score is its ``"logit"``, or its share of the exponentials of all cells of its heatmap
            (``"softmax"``, as detectron2 has it).

    Raises:
        ValueError: the labels have no keypoints.
    """

    task = "keypoints"
    check_args = {"convs": [16]}
    makes = KeypointPrediction
    output = BranchOutput
    needs = {"regions": RegionOutput}
    loss_names = ("keypoint",)
    evaluators = ("coco_keypoints",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p2", "p3", "p4", "p5"),
        pool_size: Positive = 14,
        sampling_ratio: Count = 2,
        aligned: bool = False,
        canonical_size: PositiveFloat = 224.0,
        convs: Widths = (512,) * 8,
        norm: NormName | None = None,
        scores: Literal["logit", "softmax"] = "logit",
    ) -> None:
        super().__init__(spec, labels)
        if not labels.keypoints:
            raise ValueError(f"the labels of a keypoint head ({', '.join(labels.names)}) must name keypoints")
        self.levels = levels
        self.pool = RegionPool(
            spec, levels, pool_size, sampling_ratio=sampling_ratio, aligned=aligned, canonical_size=canonical_size
        )
        self.conv, channels = conv_stack(self.pool.channels, convs, norm)
        self.upsample = nn.ConvTranspose2d(channels, len(labels.keypoints), 4, stride=2, padding=1)
        init_convs(self)
        self.scores = scores

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> BranchOutput:
        return BranchOutput({level: features[level] for level in self.levels}, upstream["regions"])

    def heatmaps(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """Logits (n, K, 4 pool_size, 4 pool_size) in float32, image after image."""
        x = self.conv(self.pool(features, boxes))
        return F.interpolate(self.upsample(x).float(), scale_factor=2.0, mode="bilinear", align_corners=False)

    def losses(self, output: BranchOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        labelled = [has_keypoints(target) for target in batch.targets]
        samples = samples_on(output.regions.samples(batch.targets), labelled)
        logits = self.heatmaps(output.features, [sample.boxes for sample in samples])
        cells = torch.cat([
            cells_of(target.keypoints[sample.matched], sample.boxes, logits.shape[-1])
            for sample, target in zip(samples, batch.targets)
            if target.keypoints is not None
        ] or [logits.new_zeros(0, logits.shape[1], dtype=torch.int64)])  # fmt: skip
        loss = F.cross_entropy(logits.flatten(2).flatten(0, 1), cells.flatten(), ignore_index=-1, reduction="sum")
        return {"keypoint": Mean(loss, (cells >= 0).sum())}

    @torch.no_grad()
    def predict(self, output: BranchOutput, batch: Batch) -> list[KeypointPrediction]:
        found = output.regions.detections_for(self.labels)
        logits = self.heatmaps(output.features, [f.boxes for f in found])
        predictions = []
        for info, f, own in zip(batch.info, found, logits.split([len(f.boxes) for f in found])):
            points, values = peaks(own, f.boxes)
            scores = self.scores_of(values, own)
            keypoints = torch.cat((info.points_to_original(points), scores[..., None]), -1)
            predictions.append(KeypointPrediction(info.boxes_to_original(f.boxes), f.scores, f.labels, keypoints))
        return predictions

    def scores_of(self, values: Tensor, heatmaps: Tensor) -> Tensor:
        """Scores (n, K) of keypoints from the values (n, K) at the peaks of their heatmaps (n, K, h, w)."""
        return values if self.scores == "logit" else (values - heatmaps.flatten(2).logsumexp(2)).exp()


def has_keypoints(target: InstanceTarget) -> Tensor:
    """(N,) bool: the objects of which any keypoint is labelled."""
    if target.keypoints is None:
        return torch.zeros_like(target.crowd)
    return (target.keypoints[..., 2] > 0).any(1)


def cells_of(keypoints: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The cell of a ``size`` x ``size`` grid over its box that each keypoint lies in.

    Args:
        keypoints: (n, K, 3) of x, y, visibility.
        boxes: (n, 4).

    Returns:
        (n, K) int64 row * size + column; -1 for one that is not labelled or lies outside.
    """
    corner, sides = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    cell = ((keypoints[..., :2] - corner) * (size / sides)).floor().long()
    # The right and lower edges of a box belong to it.
    cell = torch.where(keypoints[..., :2] == boxes[:, None, 2:], size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cell[..., 1] * size + cell[..., 0], -1)


def peaks(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The highest point of each heatmap, found at the resolution of the image.

    Args:
        heatmaps: (n, K, h, w) over the boxes.
        boxes: (n, 4) in pixels.

    Returns:
        points (n, K, 2) in pixels, centres of cells, and their values (n, K).
    """
    points, scores = heatmaps.new_zeros(*heatmaps.shape[:2], 2), heatmaps.new_zeros(heatmaps.shape[:2])
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sides.ceil().int().tolist()
    for i, (width, height) in enumerate(pixels):
        fine = F.interpolate(heatmaps[i, None], size=(height, width), mode="bicubic", align_corners=False)[0]
        scores[i], index = fine.flatten(1).max(1)
        points[i] = torch.stack((index % width, index // width), -1) + 0.5
    return points * (sides / sides.ceil())[:, None] + boxes[:, None, :2], scores
