"""The branch that gives a region its class and a better box, and the stages of a cascade of such branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from visionkit.layers.boxes import decode
from visionkit.layers.norm import NormName
from visionkit.types import ImageInfo
from visionkit_rcnn.branch import conv_stack, init_convs


class BoxBranch(nn.Module):
    """Pooled features (n, C, S, S) -> logits (n, classes) and deltas (n, boxes, 4), in float32.

    Args:
        channels, size: C and S of the pooled features.
        convs: widths of 3 x 3 convolutions, each followed by ``norm`` and ReLU.
        norm: a normalisation layer.
        fcs: widths of the fully connected layers after them.
        classes: logits a region, background included.
        boxes: deltas a region.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        convs: Sequence[int],
        norm: NormName | None,
        fcs: Sequence[int],
        classes: int,
        boxes: int,
    ) -> None:
        super().__init__()
        self.conv, channels = conv_stack(channels, convs, norm)
        init_convs(self.conv)
        self.fc = nn.ModuleList()
        channels *= size * size
        for width in fcs:
            layer = nn.Linear(channels, width)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
            self.fc.append(layer)
            channels = width
        self.classes, self.deltas = nn.Linear(channels, classes), nn.Linear(channels, boxes * 4)
        for layer, std in ((self.classes, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x).flatten(1)
        for fc in self.fc:
            x = F.relu(fc(x))
        return self.classes(x).float(), self.deltas(x).float().unflatten(1, (-1, 4))


@dataclass(frozen=True)
class Stage:
    """One pass over the regions.

    Attributes:
        branch: what looks at them.
        iou: with an object from which a region is one.
        weights: factors of dx, dy, dw, dh.
    """

    branch: BoxBranch
    iou: float
    weights: tuple[float, ...]

    @torch.no_grad()
    def move(self, deltas: Tensor, regions: Sequence[Tensor], info: Sequence[ImageInfo]) -> list[Tensor]:
        """The regions of each image as this stage corrects them, for the next one to look at.

        Args:
            deltas: (n, 1, 4) of all regions, image after image.
            regions: (n_i, 4) of each image.
            info: of each image.
        """
        moved = decode(deltas[:, 0], torch.cat(list(regions)), self.weights).split([len(r) for r in regions])
        return [clip_boxes_to_image(boxes, image.size) for boxes, image in zip(moved, info)]
