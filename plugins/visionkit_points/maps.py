"""What all these heads share: side branches that turn features into maps, and objects as cells of maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.layers.focal import prior_bias
from visionkit.types import FeatureSpec, InstanceTarget
from visionkit.types.device import constant, true_rows, without_autocast

PRIOR = 0.1
"""Probability that a heatmap starts from: the bias of -2.19 that CornerNet and CenterNet share."""


class Maps(nn.ModuleDict):
    """Features to several maps, each by a 3 x 3 convolution, ReLU and a 1 x 1 convolution of its own.

    Args:
        inputs: channels of the features.
        hidden: of the first convolutions.
        outputs: channels of each map.
        heat: names of the maps that are logits of heatmaps; they start from a probability of 0.1.

    Shape: (B, inputs, h, w) -> name -> (B, outputs, h, w), float32.
    """

    def __init__(self, inputs: int, hidden: int, outputs: Mapping[str, int], heat: Sequence[str] = ("heat",)) -> None:
        start = prior_bias(PRIOR)
        super().__init__({
            name: branch(inputs, hidden, channels, start if name in heat else 0.0) for name, channels in outputs.items()
        })  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: layers(x).float() for name, layers in self.items()}


def branch(inputs: int, hidden: int, outputs: int, start: float = 0.0) -> nn.Sequential:
    """A 3 x 3 convolution, ReLU, and a 1 x 1 convolution that says ``start`` almost everywhere before it has learnt."""
    last = nn.Conv2d(hidden, outputs, 1)
    nn.init.normal_(last.weight, std=0.001)
    if last.bias is not None:
        nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(inplace=True), last)


def stride_of(spec: FeatureSpec, levels: Sequence[str]) -> int:
    """The stride that all these levels have.

    Raises:
        UserError: no level, or levels of several strides.
    """
    strides = {spec[level].stride for level in levels}
    if len(strides) != 1:
        seen = ", ".join(f"{level} {spec[level].stride}" for level in levels) or "none"
        raise UserError(f"levels: one level or several of one stride (a stack each) are read, not {seen}")
    return strides.pop()


@dataclass(frozen=True)
class Objects:
    """Objects of one image in cells of a map.

    Attributes:
        boxes: (N, 4) within the map.
        labels: (N,) int64.
        index: (N,) int64, where each stands in the target.
    """

    boxes: Tensor
    labels: Tensor
    index: Tensor

    @property
    def centres(self) -> Tensor:
        """(N, 2) of x and y."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def sizes(self) -> Tensor:
        """(N, 2) of width and height."""
        return self.boxes[:, 2:] - self.boxes[:, :2]


def objects_in(targets: Sequence[InstanceTarget], stride: int, grid: tuple[int, int]) -> list[Objects]:
    """Objects of each image in cells of a ``grid`` (rows, columns); crowds and what lies outside are left out."""
    rows, columns = grid
    clipped = []
    for target in targets:
        left, top, right, bottom = (target.boxes / stride).clamp(min=0).unbind(1)
        clipped.append(torch.stack((left.clamp(max=columns), top.clamp(max=rows), right.clamp(max=columns),
                                    bottom.clamp(max=rows)), 1))  # fmt: skip
    keep = [(b[:, 2:] > b[:, :2]).all(1) & ~target.crowd for b, target in zip(clipped, targets)]
    return [
        Objects(boxes[index], target.labels[index], index)
        for boxes, target, index in zip(clipped, targets, true_rows(keep))
    ]


def cells_of(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cells (N, 2) of x and y, int64, that points of a map lie in."""
    rows, columns = grid
    x, y = points.floor().long().clamp(min=0).unbind(-1)
    return torch.stack((x.clamp(max=columns - 1), y.clamp(max=rows - 1)), -1)


def largest(radii: Sequence[Tensor]) -> list[int]:
    """The largest of the radii (N,) of each image, 0 where there are none. The host waits for the device once."""
    return torch.stack([own.amax() if len(own) else own.sum() for own in radii]).tolist()


def outside_crowds(target: InstanceTarget, stride: int, grid: tuple[int, int]) -> Tensor:
    """(rows, columns) float: 0 in cells whose centres lie in a crowd, where nobody knows what is there."""
    rows, columns = grid
    boxes = target.boxes / stride
    x = torch.arange(columns, device=boxes.device) + 0.5
    y = torch.arange(rows, device=boxes.device) + 0.5
    across = (x >= boxes[:, :1]) & (x < boxes[:, 2:3])
    down = (y >= boxes[:, 1:2]) & (y < boxes[:, 3:])
    # The number of crowds over each cell, exact in float32; not in mixed precision.
    with without_autocast(boxes.device):
        crowds = (down & target.crowd[:, None]).float().T @ across.float()
    return (crowds == 0).float()


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors (n_i, ...) as one (B, max n, ...), filled up with 0, and which rows are real: (B, max n) bool."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    counts = constant([len(row) for row in rows], padded, torch.int64)
    return padded, torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
