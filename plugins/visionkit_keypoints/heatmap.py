"""Keypoints as peaks of heatmaps (Xiao et al., "Simple Baselines", ECCV 2018; Newell et al., ECCV 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.errors import UserError
from visionkit.layers.keypoint_maps import Decoding, Encoding, keypoint_maps, keypoint_peaks, mirrored_maps
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
class HeatmapOutput(Output):
    """Heatmaps of whole images; or, where boxes are read, what heatmaps in these are made from.

    Attributes:
        maps: one of each level, (B, K, h, w) float32; none where boxes are read.
        features: level -> (B, C, h, w), where boxes are read.
        regions: the boxes.
        mirrored: the features of the mirrored images.
    """

    maps: tuple[Tensor, ...]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    regions: RegionOutput | None = None
    mirrored: Mapping[str, Tensor] = field(default_factory=dict)


class KeypointHeatmap(Head):
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

    task = "keypoints"
    makes = KeypointPrediction
    output = HeatmapOutput
    may_read = {"regions": RegionOutput}
    loss_names = ("heatmap",)
    evaluators = ("coco_keypoints",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("c5",),
        deconvs: tuple[int, ...] = (256, 256, 256),
        last: bool = True,
        sigma: float = 2.0,
        encoding: Encoding = "nearest",
        decoding: Decoding = "quarter",
        flip_test: bool = False,
        weight: float = 1.0,
        keypoint_score: float = 0.2,
        pool_size: int = 14,
        sampling_ratio: int = 2,
        aligned: bool = True,
        canonical_size: float = 224.0,
        padding: float = 1.25,
    ) -> None:
        super().__init__(spec, labels)
        if not labels.keypoints:
            raise ValueError(f"the labels of a keypoint head ({', '.join(labels.names)}) must name keypoints")
        self.levels, self.spec, self.mirrors = tuple(levels), spec, flip_test
        self.sigma, self.encoding, self.decoding = sigma, encoding, decoding
        self.weight, self.keypoint_score, self.padding = weight, keypoint_score, padding
        one_stride = len({spec[level].stride for level in levels}) == 1
        count = len(labels.keypoints)
        self.towers = nn.ModuleList(
            tower(spec[level].channels, deconvs, count, last) for level in (levels if one_stride else levels[:1])
        )
        self.grown = 2 ** len(deconvs)
        self.pool_options: dict[str, Any] = {
            "size": pool_size, "sampling_ratio": sampling_ratio, "aligned": aligned, "canonical_size": canonical_size
        }  # fmt: skip
        self.pool: RegionPool | None = None

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        if "regions" in port_labels:
            self.pool = RegionPool(self.spec, self.levels, **self.pool_options)
        elif len(self.towers) < len(self.levels):
            strides = ", ".join(f"{level} {self.spec[level].stride}" for level in self.levels)
            raise UserError(f"levels: without boxes to read (reads: {{regions: HEAD}}), one level or several of one "
                            f"stride are read, not {strides}")  # fmt: skip

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> HeatmapOutput:
        if "regions" in upstream:
            return HeatmapOutput((), {level: features[level] for level in self.levels}, upstream["regions"])
        return HeatmapOutput(
            tuple(tower(features[level]).float() for tower, level in zip(self.towers, self.levels))
        )  # fmt: skip

    def in_boxes(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """Heatmaps (n, K, h, w) in boxes (n, 4) of input pixels, image after image."""
        assert self.pool is not None
        return self.towers[0](self.pool(features, boxes)).float()

    def losses(self, output: HeatmapOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        count = len(self.labels.keypoints)
        if output.regions is None:
            learnt = in_whole_images(batch, count)
            stacks = [maps[learnt.rows] for maps in output.maps]
            return self._loss(stacks, self.cells(learnt, output.maps[-1]), sum(maps.sum() for maps in output.maps))
        learnt = in_regions(output.regions, batch, count, self.padding)
        boxes = [learnt.boxes[learnt.rows == row] for row in range(len(batch))]
        maps = self.in_boxes(output.features, boxes)
        size = maps.new_tensor((maps.shape[3], maps.shape[2], 1))
        return self._loss([maps], learnt.keypoints * size, maps.sum())

    def cells(self, learnt: Learnt, maps: Tensor) -> Tensor:
        """Keypoints (n, K, 3) in cells of heatmaps of whole images."""
        stride = self.stride
        sides = (learnt.boxes[:, 2:] - learnt.boxes[:, :2])[:, None] / stride
        return torch.cat((learnt.keypoints[..., :2] * sides, learnt.keypoints[..., 2:]), -1)

    @property
    def stride(self) -> float:
        """Input pixels a cell of heatmaps of whole images."""
        return self.spec[self.levels[0]].stride / self.grown

    def _loss(self, stacks: Sequence[Tensor], keypoints: Tensor, joined: Any) -> dict[str, Tensor | Mean]:
        """Half the squared error, a mean over the cells of a keypoint's map and over keypoints; that of all stacks is
        added up. Maps of keypoints that are not labelled cost nothing, but are counted, as the authors do.

        ``joined`` keeps the graph where there is nothing to learn from.
        """
        height, width = stacks[0].shape[2:]
        if (seen := stacks[0].shape[1]) != (count := len(self.labels.keypoints)):
            raise UserError(f"last: false makes heatmaps of {seen} channels for {count} keypoints; the features must "
                            "have one for each")  # fmt: skip
        wanted, weights = keypoint_maps(keypoints, (height, width), self.sigma, self.encoding)
        errors = [((maps - wanted).square().mean((2, 3)) * weights).sum() for maps in stacks]
        total = torch.stack(errors).sum() * (self.weight / 2)
        return {"heatmap": Mean(total + 0.0 * joined, weights.numel())}

    def join_mirrored(self, output: HeatmapOutput, mirrored: HeatmapOutput, batch: Batch) -> HeatmapOutput:
        if output.regions is not None:
            return replace(output, mirrored=mirrored.features)
        swaps = self.labels.swaps
        joined = output.maps[-1].clone()
        for row, info in enumerate(batch.info):
            width = round(info.size[1] / self.stride)
            seen = mirrored_maps(mirrored.maps[-1][row : row + 1, :, :, :width], swaps)
            joined[row : row + 1, :, :, :width] = (joined[row : row + 1, :, :, :width] + seen) / 2
        return replace(output, maps=(*output.maps[:-1], joined))

    @torch.no_grad()
    def predict(self, output: HeatmapOutput, batch: Batch) -> list[KeypointPrediction]:
        if output.regions is not None:
            return self._predict_boxes(output, output.regions, batch)
        maps = output.maps[-1].clone()
        for row, info in enumerate(batch.info):  # nothing is looked for in the padding
            height, width = (max(1, round(side / self.stride)) for side in info.size)
            maps[row, :, height:], maps[row, :, :, width:] = -1.0, -1.0
        points, scores = keypoint_peaks(maps, self.decoding, self.sigma)
        return of_crops(batch, points * self.stride, scores.clamp(0, 1), self.labels, self.keypoint_score)

    def _predict_boxes(self, output: HeatmapOutput, regions: RegionOutput, batch: Batch) -> list[KeypointPrediction]:
        found = regions.detections_for(self.labels)
        boxes = [padded(f.boxes, self.padding) for f in found]
        maps = self.in_boxes(output.features, boxes)
        if output.mirrored:
            there = [mirrored_boxes(own, info.size[1]) for own, info in zip(boxes, batch.info)]
            maps = (maps + mirrored_maps(self.in_boxes(output.mirrored, there), self.labels.swaps)) / 2
        points, scores = keypoint_peaks(maps, self.decoding, self.sigma)
        points = pixels(points / maps.new_tensor((maps.shape[3], maps.shape[2])), torch.cat(boxes))
        counts = [len(f.boxes) for f in found]
        return [
            prediction(info, f, info.boxes_to_original(f.boxes), own, values.clamp(0, 1), self.keypoint_score)
            for info, f, own, values in zip(batch.info, found, points.split(counts), scores.split(counts))
        ]


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
