"""Features of regions: RoIAlign over the levels of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from visionkit.types import Features, FeatureSpec


def common_channels(spec: FeatureSpec, levels: Sequence[str]) -> int:
    """Channels of levels that one network reads in turn. Raises ``ValueError`` where they differ."""
    channels = {level: spec[level].channels for level in levels}
    if len(set(channels.values())) != 1:
        raise ValueError(f"levels must have equally many channels, not {channels}; put a neck (fpn) before this head")
    return channels[levels[0]]


class RegionPool(nn.Module):
    """RoIAlign (He et al., ICCV 2017) from the level of a pyramid that suits each box's size.

    A box of area ``a`` is read from level ``floor(4 + log2(sqrt(a) / canonical_size))``, clamped to those there are,
    where level k has stride 2^k (Lin et al., CVPR 2017, eq. 1). Pooling is done in float32 whatever the features are.

    Args:
        spec: of the backbone and neck.
        levels: names of the levels, finest first; their strides must double from one to the next.
        size: rows and columns of the result.
        sampling_ratio: points a cell and axis; 0: as many as the cell has pixels.
        aligned: ``True`` shifts by half a pixel, so that cell centres are where they should be (detectron2's weights);
            ``False`` is what torchvision's weights were trained with.
        canonical_size: side in pixels of a box that is read from the level of stride 16.

    Raises:
        ValueError: strides that do not double, or levels of different widths.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        levels: Sequence[str],
        size: int,
        *,
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_size: float = 224.0,
    ) -> None:
        super().__init__()
        strides = [spec[level].stride for level in levels]
        if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(f"the strides of the levels must double from one to the next, not {strides}")
        self.levels = tuple(levels)
        self.strides = strides
        self.channels = common_channels(spec, levels)
        self.size = size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size

    def level_of(self, boxes: Tensor) -> Tensor:
        """Index into ``levels`` of each box (n, 4)."""
        side = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=0).sqrt()
        k = (4 + (side / self.canonical_size).log2() + 1e-6).floor()
        finest = math.log2(self.strides[0])
        return (k - finest).clamp(0, len(self.levels) - 1).long()

    def forward(self, features: Features, boxes: Sequence[Tensor]) -> Tensor:
        """Pooled features (n, C, size, size) of all boxes, image after image.

        Args:
            features: level -> (B, C, h, w).
            boxes: B tensors (n_i, 4) in input pixels.
        """
        image = torch.cat([torch.full_like(b[:, :1], row) for row, b in enumerate(boxes)])
        rois = torch.cat((image, torch.cat(list(boxes))), 1).float()
        level = self.level_of(rois[:, 1:])
        out = features[self.levels[0]].new_zeros(len(rois), self.channels, self.size, self.size)
        for i, (name, stride) in enumerate(zip(self.levels, self.strides)):
            index = (level == i).nonzero()[:, 0]
            pooled = roi_align(
                features[name].float(), rois[index], self.size, 1.0 / stride, self.sampling_ratio, self.aligned
            )
            out[index] = pooled.to(out.dtype)
        return out
