"""CenterNet (Zhou et al., "Objects as Points", 2019): an object is the peak of a heatmap at its centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.layers.heatmaps import (
    RadiusFormula,
    at_cells,
    cell_points,
    draw_gaussians,
    gaussian_radius,
    heatmap_focal_sum,
    top_peaks,
)
from visionkit.numbers import FractionBelowOne, NonNegative, OddPositive, OpenFraction, Positive, PositiveFraction
from visionkit.types import (
    Batch,
    BoxPrediction,
    Detections,
    Features,
    FeatureSpec,
    InstanceTarget,
    LabelSet,
    Mean,
)
from visionkit_points.maps import Maps, cells_of, largest, objects_in, outside_crowds, pad_rows, stride_of
from visionkit_points.output import PointOutput, within


@dataclass(frozen=True)
class Centres:
    """What a batch is learnt from, in cells.

    Attributes:
        heat: (B, classes, h, w) with Gaussians.
        counted: (B, 1, h, w), 0 in crowds.
        cells: (B, n) of ``y * w + x``, the cell of each centre.
        real: (B, n), whether there is an object, or only padding.
        offsets: (B, n, 2) of x and y, of the centre in its cell.
        sizes: (B, n, 2) of width and height.
        labels: (B, n).
        index: (B, n), where each object stands in its target.
    """

    heat: Tensor
    counted: Tensor
    cells: Tensor
    real: Tensor
    offsets: Tensor
    sizes: Tensor
    labels: Tensor
    index: Tensor


class CenterNet(Head):
    """Heatmaps of centres, and at each centre the size of the box and where in the cell the centre lies.

    There are no anchors and no suppression of overlapping boxes: every object has one cell, and a detection is a cell
    that is the largest of its 3 x 3 neighbours. Radii, losses and decoding are those of the authors' code.

    Args:
        levels: one level, or the output of each stack of an hourglass; all are supervised, the last one predicts.
        hidden: width of each branch.
        class_sizes: a size for each class instead of one for all.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        weights: of the losses of heatmap, size and offset.
        peak: side of the neighbourhood that a peak is the largest of.
        detections: the most an image.
        score: detections up to it are dropped.
        region_iou: IoU with an object from which a detection is one, for branches that learn from it.
    """

    task = "boxes"
    makes = BoxPrediction
    output = PointOutput
    loss_names = ("heat", "size", "offset")
    evaluators = ("coco_bbox",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p2",),
        hidden: Positive = 64,
        class_sizes: bool = False,
        overlap: OpenFraction = 0.7,
        radius: RadiusFormula = "original",
        weights: tuple[NonNegative, NonNegative, NonNegative] = (1.0, 0.1, 1.0),
        peak: OddPositive = 3,
        detections: Positive = 100,
        score: FractionBelowOne = 0.0,
        region_iou: PositiveFraction = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        self.levels, self.stride = levels, stride_of(spec, levels)
        channels = {"heat": len(labels), "size": 2 * (len(labels) if class_sizes else 1), "offset": 2}
        self.maps = nn.ModuleList(Maps(spec[level].channels, hidden, channels) for level in levels)
        self.class_sizes, self.overlap, self.radius = class_sizes, overlap, radius
        self.weights = dict(zip(("heat", "size", "offset"), weights))
        self.peak, self.max_detections, self.score, self.region_iou = peak, detections, score, region_iou

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PointOutput:
        return PointOutput.of(self, [maps(features[level]) for maps, level in zip(self.maps, self.levels)], batch)

    def losses(self, output: PointOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        aim = centres_of(
            batch.targets, self.stride, tuple(output.stacks[0]["heat"].shape[1:]), self.overlap, self.radius
        )
        return stack_mean([self._losses(maps, aim) for maps in output.stacks], self.weights)

    def _losses(self, maps: Mapping[str, Tensor], aim: Centres) -> dict[str, Mean]:
        sizes = at_cells(maps["size"], aim.cells)
        if self.class_sizes:
            sizes = of_class(sizes, aim.labels)
        return {
            "heat": heat_loss(maps["heat"], aim),
            "size": l1_loss(sizes, aim.sizes, aim.real),
            "offset": l1_loss(at_cells(maps["offset"], aim.cells), aim.offsets, aim.real),
        }

    @torch.no_grad()
    def predict(self, output: PointOutput, batch: Batch) -> list[BoxPrediction]:
        return [
            BoxPrediction(info.boxes_to_original(found.boxes), found.scores, found.labels)
            for info, found in zip(batch.info, output.detections())
        ]

    @torch.no_grad()
    def detect(self, output: PointOutput) -> list[Detections]:
        """Boxes of the highest peaks of the last stack, within the image."""
        boxes, scores, labels = decode_centres(
            output.stacks[-1], self.max_detections, peak=self.peak, class_sizes=self.class_sizes
        )
        return within(boxes * self.stride, scores, labels, output.info, self.score)


def centres_of(
    targets: Sequence[InstanceTarget],
    stride: int,
    shape: tuple[int, ...],
    overlap: float = 0.7,
    radius: RadiusFormula = "original",
    sigmas: float = 6.0,
) -> Centres:
    """What centres are learnt from.

    Args:
        targets: in input pixels.
        stride: input pixels a cell.
        shape: (classes, h, w) of the heatmap.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        sigmas: see :func:`visionkit.layers.heatmaps.draw_gaussians`.
    """
    classes, height, width = shape
    heat, cells, offsets, sizes, labels, index = [], [], [], [], [], []
    everything = objects_in(targets, stride, (height, width))
    radii = [whole_radii(objects.sizes, overlap, radius) for objects in everything]
    for objects, own, reach in zip(everything, radii, largest(radii)):
        at = cells_of(objects.centres, (height, width))
        heat.append(draw_gaussians((classes, height, width), objects.labels, at, own, sigmas=sigmas, reach=reach))
        cells.append(at[:, 1] * width + at[:, 0])
        offsets.append(objects.centres - at)
        sizes.append(objects.sizes)
        labels.append(objects.labels)
        index.append(objects.index)
    counted = torch.stack([outside_crowds(target, stride, (height, width)) for target in targets])[:, None]
    cells_, real = pad_rows(cells)
    rest = [pad_rows(rows)[0] for rows in (offsets, sizes, labels, index)]
    return Centres(torch.stack(heat), counted, cells_, real, *rest)


def whole_radii(sizes: Tensor, overlap: float, formula: RadiusFormula) -> Tensor:
    """Radii (N,) int64 of boxes (N, 2) of width and height, both rounded up first, as the authors do."""
    return gaussian_radius(sizes.ceil().flip(-1), overlap, formula).clamp(min=0).floor().long()


def heat_loss(logits: Tensor, aim: Centres) -> Mean:
    """Focal loss a centre; where there is none, the loss of the background itself."""
    return Mean(heatmap_focal_sum(logits, aim.heat, aim.counted), (aim.heat == 1).sum())


def l1_loss(values: Tensor, aims: Tensor, real: Tensor) -> Mean:
    """Mean distance over what is real, (B, n), and its coordinates: the authors' code; the paper sums over them."""
    distance = (values - aims).abs() * real[..., None]
    return Mean(distance.sum(), real.sum() * values.shape[-1])


def stack_mean(stacks: Sequence[Mapping[str, Mean]], weights: Mapping[str, float]) -> dict[str, Tensor | Mean]:
    """The weighted losses of all stacks, as a mean over the stacks."""
    return {
        name: Mean(torch.stack([losses[name].total for losses in stacks]).mean() * weights[name], first.count)
        for name, first in stacks[0].items()
    }


def of_class(sizes: Tensor, labels: Tensor) -> Tensor:
    """Of pairs for every class, (B, n, 2 classes), those of ``labels`` (B, n): (B, n, 2)."""
    return sizes.unflatten(2, (-1, 2)).gather(2, labels[:, :, None, None].expand(-1, -1, 1, 2))[:, :, 0]


def decode_centres(
    maps: Mapping[str, Tensor], count: int, *, peak: int = 3, class_sizes: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, n, 4) in cells, their scores and labels (B, n), best first.

    Args:
        maps: ``heat`` (B, classes, h, w) logits, ``size`` (B, 2, h, w) or, with ``class_sizes``, (B, 2 classes, h, w),
            and ``offset`` (B, 2, h, w); without that one a centre is the middle of its cell.
        count: how many are found.
        peak: side of the neighbourhood that a peak is the largest of.
    """
    logits, labels, cells = top_peaks(maps["heat"], count, peak)
    return boxes_at(maps, cells, labels if class_sizes else None), logits.sigmoid(), labels


def boxes_at(maps: Mapping[str, Tensor], cells: Tensor, labels: Tensor | None = None) -> Tensor:
    """Boxes (B, n, 4) in cells around the centres in ``cells`` (B, n); with ``labels`` (B, n), of their own classes."""
    centres = cell_points(cells, maps["heat"].shape[3])
    centres = centres + (at_cells(maps["offset"], cells) if "offset" in maps else 0.5)
    sizes = at_cells(maps["size"], cells)
    half = (sizes if labels is None else of_class(sizes, labels)) / 2
    return torch.cat((centres - half, centres + half), 2)
