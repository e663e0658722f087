"""Keypoints as coordinates (DeepPose, Toshev & Szegedy, CVPR 2014; residual log-likelihood, Li et al., ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.keypoint_maps import swapped
from visionkit.numbers import Count, FractionBelowOne, OnlyWith, Positive, PositiveFloat
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean
from visionkit.types.device import without_autocast
from visionkit_keypoints.crops import CropHead, PoolOptions
from visionkit_keypoints.flow import RealNVP
from visionkit_keypoints.persons import Learnt, pixels, whole_images

LossName = Literal["l1", "l2", "wing", "rle"]
SIDE = 256.0  # of the box in the units that the wing loss is given in


class KeypointRegression(CropHead):
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

    loss_names = ("coordinates",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("c5",),
        loss: LossName = "l1",
        wing: Annotated[tuple[PositiveFloat, PositiveFloat], OnlyWith(loss="wing")] = (10.0, 2.0),
        flip_test: bool = False,
        weight: PositiveFloat = 1.0,
        keypoint_score: FractionBelowOne = 0.2,
        pool_size: Annotated[Positive, OnlyWith("reads")] = 7,
        sampling_ratio: Annotated[Count, OnlyWith("reads")] = 2,
        aligned: Annotated[bool, OnlyWith("reads")] = True,
        canonical_size: Annotated[PositiveFloat, OnlyWith("reads")] = 224.0,
        padding: Annotated[PositiveFloat, OnlyWith("reads")] = 1.25,
    ) -> None:
        pool = PoolOptions(pool_size, sampling_ratio, aligned, canonical_size)
        super().__init__(
            spec, labels, levels, flip_test=flip_test, keypoint_score=keypoint_score, pool=pool, padding=padding
        )
        self.loss_name, self.wing, self.weight = loss, wing, weight
        self.each = 4 if loss == "rle" else 2
        self.last = nn.Linear(spec[levels[0]].channels, len(labels.keypoints) * self.each)
        nn.init.normal_(self.last.weight, std=0.01)
        with torch.no_grad():
            bias = torch.zeros(len(labels.keypoints), self.each)
            bias[:, :2] = 0.5  # the middle of the box
            self.last.bias.copy_(bias.flatten())
        self.flow = RealNVP() if loss == "rle" else None

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        if self.pool is None and len(self.levels) > 1:
            raise UserError(f"levels: without boxes to read (reads: {{regions: HEAD}}), one level is read, not "
                            f"{', '.join(self.levels)}")  # fmt: skip

    def of_images(self, features: Features, batch: Batch) -> tuple[Tensor, ...]:
        """(B, K, 2 or 4): x and y as shares of the image; then logits of how far off each may be."""
        level = features[self.levels[0]]
        sizes = whole_images(batch.info, level)[:, 2:].flip(1) / self.spec[self.levels[0]].stride
        rows, columns = (
            torch.arange(count, device=level.device) < sizes[:, axis, None].ceil().clamp(min=1)
            for axis, count in enumerate(level.shape[2:])
        )
        inside = (rows[:, :, None] & columns[:, None, :])[:, None].float()  # the mean is not one of the padding
        return (self.values((level.float() * inside).sum((2, 3)) / inside.sum((2, 3))),)

    def of_pooled(self, pooled: Tensor) -> Tensor:
        """The same (n, K, 2 or 4) of boxes."""
        return self.values(pooled.float().mean((2, 3)))

    def values(self, mean: Tensor) -> Tensor:
        """(n, K, 2 or 4) from the mean features (n, C) of what is looked at."""
        # Shares of an image that are rounded to half precision are pixels off, so mixed precision ends here.
        with without_autocast(mean.device):
            return self.last(mean.to(self.last.weight.dtype)).float().unflatten(1, (-1, self.each))

    def loss(self, made: Sequence[Tensor], learnt: Learnt, *, whole: bool) -> dict[str, Mean]:
        """The mean over the coordinates of labelled keypoints."""
        labelled = learnt.keypoints[..., 2] > 0
        error = self.errors(made[0], learnt.keypoints[..., :2])
        total = torch.where(labelled[..., None], error, 0.0).sum() * self.weight
        if self.flow is not None:  # so that it is in the graph where there is nothing to learn from
            total = total + 0.0 * torch.stack([parameter.sum() for parameter in self.flow.parameters()]).sum()
        return {"coordinates": Mean(total, labelled.sum() * 2)}

    def errors(self, values: Tensor, wanted: Tensor) -> Tensor:
        """The loss of every coordinate (n, K, 2)."""
        apart = (values[..., :2] - wanted).abs()
        if self.loss_name == "l1":
            return apart
        if self.loss_name == "l2":
            return apart.square()
        if self.loss_name == "wing":
            return wing_loss(apart * SIDE, *self.wing)
        assert self.flow is not None
        return residual_likelihood(values[..., :2] - wanted, values[..., 2:].sigmoid(), self.flow)

    def mean_of_mirrored(self, made: Tensor, mirrored: Tensor) -> Tensor:
        back = mirrored[:, swapped(mirrored.shape[1], self.labels.swaps)]
        return (made + torch.cat((1 - back[..., :1], back[..., 1:]), -1)) / 2

    def in_images(self, made: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        return pixels(made[..., :2], whole_images(batch.info, made)), self.scores(made)

    def in_boxes(self, made: Tensor) -> tuple[Tensor, Tensor]:
        return made[..., :2], self.scores(made)

    def scores(self, values: Tensor) -> Tensor:
        """(n, K): 1 less the mean scale of a keypoint's coordinates; 1 where no scale is learnt."""
        return 1 - values[..., 2:].sigmoid().mean(-1) if self.loss_name == "rle" else torch.ones_like(values[..., 0])


def wing_loss(apart: Tensor, width: float, curvature: float) -> Tensor:
    """``width log(1 + d / curvature)`` of distances below ``width``, a straight line beyond (Feng et al., CVPR 2018,
    equation 5)."""
    inner = width * torch.log1p(apart / curvature)
    return torch.where(apart < width, inner, apart - width + width * math.log1p(width / curvature))


def residual_likelihood(error: Tensor, scale: Tensor, flow: RealNVP) -> Tensor:
    """Negative log-likelihood of each coordinate: a Laplace density, times the density that a flow learns, of the error
    in scales (Li et al., ICCV 2021, equation 11).

    The flow's density is one of both coordinates; as in the authors' code, each of them pays for all of it. Scales then
    tell keypoints apart, but grow with training and are no distances. With half of it each, they are; but on few images
    the errors are half as large again: what is hard is then given up for a large scale.

    Args:
        error, scale: (n, K, 2) in shares of the box.
        flow: density of (error / scale).
    """
    scaled = error / (scale + 1e-9)
    residual = scale.log() - flow.log_density(scaled)[..., None]
    return residual + (2 * scale).log() + scaled.abs()
