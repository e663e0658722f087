"""CycleGAN (Zhu et al., ICCV 2017): pictures of one domain from images of another, learnt without pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from visionkit import Head
from visionkit.numbers import Count, NonNegative, OnlyWith, Positive
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean, PicturePrediction, PictureTarget
from visionkit_translation.discriminator import Objective, PatchGAN, gradient_penalty, judge_costs, made_cost
from visionkit_translation.generators import ENCODER, Norm, ResNetGenerator
from visionkit_translation.pictures import (
    PictureOutput,
    inside,
    mean_absolute,
    predictions,
    wanted,
)
from visionkit_translation.pool import PicturePool


@dataclass
class CycleOutput(PictureOutput):
    """What was made on the way forth, and, once the losses were asked for, on the way back.

    Attributes:
        back: (B, 3, H, W) in -1 ... 1, made of the targets.
    """

    back: Tensor | None = None


class CycleGAN(Head):
    """Two generators, from a first domain to a second and back, and a discriminator for each domain.

    Images are of the first domain, targets any examples of the second. It reads no features: a pipeline with this head
    alone needs no backbone. Of its metrics only those that compare sets (FID, KID) mean something on a source without
    pairs. The objectives of the discriminators are halved.

    Args:
        blocks: residual blocks of the generators; 6 for 128 pixels, 9 from 256 on.
        width: channels of their first layer.
        norm: of generators and discriminators.
        judge_layers: steps down of the discriminators; 3 for patches of 70 pixels.
        judge_width: channels of their first layer.
        objective: what their judgements cost.
        penalty: weight of the gradient penalty; for ``wasserstein`` alone.
        shared_encoder: both generators have one first convolution and two steps down in common.
        cycle: weight of the mean absolute difference after the way there and back.
        identity: weight of that of a picture that is already in the domain it is brought to, as a share of ``cycle``;
            0: it is not asked for.
        pool: earlier pictures that each discriminator is shown again; 0: none.
        pool_side: pixels a side of what is kept of them.
    """

    task = "unpaired"
    check_args = {"blocks": 1, "width": 4, "judge_width": 4, "pool": 3, "pool_side": 48}
    makes = PicturePrediction
    output = CycleOutput
    loss_names: tuple[str, ...] = ("gan_forth", "gan_back", "cycle", "identity")
    phase_loss_names = {"discriminator": ("first_real", "first_fake", "second_real", "second_fake")}
    evaluators = ("pictures",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        blocks: Count = 9,
        width: Positive = 64,
        norm: Norm = "instance",
        judge_layers: Positive = 3,
        judge_width: Positive = 64,
        objective: Objective = "least_squares",
        penalty: Annotated[NonNegative, OnlyWith(objective="wasserstein")] = 10.0,
        shared_encoder: bool = False,
        cycle: NonNegative = 10.0,
        identity: NonNegative = 0.5,
        pool: Count = 50,
        pool_side: Annotated[Positive, OnlyWith("pool")] = 256,
    ) -> None:
        super().__init__(spec, labels)
        self.objective, self.penalty, self.cycle, self.identity = objective, penalty, cycle, identity
        self.forth = ResNetGenerator(blocks=blocks, width=width, norm=norm)
        self.back = ResNetGenerator(blocks=blocks, width=width, norm=norm)
        if shared_encoder:
            self.back.layers = nn.Sequential(*self.forth.layers[:ENCODER], *self.back.layers[ENCODER:])
        self.judge_first = PatchGAN(3, layers=judge_layers, width=judge_width, norm=norm)
        self.judge_second = PatchGAN(3, layers=judge_layers, width=judge_width, norm=norm)
        self.pool_first, self.pool_second = PicturePool(pool, pool_side), PicturePool(pool, pool_side)
        if objective == "wasserstein":
            names = [f"{side}_{what}" for side in ("first", "second") for what in ("real", "fake", "penalty")]
            self.phase_loss_names = {"discriminator": tuple(names)}
        if not identity:
            self.loss_names = ("gan_forth", "gan_back", "cycle")

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> CycleOutput:
        return CycleOutput(self.forth(batch.signed()))

    def phases(self) -> dict[str, Iterable[nn.Parameter]]:
        return {
            "main": chain(self.forth.parameters(), self.back.parameters()),
            "discriminator": chain(self.judge_first.parameters(), self.judge_second.parameters()),
        }

    def losses(self, output: CycleOutput, batch: Batch[PictureTarget]) -> dict[str, Tensor | Mean]:
        """Paper, equations 1 to 3, and section 5.2 for the identity."""
        first, second, known = batch.signed(), wanted(batch), inside(batch)
        output.back = self.back(second)
        losses: dict[str, Tensor | Mean] = {
            "gan_forth": made_cost(self.objective, self.judge_second(output.picture)),
            "gan_back": made_cost(self.objective, self.judge_first(output.back)),
        }
        again = (self.back(output.picture), first), (self.forth(output.back), second)
        losses["cycle"] = _apart(again, known, self.cycle)
        if self.identity:
            kept = (self.back(first), first), (self.forth(second), second)
            losses["identity"] = _apart(kept, known, self.cycle * self.identity)
        return losses

    def phase_losses(self, phase: str, output: CycleOutput, batch: Batch[PictureTarget]) -> Mapping[str, Any]:
        if phase == "main":
            return self.losses(output, batch)
        first, second = batch.signed(), wanted(batch)
        back = output.back
        if back is None:  # the output was cut to these rows before the losses were taken
            with torch.no_grad():
                back = self.back(second)
        costs: dict[str, Tensor] = {}
        for name, judge, real, made in (
            ("first", self.judge_first, first, self.pool_first.exchange(back)),
            ("second", self.judge_second, second, self.pool_second.exchange(output.picture)),
        ):
            found = judge_costs(self.objective, judge(real), _judged(judge, made))
            if self.objective == "wasserstein":
                found["penalty"] = self.penalty * _penalty(judge, real, made)
            costs |= {f"{name}_{side}": cost / 2.0 for side, cost in found.items()}
        return costs

    def predict(self, output: CycleOutput, batch: Batch) -> list[PicturePrediction]:
        return predictions(output.picture, batch)


def _apart(pairs: Iterable[tuple[Tensor, Tensor]], known: Tensor, weight: float) -> Mean:
    """The mean absolute differences of pairs of pictures, added up."""
    found = [mean_absolute(one, other, known) for one, other in pairs]
    return Mean(weight * torch.stack([total for total, _ in found]).sum(), found[0][1])


def _penalty(judge: nn.Module, real: Tensor, made: list[Tensor]) -> Tensor:
    """The mean gradient penalty of pictures; where sizes differ, a picture is compared in the corner that both have."""
    parts = []
    for one, other in zip(real, made):
        height, width = (min(sides) for sides in zip(one.shape[1:], other.shape[1:]))
        parts.append(gradient_penalty(judge, one[None, :, :height, :width], other[None, :, :height, :width]))
    return torch.stack(parts).mean()


def _judged(judge: nn.Module, pictures: list[Tensor]) -> Tensor:
    """The judgements of pictures (3, h, w) of any sizes, in one row."""
    if len({picture.shape for picture in pictures}) == 1:
        return judge(torch.stack(pictures)).flatten()
    return torch.cat([judge(picture[None]).flatten() for picture in pictures])
