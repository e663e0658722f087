"""Keypoints as peaks of heatmaps (Xiao et al., "Simple Baselines", ECCV 2018; Newell et al., ECCV 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.keypoint_maps import Decoding, Encoding, keypoint_maps, keypoint_peaks, mirrored_maps
from visionkit.numbers import Count, FractionBelowOne, OnlyWith, Positive, PositiveFloat, Widths
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean
from visionkit.types.device import constant
from visionkit_keypoints.crops import CropHead, PoolOptions
from visionkit_keypoints.persons import Learnt


class KeypointHeatmap(CropHead):
    """A heatmap a keypoint, by transposed convolutions and a last 1 x 1 one.

    Every image shows one object (the source ``objects`` and the transform ``crop_object`` see to it), and the heatmaps
    are of the whole image. With ``reads: {regions: HEAD}`` they are of the boxes that another head finds, out of the
    features that both share.

    Args:
        levels: one level; several of one stride (the stacks of an hourglass), each of which makes heatmaps, is
            supervised, and the last one predicts; or, where boxes are read, the levels of a pyramid.
        deconvs: widths of the 4 x 4 transposed convolutions of stride 2, with batch norm and ReLU.
        last: whether a 1 x 1 convolution makes the heatmaps; without it the features are the heatmaps, a channel a
            keypoint.
        sigma: of the Gaussians, in cells.
        encoding: see :func:`~visionkit.layers.keypoint_maps.keypoint_maps`.
        decoding: see :func:`~visionkit.layers.keypoint_maps.keypoint_peaks`.
        flip_test: predict from the image and its mirror image.
        weight: of the loss.
        keypoint_score: keypoints that score no more do not count for the score of their object.
        pool_size, sampling_ratio, aligned, canonical_size: see :class:`~visionkit.layers.roi.RegionPool`; where boxes
            are read.
        padding: factor by which boxes that are read are enlarged.

    Raises:
        ValueError: the labels have no keypoints.
        UserError: levels that do not fit; in a batch to learn from, features that cannot be heatmaps.
    """

    loss_names = ("heatmap",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("c5",),
        deconvs: Widths = (256, 256, 256),
        last: bool = True,
        sigma: PositiveFloat = 2.0,
        encoding: Encoding = "nearest",
        decoding: Decoding = "quarter",
        flip_test: bool = False,
        weight: PositiveFloat = 1.0,
        keypoint_score: FractionBelowOne = 0.2,
        pool_size: Annotated[Positive, OnlyWith("reads")] = 14,
        sampling_ratio: Annotated[Count, OnlyWith("reads")] = 2,
        aligned: Annotated[bool, OnlyWith("reads")] = True,
        canonical_size: Annotated[PositiveFloat, OnlyWith("reads")] = 224.0,
        padding: Annotated[PositiveFloat, OnlyWith("reads")] = 1.25,
    ) -> None:
        pool = PoolOptions(pool_size, sampling_ratio, aligned, canonical_size)
        super().__init__(
            spec, labels, levels, flip_test=flip_test, keypoint_score=keypoint_score, pool=pool, padding=padding
        )
        self.sigma, self.encoding, self.decoding, self.weight = sigma, encoding, decoding, weight
        one_stride = len({spec[level].stride for level in levels}) == 1
        count = len(labels.keypoints)
        self.towers = nn.ModuleList(
            tower(spec[level].channels, deconvs, count, last) for level in (levels if one_stride else levels[:1])
        )
        self.stride = spec[levels[0]].stride / 2 ** len(deconvs)
        """Input pixels a cell of heatmaps of whole images."""

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        if self.pool is None and len(self.towers) < len(self.levels):
            strides = ", ".join(f"{level} {self.spec[level].stride}" for level in self.levels)
            raise UserError(f"levels: without boxes to read (reads: {{regions: HEAD}}), one level or several of one "
                            f"stride are read, not {strides}")  # fmt: skip

    def of_images(self, features: Features, batch: Batch) -> tuple[Tensor, ...]:
        """Heatmaps (B, K, h, w) of every level, float32."""
        return tuple(tower(features[level]).float() for tower, level in zip(self.towers, self.levels))

    def of_pooled(self, pooled: Tensor) -> Tensor:
        """Heatmaps (n, K, h, w) of boxes, float32."""
        return self.towers[0](pooled).float()  # type: ignore[no-any-return]

    def loss(self, made: Sequence[Tensor], learnt: Learnt, *, whole: bool) -> dict[str, Mean]:
        """Half the squared error, a mean over the cells of a keypoint's map and over keypoints; that of all levels is
        added up. Maps of keypoints that are not labelled cost nothing, but are counted, as the authors do."""
        height, width = made[0].shape[2:]
        if (seen := made[0].shape[1]) != (count := len(self.labels.keypoints)):
            raise UserError(f"last: false makes heatmaps of {seen} channels for {count} keypoints; the features must "
                            "have one for each")  # fmt: skip
        cells = constant((width, height), learnt.keypoints)
        if whole:  # without the padding
            cells = (learnt.boxes[:, None, 2:] - learnt.boxes[:, None, :2]) / self.stride
        keypoints = torch.cat((learnt.keypoints[..., :2] * cells, learnt.keypoints[..., 2:]), -1)
        wanted, weights = keypoint_maps(keypoints, (height, width), self.sigma, self.encoding)
        errors = [((maps - wanted).square().mean((2, 3)) * weights).sum() for maps in made]
        return {"heatmap": Mean(torch.stack(errors).sum() * (self.weight / 2), weights.numel())}

    def mean_of_mirrored(self, made: Tensor, mirrored: Tensor) -> Tensor:
        return (made + mirrored_maps(mirrored, self.labels.swaps)) / 2

    def mean_of_mirrored_images(self, made: Tensor, mirrored: Tensor, batch: Batch) -> Tensor:
        joined = made.clone()
        for row, info in enumerate(batch.info):
            mine = (slice(row, row + 1), ..., slice(round(info.size[1] / self.stride)))
            joined[mine] = self.mean_of_mirrored(made[mine], mirrored[mine])
        return joined

    def in_images(self, made: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        made = made.clone()
        for row, info in enumerate(batch.info):  # nothing is looked for in the padding
            height, width = (max(1, round(side / self.stride)) for side in info.size)
            made[row, :, height:], made[row, :, :, width:] = -1.0, -1.0
        points, scores = keypoint_peaks(made, self.decoding, self.sigma)
        return points * self.stride, scores.clamp(0, 1)

    def in_boxes(self, made: Tensor) -> tuple[Tensor, Tensor]:
        points, scores = keypoint_peaks(made, self.decoding, self.sigma)
        return points / constant((made.shape[3], made.shape[2]), made), scores.clamp(0, 1)


def tower(inputs: int, deconvs: Sequence[int], outputs: int, last: bool) -> nn.Sequential:
    """Features to heatmaps."""
    layers: list[nn.Module] = []
    for width in deconvs:
        grow = nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1, bias=False)
        nn.init.normal_(grow.weight, std=0.001)
        layers += [grow, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    if last:
        conv = nn.Conv2d(inputs, outputs, 1)
        nn.init.normal_(conv.weight, std=0.001)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers.append(conv)
    return nn.Sequential(*layers)
