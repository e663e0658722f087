"""Anchors of a whole pyramid.

They are counted level by level, finest first; within a level row by row, column by column, then by ratio and by size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visionkit.layers.boxes import cell_anchors, grid_anchors
from visionkit.types import Anchors, FeatureSpec
from visionkit.types.device import to_device

Sizes = Sequence[Sequence[float]]


class PyramidAnchors:
    """Makes the anchors of every level from the sizes of its map.

    Args:
        spec: of the backbone and neck.
        levels: names of the levels, finest first.
        sizes: roots of the anchors' areas in pixels, for each level.
        ratios: height / width of the anchors.
        exact: anchors keep their fractions and stand as far apart as the stride of their level; ``False``: whole
            pixels, and the stride is what divides the image into the cells that there are, as torchvision's weights
            expect it (a level of 13 rows for 800 pixels then has 61, not 64).

    Raises:
        ValueError: not equally many sizes for each of the levels.
    """

    def __init__(
        self, spec: FeatureSpec, levels: Sequence[str], sizes: Sizes, ratios: Sequence[float], *, exact: bool = True
    ) -> None:
        if len(sizes) != len(levels) or len({len(size) for size in sizes}) != 1:
            raise ValueError(f"anchor_sizes must hold equally many sizes for each of the {len(levels)} levels, "
                             f"not {[len(size) for size in sizes]}")  # fmt: skip
        self.strides = [spec[level].stride for level in levels]
        self.sizes, self.ratios, self.exact = sizes, ratios, exact
        self.of_a_cell = len(sizes[0]) * len(ratios)

    def __call__(
        self, grids: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> Anchors:
        """The anchors of images that are padded to ``size`` (height, width).

        ``grids`` are the rows and columns of each level's map.
        """
        levels = []
        cells = to_device([cell_anchors(sizes, self.ratios, rounded=not self.exact) for sizes in self.sizes], device)
        for cell, stride, grid in zip(cells, self.strides, grids):
            step = (stride, stride) if self.exact else (size[0] // grid[0], size[1] // grid[1])
            levels.append(grid_anchors(cell, grid, step))
        return Anchors(tuple(levels))
