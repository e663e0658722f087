"""Boxes, ``(N, 4)`` of left, top, right, bottom in pixels: anchors, their regression code, and what they learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor
from torchvision.ops import box_area, box_iou, nms

from visionkit.types.device import constant, on_host, to_device

SoftNMS = Literal["linear", "gaussian"]

LARGEST_LOG_SCALE = math.log(1000.0 / 16)
"""A decoded side is at most 62.5 times the anchor's, so that ``exp`` cannot overflow."""


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], *, rounded: bool = True) -> Tensor:
    """Anchors around the origin: each of ``sizes`` (root of the area, pixels) in each of ``ratios`` (height / width).

    Args:
        sizes, ratios: as said.
        rounded: to whole pixels, as torchvision's weights expect it.

    Returns:
        (len(ratios) * len(sizes), 4), ratios varying slowest.
    """
    heights = torch.tensor(ratios, dtype=torch.float32).sqrt()
    size = torch.tensor(sizes, dtype=torch.float32)
    w, h = (size / heights[:, None]).flatten(), (size * heights[:, None]).flatten()
    anchors = torch.stack((-w, -h, w, h), 1) / 2
    return anchors.round() if rounded else anchors


def grid_anchors(cell: Tensor, grid: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """``cell`` (A, 4) at the top left corner of every cell of a ``grid`` (rows, columns): (rows * columns * A, 4)."""
    y = torch.arange(grid[0], device=cell.device, dtype=cell.dtype) * stride[0]
    x = torch.arange(grid[1], device=cell.device, dtype=cell.dtype) * stride[1]
    y, x = torch.meshgrid(y, x, indexing="ij")
    return (torch.stack((x, y, x, y), -1).view(-1, 1, 4) + cell).view(-1, 4)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Deltas (..., 4) that take ``anchors`` to ``boxes``: shift of the centre in sides of the anchor, log of the scale.

    The code of Girshick et al., CVPR 2014, appendix C; ``weights`` multiply dx, dy, dw, dh.
    """
    centre, size = _centres(boxes)
    anchor_centre, anchor_size = _centres(anchors)
    deltas = torch.cat(((centre - anchor_centre) / anchor_size, (size / anchor_size).log()), -1)
    return deltas * constant(tuple(weights), deltas)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (..., 4): the inverse of :func:`encode`, with the growth of a side limited."""
    deltas = deltas / constant(tuple(weights), deltas)
    anchor_centre, anchor_size = _centres(anchors)
    centre = deltas[..., :2] * anchor_size + anchor_centre
    half = 0.5 * deltas[..., 2:].clamp(max=LARGEST_LOG_SCALE).exp() * anchor_size
    return torch.cat((centre - half, centre + half), -1)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float) -> Tensor:
    """torchvision's ``batched_nms``, with one host synchronization on an accelerator, whatever the number of groups.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) int64; boxes of different groups do not suppress one another.
        iou: IoU above which the box with the lower score is dropped.

    Returns:
        Indices of the boxes that are kept, int64, by descending score.
    """
    if boxes.device.type == "cpu" or not len(boxes):
        return torchvision.ops.batched_nms(boxes, scores, groups, iou)
    # Every group is moved to a place of its own. In double precision the shift does not round the coordinates.
    places = boxes.double()
    places = places + (groups * (places.max() - places.min() + 1))[:, None]
    return nms(places, scores.double(), iou)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    method: SoftNMS,
    iou: float = 0.5,
    sigma: float = 0.5,
    floor: float = 0.001,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., ICCV 2017): a box that overlaps a better one of its class is not dropped but scored down.

    Args:
        boxes: (N, 4).
        scores: (N,).
        labels: (N,) int64; boxes of different classes leave one another alone.
        method: ``"linear"`` multiplies a score by 1 - IoU where the IoU is above ``iou`` (equation 2), ``"gaussian"``
            multiplies all by exp(-IoU^2 / sigma) (equation 3).
        iou, sigma: as said.
        floor: boxes whose scores fall below it are dropped.
        most: the best so many are found; ``None``: all.

    Returns:
        Indices of the boxes that are left, best first, and their new scores.
    """
    device = boxes.device
    # Each round needs the result of the one before, so all of them run on the CPU: one transfer there and one back.
    boxes, scores, labels = on_host((boxes, scores, labels))
    left, kept, values = scores.clone(), [], []
    for _ in range(min(len(boxes), len(boxes) if most is None else most)):
        value, best = left.max(0)
        if value < floor:
            break
        kept.append(best)
        values.append(value)
        overlap = box_iou(boxes[best, None], boxes)[0] * (labels == labels[best])
        if method == "linear":
            left = left * torch.where(overlap > iou, 1 - overlap, 1.0)
        else:
            left = left * (-overlap.square() / sigma).exp()
        left[best] = -1.0
    result = [torch.stack(kept), torch.stack(values)] if kept else [labels[:0], scores[:0]]
    kept_indices, kept_scores = to_device(result, device)
    return kept_indices, kept_scores


def covered(boxes: Tensor, regions: Tensor) -> Tensor:
    """Share of each box's own area that lies inside each region: (boxes, regions)."""
    low = torch.maximum(boxes[:, None, :2], regions[:, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[:, 2:])
    return (high - low).clamp(min=0).prod(-1) / box_area(boxes).clamp(min=1e-6)[:, None]


OBJECTLESS = -1
IGNORED = -2

_PAIRS_AT_ONCE = 1 << 20
"""Pairs of boxes whose IoU is computed at the same time: 4 MB of float32, and several times that meanwhile."""


def pairwise_iou(objects: Tensor, boxes: Tensor) -> Tensor:
    """torchvision's ``box_iou``, (N, M), without its temporaries of several times that size."""
    out = boxes.new_empty(len(objects), len(boxes))
    start = 0
    for part in _parts(boxes, len(objects)):
        out[:, start : start + len(part)] = box_iou(objects, part)
        start += len(part)
    return out


def _parts(boxes: Tensor, partners: int) -> tuple[Tensor, ...]:
    """``boxes`` in parts that form a bounded number of pairs with so many others."""
    return boxes.split(max(1, _PAIRS_AT_ONCE // max(1, partners)))


def match(
    boxes: Tensor,
    objects: Tensor,
    crowd: Tensor,
    *,
    low: float,
    high: float,
    best_of_each: bool = False,
    crowd_share: float = 0.7,
) -> Tensor:
    """Which object each box learns from.

    Args:
        boxes: (N, 4) anchors or proposals.
        objects: (M, 4) annotated boxes.
        crowd: (M,) bool; those match nothing, and a box that lies in one by ``crowd_share`` is ignored unless it has
            an object of its own.
        low, high: IoU from ``high`` on is a match, below ``low`` is background, between them is ignored.
        best_of_each: every object also gets the boxes with which its IoU is highest, however low.

    Returns:
        (N,) int64 index of an object, ``OBJECTLESS`` (-1: background) or ``IGNORED`` (-2).
    """
    parts, best = _parts(boxes, len(objects)), None
    if best_of_each and len(parts) > 1:
        best = torch.stack([box_iou(objects, part).amax(1) for part in parts]).amax(0)
    return torch.cat([
        _match(
            part, objects, crowd, low=low, high=high, best_of_each=best_of_each, best=best, crowd_share=crowd_share
        )
        for part in parts
    ])  # fmt: skip


def _match(
    boxes: Tensor,
    objects: Tensor,
    crowd: Tensor,
    *,
    low: float,
    high: float,
    best_of_each: bool,
    best: Tensor | None,
    crowd_share: float,
) -> Tensor:
    """:func:`match` of some of the boxes; ``best`` as for :func:`match_iou`."""
    if not len(objects) or not len(boxes):
        return torch.full((len(boxes),), OBJECTLESS, dtype=torch.int64, device=boxes.device)
    iou = box_iou(objects, boxes)
    # Only on the CPU does it cost nothing to ask whether there are crowds at all.
    crowds = crowd.device.type != "cpu" or bool(crowd.any())
    if crowds:
        iou.masked_fill_(crowd[:, None], -1.0)
    matched = match_iou(iou, low=low, high=high, best_of_each=best_of_each, best=best)
    if crowds:
        inside = ((covered(boxes, objects) >= crowd_share) & crowd).any(1)
        matched = matched.masked_fill((matched == OBJECTLESS) & inside, IGNORED)
    return matched


def match_iou(
    iou: Tensor, *, low: float, high: float, best_of_each: bool = False, best: Tensor | None = None
) -> Tensor:
    """:func:`match` without crowds, by the IoU of each object with each box (M, N), M at least 1.

    ``best``, (M,), is the highest IoU of each object where ``iou`` holds only some of the boxes.
    """
    value, index = iou.max(0)
    hit = value >= high
    if best_of_each:
        best = (iou.amax(1) if best is None else best)[:, None]
        hit |= ((iou == best) & (best > 0)).any(0)
    return torch.where(hit, index, torch.where(value < low, OBJECTLESS, IGNORED))


def labels_of(matched: Tensor, labels: Tensor) -> Tensor:
    """Labels (N,) of the objects that boxes are ``matched`` (N,) with; -1 for boxes without an object."""
    if not len(labels):
        return torch.full_like(matched, -1)
    return torch.where(matched >= 0, labels[matched.clamp(min=0)], -1)


def sample(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Indices of a random choice of at most ``count`` boxes: (those with an object, those of the background).

    At most ``positive_share`` of ``count`` have an object; background fills up the rest. Ignored ones are never chosen.

    Args:
        matched: (N,) as :func:`match` returns it.
        count, positive_share: as described above.
    """
    return sample_images([matched], count, positive_share)[0]


def sample_images(matched: Sequence[Tensor], count: int, positive_share: float) -> list[tuple[Tensor, Tensor]]:
    """:func:`sample` of each image. The host waits for the device once for all images."""
    kinds = torch.cat([own.clamp(max=0).to(torch.int8) for own in matched]).cpu()
    chosen: list[Tensor] = []
    for own in kinds.split([len(own) for own in matched]):
        positive = _choose((own == 0).nonzero()[:, 0], int(count * positive_share))
        chosen += [positive, _choose((own == OBJECTLESS).nonzero()[:, 0], count - len(positive))]
    moved = to_device(chosen, matched[0].device)
    return list(zip(moved[::2], moved[1::2]))


def _choose(index: Tensor, count: int) -> Tensor:
    return index if len(index) <= count else index[torch.randperm(len(index))[:count]]
