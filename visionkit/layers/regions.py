"""The part of a map that lies on each image, where images of a batch were padded to one size.

Where no image is padded, callers have ``None`` for the regions and the plain operation, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.types import ImageInfo
from visionkit.types.device import constant


def image_regions(info: Sequence[ImageInfo], stride: float, x: Tensor) -> Tensor | None:
    """(B, 2) int64: rows and columns of the map ``x`` (B, C, h, w) that lie on each image, at the top left, at least
    one; ``None`` where that is all of the map for every image.

    Args:
        info: of the images, whose ``size`` leaves the padding out.
        stride: input pixels per cell.
    """
    height, width = int(x.shape[-2]), int(x.shape[-1])
    sizes = [
        (min(height, max(1, -int(-image.size[0] // stride))), min(width, max(1, -int(-image.size[1] // stride))))
        for image in info
    ]
    if all(size == (height, width) for size in sizes):
        return None
    return constant(sizes, x, torch.int64)


def blank_padding(x: Tensor, regions: Tensor | None) -> Tensor:
    """``x`` (B, C, h, w) with zeros outside of the regions, which is what a convolution finds beyond a whole map."""
    if regions is None:
        return x
    rows, columns = _inside(regions[:, 0], x.shape[-2]), _inside(regions[:, 1], x.shape[-1])
    return x.masked_fill(~(rows[:, None, :, None] & columns[:, None, None, :]), 0.0)


def continue_edges(x: Tensor, regions: Tensor | None) -> Tensor:
    """``x`` (B, C, h, w) with the last row and column of each region repeated outside of it, so that interpolation
    inside of it reads nothing else."""
    if regions is None:
        return x
    rows = torch.arange(x.shape[-2], device=x.device).minimum(regions[:, :1] - 1)[:, None, :, None]
    columns = torch.arange(x.shape[-1], device=x.device).minimum(regions[:, 1:] - 1)[:, None, None, :]
    x = x.gather(2, rows.expand(-1, x.shape[1], -1, x.shape[3]))
    return x.gather(3, columns.expand(-1, x.shape[1], x.shape[2], -1))


def adaptive_average(x: Tensor, bins: int, regions: Tensor | None) -> Tensor:
    """``F.adaptive_avg_pool2d`` of each region of ``x`` (B, C, h, w) to (B, C, bins, bins)."""
    if regions is None:
        return F.adaptive_avg_pool2d(x, bins)
    rows, columns = _bins(regions[:, 0], bins, x.shape[-2]), _bins(regions[:, 1], bins, x.shape[-1])
    return torch.einsum("bny,bcyx,bmx->bcnm", rows.to(x), x, columns.to(x))


def stretch(
    x: Tensor, size: tuple[int, int], regions: Tensor | None, align: Literal["stretch", "ends"] = "stretch"
) -> Tensor:
    """Bilinear interpolation of ``x`` (B, C, n, m) over each region of a map (B, C, *size); continued outside of it.

    Args:
        align: whether corners of the maps coincide, or centres of their corner cells.
    """
    if regions is None:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=align == "ends")
    rows = _weights(regions[:, 0], int(x.shape[-2]), size[0], align)
    columns = _weights(regions[:, 1], int(x.shape[-1]), size[1], align)
    return torch.einsum("byn,bcnm,bxm->bcyx", rows.to(x), x, columns.to(x))


def _inside(sides: Tensor, length: int) -> Tensor:
    """(B, length) whether a cell is one of the first ``sides`` (B,)."""
    return torch.arange(length, device=sides.device) < sides[:, None]


def _bins(sides: Tensor, bins: int, length: int) -> Tensor:
    """(B, bins, length) weights of the averages of the first ``sides`` cells in so many bins, which may overlap."""
    number = torch.arange(bins, device=sides.device)
    first = (number * sides[:, None]).div(bins, rounding_mode="floor")[..., None]
    stop = -(-(number + 1) * sides[:, None]).div(bins, rounding_mode="floor")[..., None]
    cells = torch.arange(length, device=sides.device)
    return ((cells >= first) & (cells < stop)) / (stop - first)


def _weights(sides: Tensor, cells: int, length: int, align: Literal["stretch", "ends"]) -> Tensor:
    """(B, length, cells) weights with which ``cells`` are interpolated over the first ``sides`` of ``length``."""
    place = torch.arange(length, device=sides.device, dtype=torch.float32)
    if align == "ends":
        at = place * ((cells - 1) / (sides - 1).clamp(min=1)[:, None])
    else:
        at = (place + 0.5) * (cells / sides[:, None]) - 0.5
    at = at.clamp(0, cells - 1)[..., None]
    return (1 - (at - torch.arange(cells, device=sides.device)).abs()).clamp(min=0)
