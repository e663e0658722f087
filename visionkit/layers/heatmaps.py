"""Objects as peaks of maps: Gaussian targets, the loss that they are learnt with, and where the peaks are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

RadiusFormula = Literal["original", "corrected"]


def gaussian_radius(sizes: Tensor, overlap: float, formula: RadiusFormula = "original") -> Tensor:
    """How far the corners of a box may move, so that it still overlaps the true one.

    Three cases are looked at, and the least radius counts: both corners move alike, both inwards, both outwards (Law &
    Deng, ECCV 2018, section 3.2). ``"original"`` is what the first releases of CornerNet and CenterNet compute, with
    the larger root in all cases and every divisor 2; weights of CenterNet were trained with it.
    ``"corrected"`` solves the equations: 2.155 instead of 7.356 for 20 x 40 at 0.7.

    Args:
        sizes: (N, 2) of height and width.
        overlap: the least IoU with the true box.
        formula: see above.

    Returns:
        (N,), not rounded.
    """
    height, width = sizes.unbind(-1)
    area, around = height * width, height + width
    # a r^2 - b r + c = 0, with the smaller root in the first two cases and the larger one in the third.
    cases = (
        (1.0, around, area * (1 - overlap) / (1 + overlap), -1),
        (4.0, 2 * around, area * (1 - overlap), -1),
        (4.0 * overlap, -2 * overlap * around, -area * (1 - overlap), 1),
    )
    if formula == "original":
        radii = [(b + (b.square() - 4 * a * c).sqrt()) / 2 for a, b, c, _ in cases]
    else:
        radii = [(b + sign * (b.square() - 4 * a * c).sqrt()) / (2 * a) for a, b, c, sign in cases]
    return torch.stack(radii).amin(0)


def draw_gaussians(
    shape: tuple[int, int, int],
    channels: Tensor,
    cells: Tensor,
    radii: Tensor,
    *,
    sigmas: float = 6.0,
    reach: int | None = None,
    drawn: Tensor | None = None,
) -> Tensor:
    """Maps (C, h, w) with a Gaussian of height 1 around each cell, cut off at its radius.

    Where several meet, the larger one counts.

    Args:
        shape: of the maps.
        channels: (N,) int64, which map each is drawn into.
        cells: (N, 2) int64 of x and y; those outside reach in with what lies inside.
        radii: (N,) int64; the standard deviation is (2 radius + 1) / ``sigmas``.
        sigmas: how many standard deviations the diameter has.
        reach: the largest radius, where the caller knows it; otherwise the host waits for the device to find it.
        drawn: (N,) bool, which of them are drawn; ``None``: all.
    """
    maps = torch.zeros(shape, dtype=torch.float32, device=cells.device)
    if not len(cells):
        return maps
    _, height, width = shape
    reach = int(radii.max()) if reach is None else reach
    step = torch.arange(-reach, reach + 1, device=cells.device)
    inside = step.abs() <= radii[:, None]
    deviation = (2 * radii + 1).float() / sigmas
    bell = (-step.square() / (2 * deviation.square()[:, None])).exp() * inside  # (N, steps): separable
    x, y = cells[:, :1] + step, cells[:, 1:] + step
    values = bell[:, :, None] * bell[:, None, :]
    there = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    if drawn is not None:
        there &= drawn[:, None, None]
    index = (channels[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
    # What lies outside becomes a 0 in the first cell, which changes no maximum.
    index, values = index.where(there, 0).flatten(), values.where(there, 0.0).flatten()
    return maps.view(-1).scatter_reduce(0, index, values, "amax").view(shape)


def heatmap_focal_sum(
    logits: Tensor, target: Tensor, counted: Tensor | None = None, *, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """The focal loss of CornerNet (Law & Deng, ECCV 2018, equation 1), summed; divide it by the number of objects.

    Cells where the target is 1 are positive, ``-(1 - p)^alpha log p``; all others are negative, ``-(1 - y)^beta p^alpha
    log(1 - p)``, and forgiven the nearer they are to an object. Taken from logits, so that no probability has to be
    kept away from 0 and 1.

    Args:
        logits: (B, C, h, w) float32.
        target: the same shape, from 0 to 1.
        counted: what is multiplied to negatives, for regions where nobody knows what is there.
        alpha, beta: see above.
    """
    far = (1 - target).pow(beta)  # 0 at positives
    if counted is not None:
        far = far * counted
    # A positive is a negative with the sign of its logit turned, and counts whole.
    positive = target == 1
    logits, weight = torch.where(positive, -logits, logits), torch.where(positive, 1.0, far)
    return (weight * logits.sigmoid().pow(alpha) * F.softplus(logits)).sum()


def local_maxima(maps: Tensor, size: int = 3) -> Tensor:
    """Whether each cell of (B, C, h, w) is the largest among its ``size`` x ``size`` neighbours; equal ones all are."""
    return F.max_pool2d(maps, size, stride=1, padding=size // 2) == maps


def top_peaks(maps: Tensor, count: int, size: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` highest peaks of (B, C, h, w) over all channels, highest first.

    All of them lie in those cells whose own best channels are the highest ``count``, so only those are sorted.

    Args:
        maps: logits or probabilities.
        count: fewer are found in maps of fewer cells; places without a peak are -inf.
        size: of the neighbourhood that a peak is the largest of; 1 for any cell.

    Returns:
        Heights, channels and cells (``y * w + x``), each (B, n).
    """
    if size > 1:
        maps = maps.masked_fill(~local_maxima(maps, size), -torch.inf)
    flat = maps.flatten(2)
    _, cell = flat.amax(1).topk(min(count, flat.shape[2]), sorted=False)
    few = flat.gather(2, cell[:, None].expand(-1, flat.shape[1], -1))  # (B, C, n)
    height, index = few.flatten(1).topk(min(count, few[0].numel()))
    return height, index // few.shape[2], cell.gather(1, index % few.shape[2])


def at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """What (B, C, h, w) says in these cells, (B, n) of ``y * w + x``: (B, n, C)."""
    return maps.flatten(2).transpose(1, 2).gather(1, cells[..., None].expand(-1, -1, maps.shape[1]))


def cell_points(cells: Tensor, width: int) -> Tensor:
    """x and y (..., 2) of cells ``y * width + x``, as float."""
    return torch.stack((cells % width, cells // width), -1).float()
