"""Keypoints as maps and back: Gaussian targets, peaks between cells, mirrored maps.

Coordinates are in cells and continuous: cell (0, 0) covers [0, 1) x [0, 1) and has its middle at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.types.device import without_autocast

Encoding = Literal["nearest", "unbiased"]
Decoding = Literal["quarter", "dark"]

LEAST = 1e-10  # of a map whose logarithm is taken


def keypoint_maps(
    keypoints: Tensor, size: tuple[int, int], sigma: float, encoding: Encoding = "nearest"
) -> tuple[Tensor, Tensor]:
    """A Gaussian of height 1 around each keypoint, and which of the maps are to be learnt from.

    ``"nearest"`` puts it into the middle of the keypoint's cell and cuts it off at 3 ``sigma`` (Xiao et al., ECCV
    2018); ``"unbiased"`` puts it where the keypoint is and cuts nothing off (DARK, Zhang et al., CVPR 2020, section
    3.2).

    Args:
        keypoints: (n, K, 3) of x, y in cells and a visibility that is above 0 where the keypoint is labelled.
        size: height and width of the maps.
        sigma: standard deviation in cells.
        encoding: see above.

    Returns:
        Maps (n, K, h, w), and weights (n, K) of 0 and 1: 0 where nothing is labelled, or not even the foot of the
        Gaussian is on the map. Maps of weight 0 are 0 everywhere.
    """
    height, width = size
    middles = keypoints[..., :2].floor() + 0.5 if encoding == "nearest" else keypoints[..., :2]
    reach = float(int(3 * sigma))
    on = (middles + reach > 0).all(-1) & (middles[..., 0] - reach < width) & (middles[..., 1] - reach < height)
    weights = (on & (keypoints[..., 2] > 0)).to(keypoints)
    columns = _bell(torch.arange(width, device=keypoints.device) + 0.5 - middles[..., :1], sigma)
    rows = _bell(torch.arange(height, device=keypoints.device) + 0.5 - middles[..., 1:], sigma)
    if encoding == "nearest":
        foot = _bell(middles.new_full((), reach), sigma) * 0.999
        columns, rows = columns * (columns >= foot), rows * (rows >= foot)
    return rows[..., :, None] * columns[..., None, :] * weights[..., None, None], weights


def _bell(distance: Tensor, sigma: float) -> Tensor:
    return (-distance.square() / (2 * sigma**2)).exp()


def keypoint_peaks(maps: Tensor, decoding: Decoding = "quarter", sigma: float = 2.0) -> tuple[Tensor, Tensor]:
    """The highest point of each map, found more finely than the cells are.

    ``"quarter"`` goes a quarter of a cell from the highest cell towards the higher one of its neighbours, along each
    axis (Newell et al., ECCV 2016, section 4.1). ``"dark"`` smooths the map with the Gaussian that it was learnt with
    and finds the top of the paraboloid that its logarithm is there (DARK, Zhang et al., CVPR 2020, equations 7 to 9).

    Args:
        maps: (n, K, h, w).
        decoding: see above.
        sigma: of the Gaussians, in cells; only ``"dark"`` asks for it.

    Returns:
        Points (n, K, 2) of x, y in cells, and the values (n, K) of the highest cells.
    """
    # In half precision, coordinates are off by pixels, and what is clamped below has no logarithm.
    maps = maps if maps.dtype == torch.float64 else maps.float()
    width = maps.shape[3]
    values, cell = maps.flatten(2).max(2)
    x, y = cell % width, cell // width
    shift = _quarter(maps, x, y) if decoding == "quarter" else _dark(maps, x, y, sigma)
    return torch.stack((x, y), -1) + 0.5 + shift, values


def _quarter(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    inside_x, inside_y = _inner(x, maps.shape[3], 1), _inner(y, maps.shape[2], 1)
    dx = _at(maps, x + 1, y) - _at(maps, x - 1, y)
    dy = _at(maps, x, y + 1) - _at(maps, x, y - 1)
    return 0.25 * torch.stack((dx.sign() * inside_x, dy.sign() * inside_y), -1)


def _dark(maps: Tensor, x: Tensor, y: Tensor, sigma: float) -> Tensor:
    logs = smoothed(maps, sigma).clamp(min=LEAST).log()
    middle = _at(logs, x, y)
    dx, dy = (_at(logs, x + 1, y) - _at(logs, x - 1, y)) / 2, (_at(logs, x, y + 1) - _at(logs, x, y - 1)) / 2
    dxx = (_at(logs, x + 2, y) - 2 * middle + _at(logs, x - 2, y)) / 4
    dyy = (_at(logs, x, y + 2) - 2 * middle + _at(logs, x, y - 2)) / 4
    dxy = (
        _at(logs, x + 1, y + 1) - _at(logs, x - 1, y + 1) - _at(logs, x + 1, y - 1) + _at(logs, x - 1, y - 1)
    ) / 4  # fmt: skip
    area = dxx * dyy - dxy.square()
    top = (dxx < 0) & (area > 0) & _inner(x, maps.shape[3], 2) & _inner(y, maps.shape[2], 2)
    safe = torch.where(top, area, 1.0)
    shift = torch.stack((dxy * dy - dyy * dx, dxy * dx - dxx * dy), -1) / safe[..., None]
    # Nothing but a real top is believed, and no top that another cell would have to be nearer to.
    return torch.where(top[..., None], shift, 0.0).clamp(-1, 1)


def _inner(index: Tensor, count: int, edge: int) -> Tensor:
    return (index >= edge) & (index < count - edge)


def _at(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values (n, K) in these cells, or in the nearest there are."""
    height, width = maps.shape[-2:]
    cell = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return maps.flatten(2).gather(2, cell[..., None])[..., 0]


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n, K, h, w) under a Gaussian that reaches to 3 ``sigma``."""
    reach = max(1, round(3 * sigma))
    bell = _bell(torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype), sigma)
    kernel = bell / bell.sum()
    flat = maps.flatten(0, 1)[:, None]
    with without_autocast(maps.device):
        flat = F.conv2d(flat, kernel[None, None, None, :], padding=(0, reach))
        return F.conv2d(flat, kernel[None, None, :, None], padding=(reach, 0)).view_as(maps)


def mirrored_maps(maps: Tensor, swaps: Sequence[tuple[int, int]]) -> Tensor:
    """Maps (n, K, h, w) of a mirrored image as those of the image: turned back, left and right keypoints exchanged."""
    return maps[:, swapped(maps.shape[1], swaps)].flip(-1)


def swapped(count: int, swaps: Sequence[tuple[int, int]]) -> list[int]:
    """The order of ``count`` keypoints in a mirrored image."""
    order = list(range(count))
    for i, j in swaps:
        order[i], order[j] = j, i
    return order
