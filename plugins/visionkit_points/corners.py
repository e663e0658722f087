"""Objects as pairs of corners: the branches that find them, what they learn from, and which belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.layers.boxes import soft_nms
from visionkit.layers.conv import ConvNormAct
from visionkit.layers.corner_pool import Side, centre_pool, corner_pool
from visionkit.layers.heatmaps import (
    RadiusFormula,
    at_cells,
    cell_points,
    draw_gaussians,
    heatmap_focal_sum,
    top_peaks,
)
from visionkit.types import Detections, InstanceTarget, Mean
from visionkit_points.centernet import whole_radii
from visionkit_points.maps import Maps, cells_of, largest, objects_in, outside_crowds, pad_rows

Kind = Literal["tl", "br", "ct"]
"""Of points: top left and bottom right corners, and centres."""
CORNERS: dict[Kind, tuple[Side, Side]] = {"tl": ("top", "left"), "br": ("bottom", "right")}


class Pooling(nn.Module):
    """Features in which a point is told by what lies in its row and in its column.

    Two 3 x 3 convolutions are pooled, one down and one across, added, and joined with a shortcut.

    Args:
        channels: in and out.
        hidden: of what is pooled.
        at: ``"tl"`` or ``"br"`` for corner pooling, ``"ct"`` for centre pooling.
        cascade: a corner looks inwards too, by pooling the other way first (Duan et al., ICCV 2019, section 3.3).
    """

    def __init__(self, channels: int, hidden: int, at: Kind, *, cascade: bool = False) -> None:
        super().__init__()
        self.sides = CORNERS.get(at)
        self.down = ConvNormAct(channels, hidden, norm="batch")
        self.across = ConvNormAct(channels, hidden, norm="batch")
        self.inward = nn.ModuleList(Inward(channels, hidden) for _ in range(2 if cascade else 0))
        self.join = ConvNormAct(hidden, channels, norm="batch", act=False)
        self.skip = ConvNormAct(channels, channels, 1, norm="batch", act=False)
        self.last = ConvNormAct(channels, channels, norm="batch")

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.down(x), self.across(x)
        if self.sides is None:
            pooled = centre_pool(down, across)
        else:
            first, second = self.sides
            if len(self.inward):
                down, across = self.inward[0](x, down, second), self.inward[1](x, across, first)
            pooled = corner_pool(down, first) + corner_pool(across, second)
        return self.last(F.relu(self.join(pooled) + self.skip(x)))


class Inward(nn.Module):
    """What is pooled, with what a pooling the other way has seen added to it."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.look = ConvNormAct(channels, hidden, norm="batch")
        self.join = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)

    def forward(self, x: Tensor, edge: Tensor, side: Side) -> Tensor:
        return self.join(edge + corner_pool(self.look(x), side))


class PointMaps(nn.Module):
    """Pooled features and the maps on them.

    Shape: (B, channels, h, w) -> ``AT_heat``, ``AT_offset`` and, for corners, ``AT_tag``, each (B, C, h, w) float32.
    """

    def __init__(self, channels: int, hidden: int, classes: int, at: Kind, *, cascade: bool = False) -> None:
        super().__init__()
        outputs = {"heat": classes, "offset": 2} | ({"tag": 1} if at in CORNERS else {})
        self.at = at
        self.pool = Pooling(channels, hidden, at, cascade=cascade)
        self.maps = Maps(channels, channels, outputs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"{self.at}_{name}": values for name, values in self.maps(self.pool(x)).items()}


@dataclass(frozen=True)
class Points:
    """What points of one kind are learnt from: (B, classes, h, w), and (B, n) a cell, (B, n, 2) an offset."""

    heat: Tensor
    cells: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class PointTargets:
    """What a batch is learnt from.

    Attributes:
        points: by name, ``tl``, ``br``, ``ct``.
        real: (B, n), whether there is an object, or only padding.
        counted: (B, 1, h, w), 0 in crowds.
    """

    points: Mapping[str, Points]
    real: Tensor
    counted: Tensor


def points_of(
    targets: Sequence[InstanceTarget],
    stride: int,
    shape: tuple[int, ...],
    overlap: float,
    radius: RadiusFormula,
    sigmas: Mapping[str, float],
) -> PointTargets:
    """What corners and centres are learnt from.

    Args:
        targets: in input pixels.
        stride: input pixels a cell.
        shape: (classes, h, w) of the heatmaps.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        sigmas: for each kind of point, how many standard deviations the diameter of its Gaussian has.
    """
    classes, height, width = shape
    grid = (height, width)
    objects = objects_in(targets, stride, grid)
    radii = [whole_radii(own.sizes, overlap, radius) for own in objects]
    reach = largest(radii)
    found = {}
    for at, spread in sigmas.items():
        exact = [own.boxes[:, :2] if at == "tl" else own.boxes[:, 2:] if at == "br" else own.centres for own in objects]
        cells = [cells_of(points, grid) for points in exact]
        heat = [
            draw_gaussians((classes, height, width), own.labels, at_, r, sigmas=spread, reach=largest_radius)
            for own, at_, r, largest_radius in zip(objects, cells, radii, reach)
        ]
        index, _ = pad_rows([c[:, 1] * width + c[:, 0] for c in cells])
        offsets, _ = pad_rows([points - c for points, c in zip(exact, cells)])
        found[at] = Points(torch.stack(heat), index, offsets)
    _, real = pad_rows([own.labels for own in objects])
    counted = torch.stack([outside_crowds(target, stride, grid) for target in targets])[:, None]
    return PointTargets(found, real, counted)


def point_losses(maps: Mapping[str, Tensor], aim: PointTargets) -> dict[str, Mean]:
    """Losses of one stack (Law & Deng, ECCV 2018, equations 1 to 5), each summed over the kinds of points."""
    objects = aim.real.sum()
    heat = [heatmap_focal_sum(maps[f"{at}_heat"], own.heat, aim.counted) for at, own in aim.points.items()]
    offset = [
        offset_sum(at_cells(maps[f"{at}_offset"], own.cells), own.offsets, aim.real) for at, own in aim.points.items()
    ]
    first, second = (at_cells(maps[f"{at}_tag"], aim.points[at].cells)[..., 0] for at in CORNERS)
    pull, push = pull_push(first, second, aim.real)
    images = aim.real.any(1).sum()
    return {
        "heat": Mean(torch.stack(heat).sum(), objects),
        "pull": Mean(pull.sum(), images),
        "push": Mean(push.sum(), images),
        "offset": Mean(torch.stack(offset).sum(), objects),
    }


def offset_sum(values: Tensor, aims: Tensor, real: Tensor) -> Tensor:
    """Smooth L1 summed over both coordinates of what is real, (B, n)."""
    return (F.smooth_l1_loss(values, aims, reduction="none") * real[..., None]).sum()


def pull_push(first: Tensor, second: Tensor, real: Tensor, margin: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses of embeddings of each image, (B,): mean over its objects, and mean over its ordered pairs of objects.

    The two corners of an object are pulled to their mean, the means of different objects pushed apart by ``margin``.
    In newer versions of torch the second one is always 0 in the authors' code, which adds masks of truth values.

    Args:
        first, second: (B, n) embeddings of both corners.
        real: (B, n), whether there is an object.
        margin: see above.
    """
    count = real.sum(1)
    mean = (first + second) / 2
    apart = (first - mean).square() + (second - mean).square()
    pull = (apart * real).sum(1) / count.clamp(min=1)
    pairs = real[:, :, None] & real[:, None, :] & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    near = (margin - (mean[:, :, None] - mean[:, None, :]).abs()).clamp(min=0)
    push = (near * pairs).sum((1, 2)) / (count * (count - 1)).clamp(min=1)
    return pull, push


@dataclass(frozen=True)
class Pairs:
    """Pairs of corners, best first: boxes (B, n, 4) in cells, scores and labels (B, n); a score of -1 is no pair."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def decode_points(maps: Mapping[str, Tensor], at: str, count: int, peak: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best points of a kind: x and y (B, n, 2) in cells, scores, labels and cells (B, n)."""
    logits, labels, cells = top_peaks(maps[f"{at}_heat"], count, peak)
    points = cell_points(cells, maps[f"{at}_heat"].shape[3])
    if f"{at}_offset" in maps:
        points = points + at_cells(maps[f"{at}_offset"], cells)
    return points, logits.sigmoid(), labels, cells


def decode_pairs(
    maps: Mapping[str, Tensor], count: int, *, peak: int = 3, distance: float = 0.5, most: int = 1000
) -> Pairs:
    """Corners that belong together: of one class, with embeddings that are near, top left before bottom right.

    Args:
        maps: ``tl_heat``, ``br_heat`` (B, classes, h, w) logits, ``tl_tag``, ``br_tag`` (B, 1, h, w), ``tl_offset``,
            ``br_offset`` (B, 2, h, w), which may be missing.
        count: how many corners of each kind are looked at.
        peak: side of the neighbourhood that a corner is the largest of.
        distance: the most by which embeddings of a pair differ.
        most: the best so many pairs are returned.
    """
    first, first_scores, labels, first_cells = decode_points(maps, "tl", count, peak)
    second, second_scores, others, second_cells = decode_points(maps, "br", count, peak)
    tags = at_cells(maps["tl_tag"], first_cells) - at_cells(maps["br_tag"], second_cells)[..., 0][:, None]
    ordered = (second[:, None] >= first[:, :, None]).all(3)
    fits = (labels[:, :, None] == others[:, None]) & (tags.abs() <= distance) & ordered
    scores = (first_scores[:, :, None] + second_scores[:, None]) / 2
    scores, best = scores.masked_fill(~fits, -1.0).flatten(1).topk(min(most, fits[0].numel()))
    one, other = best // fits.shape[2], best % fits.shape[2]
    boxes = torch.cat((_pick(first, one), _pick(second, other)), 2)
    return Pairs(boxes, scores, labels.gather(1, one))


def _pick(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 2))


def thin_out(found: Detections, nms: float, most: int) -> Detections:
    """The best ``most`` after Gaussian soft-NMS of this width; 0 leaves scores as they are."""
    if nms <= 0:
        best = found.scores.argsort(descending=True)[:most]
        return Detections(found.boxes[best], found.scores[best], found.labels[best])
    kept, scores = soft_nms(found.boxes, found.scores, found.labels, method="gaussian", sigma=nms, most=most)
    return Detections(found.boxes[kept], scores, found.labels[kept])
