"""Components of the other kinds with one planted defect each, and ``OTHERS``: kind, check, a part of what that says."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from tests.conformance.toys import (
    SoundBackbone,
    SoundBalancer,
    SoundEvaluator,
    SoundNeck,
    SoundSource,
    SoundTransform,
)
from visionkit.types import FeatureSpec, SemanticPrediction


def whole_mirror(sample):
    from visionkit.data.geometry import whole_image

    return whole_image(sample, mirror=True).sample(sample)


class SpecIsWrong(SoundBackbone):
    def forward(self, images):
        return {name: value[:, :, ::2, ::2] for name, value in super().forward(images).items()}


class BuildsEverything(SoundBackbone):
    def __init__(self, *, levels=None, width: int = 8) -> None:
        super().__init__(width=width)
        self.spec = self.spec.only([name for name in self.spec if levels is None or name in levels])


class TakesMemoryForItsSpec(SoundBackbone):
    def __init__(self, *, levels=None, width: int = 8) -> None:
        super().__init__(levels=levels, width=width)
        self.bias = nn.Parameter(torch.zeros(1, device="cpu"))

    def forward(self, images):
        return super().forward(images + self.bias)


class NoisyBackbone(SoundBackbone):
    def forward(self, images):
        return super().forward(images + torch.randn_like(images))


class GreedyNeck(SoundNeck):
    def __init__(self, spec: FeatureSpec, *, levels=None) -> None:
        super().__init__(spec, levels=levels)
        self.reads = self.reads[:1]


class NeckInPlace(SoundNeck):
    def forward(self, features):
        return super().forward({name: value.mul_(2) for name, value in features.items()})


class ForgetsTasks(SoundSource):
    def load(self, index, tasks):
        return super().load(index, self.tasks)


class OutOfRange(SoundSource):
    def load(self, index, tasks):
        sample = super().load(index, tasks)
        for target in sample.targets.values():
            target.labels[0, 0] = 7
        return sample


class OneIdForAll(SoundSource):
    def load(self, index, tasks):
        sample = super().load(index, tasks)
        return dataclasses.replace(sample, info=dataclasses.replace(sample.info, id=1))


class LoadsAtRandom(SoundSource):
    def load(self, index, tasks):
        return super().load(random.SystemRandom().randrange(1000), tasks)


class SaysAnotherSize(SoundSource):
    def load(self, index, tasks):
        sample = super().load(index, tasks)
        return dataclasses.replace(sample, info=dataclasses.replace(sample.info, size=(64, 40)))


class HoldsAnOpenFile(SoundSource):
    def __init__(self, *, images: int = 4) -> None:
        super().__init__(images=images)
        self.file = open(os.devnull)  # noqa: SIM115 - the defect


class CountsTwice(SoundEvaluator):
    def add(self, predictions, targets, info):
        fresh = [dataclasses.replace(i, id=f"{i.id}-{next(self.numbers)}") for i in info]
        super().add(predictions, targets, fresh)

    numbers: ClassVar[Any] = itertools.count()


class MergesTheLastOnly(SoundEvaluator):
    def merge(self, states):
        for state in states:
            self.seen = state


class FailsOnNothing(SoundEvaluator):
    def result(self):
        right, pixels = np.array(list(self.seen.values())).sum(0).tolist()
        return {"accuracy": right / pixels}


class MeasuresNothing(SoundEvaluator):
    def result(self):
        return super().result() if self.seen else {"accuracy": 0.0}


class AlwaysSatisfied(SoundEvaluator):
    def result(self):
        return {"accuracy": 1.0}


class LastBatchOnly(SoundEvaluator):
    def add(self, predictions, targets, info):
        self.seen = {}
        super().add(predictions, targets, info)


class OffByAPixel(SoundEvaluator):
    def add(self, predictions, targets, info):
        super().add([SemanticPrediction(p.labels.roll(5, 1)) for p in predictions], targets, info)


class MirrorsPixelsOnly(SoundTransform):
    def __call__(self, sample):
        return dataclasses.replace(sample, image=sample.image.flip(2))


class ShiftsPixelsOnly(SoundTransform):
    def __call__(self, sample):
        return dataclasses.replace(sample, image=sample.image.roll(9, 1))


class LeavesTargetsBehind(SoundTransform):
    def __call__(self, sample):
        return dataclasses.replace(whole_mirror(sample), targets=sample.targets)


class ChangesItsInput(SoundTransform):
    def __call__(self, sample):
        sample.image += 1
        return sample


class RollsSystemDice(SoundTransform):
    def __call__(self, sample):
        image = sample.image + random.SystemRandom().randrange(100)
        return dataclasses.replace(sample, image=image.to(torch.uint8))


class DropsTheGraph(SoundBalancer):
    def forward(self, losses, labelled):
        return super().forward(
            {head: {n: v.detach() for n, v in own.items()} for head, own in losses.items()}, labelled
        )


class DropsUnlabelledHeads(SoundBalancer):
    def forward(self, losses, labelled):
        totals = self.totals(losses)
        return torch.stack([totals[head].log() for head in self.heads]).mean()


class ForgetsItsState(SoundBalancer):
    def __init__(self, heads, *, weights: dict[str, float] | None = None) -> None:
        super().__init__(heads, weights=weights)
        del self.first
        self.first = torch.zeros(len(heads))


class WeighsByInfinity(SoundBalancer):
    at_features = True

    def weigh(self, gramian, heads):
        return 1 / (gramian.sum(1) - gramian.diagonal())


OTHERS = [
    ("backbone", SpecIsWrong, "spec_is_what_it_yields", "its spec says"),
    ("backbone", BuildsEverything, "only_the_levels_asked_for", "c2"),
    ("backbone", TakesMemoryForItsSpec, "building_for_the_spec_costs_nothing", "'bias'"),
    ("backbone", NoisyBackbone, "evaluation_is_deterministic", "different features"),
    ("neck", GreedyNeck, "reads_what_it_needs", "c4"),
    ("neck", NeckInPlace, "inputs_stay_as_they_are", "in place"),
    ("source", ForgetsTasks, "only_the_tasks_asked_for", "asked for no task"),
    ("source", OutOfRange, "targets_lie_in_their_image", "labels from 0 to 7"),
    ("source", OneIdForAll, "images_have_ids_of_their_own", "must differ"),
    ("source", LoadsAtRandom, "loading_twice_gives_the_same", "not the same"),
    ("source", SaysAnotherSize, "samples_are_images_with_their_size", "40 x 64"),
    ("source", HoldsAnOpenFile, "workers_can_be_given_it", "pickle"),
    ("evaluator", CountsTwice, "an_image_counts_once", "seen twice"),
    ("evaluator", MergesTheLastOnly, "halves_merge_into_the_whole", "merged"),
    ("evaluator", FailsOnNothing, "nothing_added_is_no_error", ""),
    ("evaluator", MeasuresNothing, "nothing_measured_is_no_number", "accuracy is 0, as if it had been measured"),
    ("evaluator", AlwaysSatisfied, "wrong_predictions_are_judged_otherwise", "other images"),
    ("evaluator", LastBatchOnly, "halves_merge_into_the_whole", "merged"),
    ("evaluator", OffByAPixel, "truth_is_judged_perfect", "no perfect value"),
    ("transform", MirrorsPixelsOnly, "info_says_where_pixels_came_from", "correlation"),
    ("transform", ShiftsPixelsOnly, "info_says_where_pixels_came_from", "correlation"),
    ("transform", LeavesTargetsBehind, "targets_move_with_their_image", "info.affine"),
    ("transform", ChangesItsInput, "samples_stay_as_they_are", "changes the sample"),
    ("transform", RollsSystemDice, "a_seed_decides", "same seed"),
    ("balancer", DropsTheGraph, "total_is_a_finite_scalar_with_a_graph", ""),
    ("balancer", DropsUnlabelledHeads, "heads_without_labels_stay_in_the_graph", "without labels"),
    ("balancer", ForgetsItsState, "state_is_restored", "weighs otherwise"),
    ("balancer", WeighsByInfinity, "weights_of_gradients_are_finite", "weights are"),
]
