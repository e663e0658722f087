"""A panoptic head that says sky above and grass below, with a circle in the middle, of every image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionkit import Component, Head, hookimpl
from visionkit.types import Output, PanopticPrediction


@dataclass
class HalvesOutput(Output):
    horizon: Tensor  # (B,) share of the height


class Halves(Head):
    """Sky above, grass below.

    Args:
        level: the feature level that it reads.
    """

    task, makes, output = "panoptic", PanopticPrediction, HalvesOutput
    loss_names, evaluators = ("horizon",), ("pq",)

    def __init__(self, spec, labels, *, level: str = "p4"):
        super().__init__(spec, labels)
        self.levels = (level,)
        self.horizon = nn.Parameter(torch.tensor(0.4))

    def forward(self, features, batch, upstream):
        return HalvesOutput(self.horizon.expand(len(batch.images)))

    def losses(self, output, batch):
        return {"horizon": (output.horizon - 0.4).square().mean()}

    def predict(self, output, batch):
        labels = torch.tensor([self.labels.label(name) for name in ("sky", "grass", "circle")])
        found = []
        for share, info in zip(output.horizon.tolist(), batch.info):
            height, width = info.original_size
            segments = torch.full((height, width), 2, dtype=torch.int32)
            segments[: round(share * height)] = 1
            segments[height // 2 : height // 2 + 8, width // 2 : width // 2 + 8] = 3
            found.append(PanopticPrediction(segments, labels, torch.ones(3)))
        return found


@hookimpl
def visionkit_components():
    return [Component("head", "halves", ":Halves", "sky above, grass below")]
