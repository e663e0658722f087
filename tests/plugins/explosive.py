"""A head whose loss or gradient is not finite from some step on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visionkit import Component, Head, hookimpl
from visionkit.types import Output, Prediction


@dataclass
class ScoreOutput(Output):
    scores: Tensor  # (B, 1)


class Explosive(Head):
    """Its loss is the mean score, finite in the first ``finite`` steps; then its gradient or the loss itself is NaN.

    Args:
        finite: steps.
        what: ``gradient`` or ``loss``.
    """

    task, makes, output, loss_names = "semantic", Prediction, ScoreOutput, ("mean",)
    levels = ("p4",)

    def __init__(self, spec, labels, *, finite: int = 3, what: str = "gradient") -> None:
        super().__init__(spec, labels)
        self.finite, self.what = finite, what
        self.linear = nn.Linear(spec["p4"].channels, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features, batch, upstream):
        return ScoreOutput(self.linear(features["p4"].mean((2, 3))))

    def losses(self, output, batch):
        self.steps += 1
        if int(self.steps) <= self.finite:
            return {"mean": output.scores.mean()}
        # The square root has a finite value and an infinite slope at 0.
        return {"mean": (output.scores * 0).sqrt().mean() if self.what == "gradient" else output.scores.mean() / 0}

    def predict(self, output, batch):
        return [Prediction() for _ in output.scores]


@hookimpl
def visionkit_components():
    return [Component("head", "explosive", ":Explosive", "not finite after some steps")]
