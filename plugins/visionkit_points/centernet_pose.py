"""CenterNet's poses (Zhou et al., "Objects as Points", 2019, section 4.2): keypoints as offsets from the centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Len
from torch import Tensor, nn

from visionkit import Head
from visionkit.errors import UserError
from visionkit.layers.heatmaps import (
    RadiusFormula,
    at_cells,
    cell_points,
    draw_gaussians,
    heatmap_focal_sum,
    local_maxima,
    top_peaks,
)
from visionkit.numbers import (
    FractionBelowOne,
    NonNegative,
    OddPositive,
    OpenFraction,
    Positive,
    PositiveFloat,
    PositiveFraction,
)
from visionkit.types import (
    Batch,
    Detections,
    Features,
    FeatureSpec,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    Mean,
)
from visionkit.types.device import true_rows
from visionkit_points.centernet import Centres, boxes_at, centres_of, heat_loss, l1_loss, stack_mean, whole_radii
from visionkit_points.maps import Maps, cells_of, largest, objects_in, pad_rows, stride_of
from visionkit_points.output import PointOutput, clipped

NEARLY = 0.9999
"""What a centre without any labelled keypoint is drawn as: not an object to learn from, nor background."""


@dataclass(frozen=True)
class Poses(Detections):
    """Boxes with keypoints (n, K, 3): x, y in input pixels, and a score."""

    keypoints: Tensor


@dataclass(frozen=True)
class Joints:
    """What the keypoints of a batch are learnt from, in cells.

    Attributes:
        heat: (B, K, h, w) with Gaussians.
        cells: (B, n, K) of ``y * w + x``, the cell of each keypoint.
        seen: (B, n, K), whether it is labelled and lies on the map.
        offsets: (B, n, K, 2) of x and y, of the keypoint in its cell.
        moves: (B, n, K, 2), from the cell of the object's centre to the keypoint.
    """

    heat: Tensor
    cells: Tensor
    seen: Tensor
    offsets: Tensor
    moves: Tensor


class CenterNetPose(Head):
    """Boxes by their centres, the keypoints of each as offsets from there, and heatmaps of keypoints by themselves.

    A keypoint that was found by its offset moves to the nearest peak of its own heatmap, if there is one in the box.
    Radii, losses and decoding are those of the authors' code: objects without a labelled keypoint are not learnt from,
    and are no background either.

    Args:
        levels: one level, or the output of each stack of an hourglass; all are supervised, the last one predicts.
        hidden: width of each branch.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
        weights: of the losses, in the order of ``heat``, ``size``, ``offset``, ``joints``, ``joint_heat`` and
            ``joint_offset``.
        peak: side of the neighbourhood that a peak is the largest of.
        joint_score: peaks of keypoints below it don't count.
        reach: how far a keypoint may move to a peak, in shares of the longer side of the box.
        detections: the most an image.
        score: detections up to it are dropped.
        region_iou: IoU with an object from which a detection is one, for branches that learn from it.

    Raises:
        UserError: the labels have no keypoints.
    """

    task = "keypoints"
    makes = KeypointPrediction
    output = PointOutput
    loss_names = ("heat", "size", "offset", "joints", "joint_heat", "joint_offset")
    evaluators = ("coco_keypoints",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p2",),
        hidden: Positive = 64,
        overlap: OpenFraction = 0.7,
        radius: RadiusFormula = "original",
        weights: Annotated[tuple[NonNegative, ...], Len(6, 6)] = (1.0, 0.1, 1.0, 1.0, 1.0, 1.0),
        peak: OddPositive = 3,
        joint_score: FractionBelowOne = 0.1,
        reach: PositiveFloat = 0.3,
        detections: Positive = 100,
        score: FractionBelowOne = 0.0,
        region_iou: PositiveFraction = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        if not labels.keypoints:
            raise UserError(f"the labels of a keypoint head ({', '.join(labels.names)}) must name keypoints")
        self.levels, self.stride = levels, stride_of(spec, levels)
        joints = len(labels.keypoints)
        channels = {"heat": len(labels), "size": 2, "offset": 2, "joints": 2 * joints}
        channels |= {"joint_heat": joints, "joint_offset": 2}
        self.maps = nn.ModuleList(
            Maps(spec[level].channels, hidden, channels, ("heat", "joint_heat")) for level in levels
        )
        self.overlap, self.radius, self.weights = overlap, radius, dict(zip(self.loss_names, weights))
        self.peak, self.joint_score, self.reach = peak, joint_score, reach
        self.max_detections, self.score, self.region_iou = detections, score, region_iou

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PointOutput:
        return PointOutput.of(self, [maps(features[level]) for maps, level in zip(self.maps, self.levels)], batch)

    def losses(self, output: PointOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        shape = tuple(output.stacks[0]["heat"].shape[1:])
        centres = centres_of(batch.targets, self.stride, shape, self.overlap, self.radius)
        joints = joints_of(batch.targets, self.stride, shape[1:], len(self.labels.keypoints), self.overlap, self.radius)
        centres = without(centres, ~joints.seen.any(2) & centres.real)
        return stack_mean([self._losses(maps, centres, joints) for maps in output.stacks], self.weights)

    def _losses(self, maps: Mapping[str, Tensor], centres: Centres, joints: Joints) -> dict[str, Mean]:
        moves = at_cells(maps["joints"], centres.cells).unflatten(2, (-1, 2))
        offsets = at_cells(maps["joint_offset"], joints.cells.flatten(1))
        on_joints = heatmap_focal_sum(maps["joint_heat"], joints.heat, centres.counted)
        return {
            "heat": heat_loss(maps["heat"], centres),
            "size": l1_loss(at_cells(maps["size"], centres.cells), centres.sizes, centres.real),
            "offset": l1_loss(at_cells(maps["offset"], centres.cells), centres.offsets, centres.real),
            "joints": l1_loss(moves, joints.moves, joints.seen),
            "joint_heat": Mean(on_joints, (joints.heat == 1).sum()),
            "joint_offset": l1_loss(offsets, joints.offsets.flatten(1, 2), joints.seen.flatten(1)),
        }

    @torch.no_grad()
    def predict(self, output: PointOutput, batch: Batch) -> list[KeypointPrediction]:
        predictions = []
        for info, found in zip(batch.info, output.detections()):
            assert isinstance(found, Poses)
            points = info.points_to_original(found.keypoints[..., :2])
            keypoints = torch.cat((points, found.keypoints[..., 2:]), 2)
            boxes = info.boxes_to_original(found.boxes)
            predictions.append(KeypointPrediction(boxes, found.scores, found.labels, keypoints))
        return predictions

    @torch.no_grad()
    def detect(self, output: PointOutput) -> list[Detections]:
        """Boxes of the highest peaks of the last stack, within the image, with their keypoints."""
        boxes, scores, labels, keypoints = decode_poses(
            output.stacks[-1], self.max_detections, peak=self.peak, floor=self.joint_score, reach=self.reach
        )
        boxes = clipped(boxes * self.stride, output.info)
        keypoints[..., :2] *= self.stride
        kept = (boxes[..., 2:] > boxes[..., :2]).all(2) & (scores > self.score)
        rows = enumerate(true_rows(kept.unbind()))
        return [Poses(boxes[i, k], scores[i, k], labels[i, k], keypoints[i, k]) for i, k in rows]


def without(centres: Centres, unknown: Tensor) -> Centres:
    """The same without those objects (B, n), which become neither objects nor background."""
    known, (_, _, height, width) = centres.real & ~unknown, centres.heat.shape
    index = (centres.labels * height + centres.cells // width) * width + centres.cells % width
    heat = centres.heat
    for objects, value in ((unknown, NEARLY), (known, 1.0)):  # one that is known wins the cell of one that isn't
        cells = torch.zeros_like(heat).flatten(1).scatter_reduce(1, index, objects.to(heat), "amax")
        heat = heat.masked_fill(cells.view_as(heat) > 0, value)
    return Centres(
        heat, centres.counted, centres.cells, known, centres.offsets, centres.sizes,
        centres.labels, centres.index,
    )  # fmt: skip


def joints_of(
    targets: Sequence[InstanceTarget],
    stride: int,
    grid: tuple[int, ...],
    count: int,
    overlap: float = 0.7,
    radius: RadiusFormula = "original",
) -> Joints:
    """What keypoints are learnt from; objects in the order of :func:`centres_of`.

    Args:
        targets: in input pixels; without keypoints, nothing of theirs was labelled.
        stride: input pixels a cell.
        grid: (rows, columns) of the map.
        count: keypoints an object.
        overlap, radius: see :func:`visionkit.layers.heatmaps.gaussian_radius`.
    """
    height, width = grid
    heat, cells, seen, offsets, moves = [], [], [], [], []
    everything = objects_in(targets, stride, (height, width))
    all_radii = [whole_radii(objects.sizes, overlap, radius) for objects in everything]
    for target, objects, radii, reach in zip(targets, everything, all_radii, largest(all_radii)):
        keypoints = target.boxes.new_zeros(len(target), count, 3) if target.keypoints is None else target.keypoints
        keypoints = keypoints[objects.index]
        points = keypoints[..., :2] / stride
        inside = (points >= 0).all(2) & (points[..., 0] < width) & (points[..., 1] < height)
        there = (keypoints[..., 2] > 0) & inside
        at = cells_of(points.flatten(0, 1), (height, width)).unflatten(0, (-1, count))
        joint = torch.arange(count, device=points.device).repeat(len(points))
        heat.append(draw_gaussians(
            (count, height, width), joint, at.flatten(0, 1), radii.repeat_interleave(count), reach=reach,
            drawn=there.flatten(),
        ))  # fmt: skip
        cells.append(at[..., 1] * width + at[..., 0])
        seen.append(there)
        offsets.append(points - at)
        moves.append(points - cells_of(objects.centres, (height, width))[:, None])
    padded = [pad_rows(rows)[0] for rows in (cells, seen, offsets, moves)]
    return Joints(torch.stack(heat), *padded)


def decode_poses(
    maps: Mapping[str, Tensor], count: int, *, peak: int = 3, floor: float = 0.1, reach: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes (B, n, 4) in cells, scores, labels (B, n) and keypoints (B, n, K, 3), best first.

    A keypoint that moved to a peak has that one's score, any other has its object's.

    Args:
        maps: ``heat`` and ``size`` and ``offset`` as for boxes, ``joints`` (B, 2 K, h, w), and ``joint_heat`` (B, K, h,
            w) logits and ``joint_offset`` (B, 2, h, w), which may both be missing.
        count: how many objects are found, and peaks of each keypoint looked at.
        peak: side of the neighbourhood that a peak is the largest of.
        floor: the least score of a peak.
        reach: see :class:`CenterNetPose`.
    """
    width = maps["heat"].shape[3]
    logits, labels, cells = top_peaks(maps["heat"], count, peak)
    scores, boxes = logits.sigmoid(), boxes_at(maps, cells)
    points = at_cells(maps["joints"], cells).unflatten(2, (-1, 2)) + cell_points(cells, width)[:, :, None]
    sure = scores[..., None].expand(points.shape[:3])
    if "joint_heat" in maps:
        points, sure = snap(points, sure, boxes, joint_peaks(maps, count, peak), floor, reach)
    return boxes, scores, labels, torch.cat((points, sure[..., None]), 3)


def joint_peaks(maps: Mapping[str, Tensor], count: int, peak: int) -> tuple[Tensor, Tensor]:
    """The best ``count`` peaks of each keypoint: x and y (B, K, n, 2) in cells, scores (B, K, n)."""
    heat = maps["joint_heat"]
    flat = heat.masked_fill(~local_maxima(heat, peak), -torch.inf).flatten(2)
    logits, cells = flat.topk(min(count, flat.shape[2]))
    inside = at_cells(maps["joint_offset"], cells.flatten(1)).unflatten(1, cells.shape[1:])
    return cell_points(cells, heat.shape[3]) + inside, logits.sigmoid()


def snap(
    points: Tensor, scores: Tensor, boxes: Tensor, peaks: tuple[Tensor, Tensor], floor: float, reach: float
) -> tuple[Tensor, Tensor]:
    """Points (B, n, K, 2) and scores (B, n, K), each moved to its nearest peak where that lies in the box and near.

    Args:
        points, scores: as they were regressed.
        boxes: (B, n, 4).
        peaks: as :func:`joint_peaks` gives them.
        floor: peaks up to this score don't count.
        reach: the most that a point moves, in shares of the longer side of its box.
    """
    places, heights = peaks
    distance = torch.cdist(points.transpose(1, 2), places)  # (B, K, n, peaks)
    distance = distance.masked_fill((heights <= floor)[:, :, None], torch.inf)
    nearest, index = distance.min(3)
    found = places.gather(2, index[..., None].expand(-1, -1, -1, 2)).transpose(1, 2)
    height = heights.gather(2, index).transpose(1, 2)
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    longer = (high - low).amax(3)
    moved = ((found >= low) & (found <= high)).all(3) & (nearest.transpose(1, 2) <= reach * longer)
    return torch.where(moved[..., None], found, points), torch.where(moved, height, scores)
