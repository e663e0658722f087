"""Each check finds what it is there to find: sound toys pass them all, and every planted defect fails by its name."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conformance.toys import (
    BoxOutput,
    MemoryOutput,
    Sound,
    SoundBackbone,
    SoundBalancer,
    SoundBoxes,
    SoundEvaluator,
    SoundMemory,
    SoundNeck,
    SoundPhases,
    SoundSource,
    SoundTransform,
)
from visionkit.data.shapes import ShapesSource
from visionkit.plugins import PluginManager
from visionkit.testing import CHECKS, KITS, Report, name_of
from visionkit.types import BoxPrediction, FeatureSpec, LabelSet, Output, SemanticOutput, SemanticPrediction

KINDS = {
    "head": (Sound, SoundBoxes, SoundMemory, SoundPhases),
    "backbone": (SoundBackbone,),
    "neck": (SoundNeck,),
    "source": (SoundSource,),
    "evaluator": (SoundEvaluator,),
    "transform": (SoundTransform,),
    "balancer": (SoundBalancer,),
}

# -- heads


class NamesUndeclaredLoss(Sound):
    def losses(self, output, batch):
        return {**super().losses(output, batch), "extra": output.logits.mean()}


class LossIsNotFinite(Sound):
    def losses(self, output, batch):
        return {"entropy": output.logits.sum() / 0}


class LossIsAVector(Sound):
    def losses(self, output, batch):
        return {"entropy": output.logits.mean((1, 2, 3))}


class ReturnsAnotherOutput(Sound):
    def forward(self, features, batch, upstream):
        return BoxOutput(super().forward(features, batch, upstream).logits, torch.zeros(len(batch)))

    def losses(self, output, batch):
        return super().losses(SemanticOutput(output.boxes), batch)


class CountsItsCalls(Sound):
    calls = 0

    def losses(self, output, batch):
        self.calls += 1
        return {"entropy": super().losses(output, batch)["entropy"].value() * self.calls}


@dataclasses.dataclass
class ClassesFirst(Output):
    logits: Tensor  # (classes, B, h, w): the rule of rows is broken


class PutsClassesFirst(Sound):
    output = ClassesFirst

    def forward(self, features, batch, upstream):
        return ClassesFirst(super().forward(features, batch, upstream).logits.transpose(0, 1))

    def losses(self, output, batch):
        return super().losses(SemanticOutput(output.logits.transpose(0, 1)), batch)

    def predict(self, output, batch):
        return super().predict(SemanticOutput(output.logits.transpose(0, 1)), batch)


class DividesByNothing(Sound):
    def losses(self, output, batch):
        mean = super().losses(output, batch)["entropy"]
        return {"entropy": mean.total / mean.count}


class NormalisesOneCell(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.whole = nn.BatchNorm2d(len(labels))

    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits + self.whole(logits.mean((2, 3), keepdim=True)))


class AddsUp(Sound):
    def losses(self, output, batch):
        return {"entropy": super().losses(output, batch)["entropy"].total / 1000}


class HasAnUnusedLayer(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.unused = nn.Conv2d(2, 2, 1)


class CutsOffItsHiddenLayer(Sound):
    def forward(self, features, batch, upstream):
        return SemanticOutput(self.score(F.relu(self.hidden(features["p2"])).detach()))


class CutsOffTheFeatures(Sound):
    def forward(self, features, batch, upstream):
        return super().forward({name: value.detach() for name, value in features.items()}, batch, upstream)


class NamesALevelInVain(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.levels = ("p2", "p5")


class LearnsTheOpposite(Sound):
    def losses(self, output, batch):
        value = super().losses(output, batch)["entropy"].value()
        return {"entropy": 2 * value.detach() - value}


class SharesALayer(Sound):
    shared = nn.Conv2d(16, 16, 1)

    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.hidden.append(SharesALayer.shared)


class PredictsTheFirstOnly(Sound):
    def predict(self, output, batch):
        return super().predict(output, batch)[:1]


class ReturnsLogitsInEvaluation(Sound):
    def forward(self, features, batch, upstream):
        output = super().forward(features, batch, upstream)
        return output if self.training else output.logits

    def losses(self, output, batch):
        return super().losses(output if self.training else SemanticOutput(output), batch)

    def predict(self, output, batch):
        return super().predict(output if self.training else SemanticOutput(output), batch)


class SoftensInTraining(Sound):
    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits / 2 if self.training else logits)


class LeavesBoxesInTheInput(SoundBoxes):
    def predict(self, output, batch):
        label = torch.zeros(1, dtype=torch.int64)
        return [BoxPrediction(b[None].detach(), s[None].detach(), label) for b, s in zip(output.boxes, output.scores)]


class LeavesMapsInTheInput(Sound):
    def predict(self, output, batch):
        return [SemanticPrediction(one.argmax(0).to(torch.uint8)) for one in output.logits]


class ScoresInPercent(SoundBoxes):
    def predict(self, output, batch):
        return super().predict(BoxOutput(output.boxes, output.scores * 100), batch)


class CountsLabelsFromOne(SoundBoxes):
    def predict(self, output, batch):
        made = super().predict(output, batch)
        return [BoxPrediction(p.boxes, p.scores, p.labels + len(self.labels)) for p in made]


class Shifted(SemanticPrediction):
    @classmethod
    def from_target(cls, target, info, labels):
        return cls(target.labels.roll(9, 0))


class TruthIsShifted(Sound):
    makes = Shifted

    def predict(self, output, batch):
        return [Shifted(p.labels) for p in super().predict(output, batch)]


class WantsEvenSizes(Sound):
    def predict(self, output, batch):
        if any(side % 2 for info in batch.info for side in info.size):
            raise ValueError("only even sizes")
        return super().predict(output, batch)


class CentresOverTheBatch(Sound):
    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits - logits.mean(0))


class Drawn(SemanticPrediction):
    def draw(self, image, labels):
        image[:] = 0
        return image

    def to_coco(self, image_id, labels):
        return [{"image_id": image_id, "size": torch.tensor(3)}]


class DrawsOnTheImage(Sound):
    makes = Drawn

    def predict(self, output, batch):
        return [Drawn(p.labels) for p in super().predict(output, batch)]


class ActivatesInPlace(Sound):
    def forward(self, features, batch, upstream):
        return super().forward({name: F.relu_(value) for name, value in features.items()}, batch, upstream)


class KeepsAScaleToItself(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.scale = torch.randn(len(labels), 1, 1)

    def forward(self, features, batch, upstream):
        return SemanticOutput(super().forward(features, batch, upstream).logits * self.scale)


class DrawsFromTheSystem(Sound):
    def losses(self, output, batch):
        noise = int.from_bytes(os.urandom(2), "big") / 65536
        return {"entropy": super().losses(output, batch)["entropy"].value() + noise}


class PredictsAtRandom(Sound):
    def predict(self, output, batch):
        return super().predict(SemanticOutput(output.logits + torch.randn_like(output.logits)), batch)


class RemembersOnTheModule(SoundMemory):
    before = None

    def forward(self, features, batch, upstream):
        logits = Sound.forward(self, features, batch, upstream).logits
        if self.before is not None and self.before.shape == logits.shape:
            logits = logits + self.before * 4
        self.before = logits.detach()
        return MemoryOutput(logits, logits.detach())


class HasNoMemoryField(SoundMemory):
    output = SemanticOutput

    def forward(self, features, batch, upstream):
        return Sound.forward(self, features, batch, upstream)


class ReadsNoMemory(SoundMemory):
    def forward(self, features, batch, upstream):
        return super().forward(features, batch, {})


class HoldsALambda(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.act = lambda x: x


class LeavesItsCriticOut(SoundPhases):
    def phases(self):
        return {"main": self.hidden.parameters(), "critic": self.critic.parameters()}


class TrainsItsCriticTwice(SoundPhases):
    def phases(self):
        return {"main": self.parameters(), "critic": self.critic.parameters()}


class MainIsAnother(SoundPhases):
    def phase_losses(self, phase, output, batch):
        found = super().phase_losses(phase, output, batch)
        return {n: v.value() * 2 for n, v in found.items()} if phase == "main" else found


class CriticLearnsNothing(SoundPhases):
    def phase_losses(self, phase, output, batch):
        found = super().phase_losses(phase, output, batch)
        return found if phase == "main" else {"judgement": output.logits.mean() + 0.0 * self.critic.bias.sum()}


@dataclasses.dataclass
class ScoredMap(SemanticPrediction):
    pass


class LeavesScoresInHalf(SoundBoxes):
    def forward(self, features, batch, upstream):
        said = self.score(features["c4"].mean((2, 3)))
        height, width = batch.images.shape[-2:]
        near, far = said[:, :2].sigmoid() * 0.5, 0.5 + said[:, 2:4].sigmoid() * 0.5
        return BoxOutput(torch.cat((near, far), 1) * said.new_tensor((width, height) * 2), said[:, 4].sigmoid())


class RelyOnMemoryOrder(Sound):
    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits.as_strided(logits.shape, torch.empty(logits.shape).stride()))


class DecidesByValues(Sound):
    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits if bool(logits.mean() > 0) else -logits)


class LevelsAreAList(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.levels = ["p2"]


class NamesNoEvaluator(Sound):
    evaluators = ("semantics",)


class IsJudgedAsBoxes(Sound):
    evaluators = ("coco_bbox",)


class TakesArgumentsByPlace(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet, width: int = 16) -> None:
        super().__init__(spec, labels, width=width)


class TakesAnything(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet, **options: int) -> None:
        super().__init__(spec, labels, **options)


class HasAWrongDefault(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet, *, width: int = "16") -> None:  # type: ignore[assignment]
        super().__init__(spec, labels, width=int(width))


class IsSilentAboutDepth(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet, *, depth: int = 1) -> None:
        super().__init__(spec, labels)


class KnowsNineClasses(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.score = nn.Conv2d(16, 9, 1)


class CannotBeBuilt(Sound):
    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        raise ValueError("no")


HEADS = [
    (NamesUndeclaredLoss, "losses_are_named_finite_scalars", "loss_names declares"),
    (LossIsNotFinite, "losses_are_named_finite_scalars", "loss 'entropy' is"),
    (LossIsAVector, "losses_are_named_finite_scalars", "must be a scalar"),
    (ReturnsAnotherOutput, "forward_returns_its_output", "returns a BoxOutput"),
    (CountsItsCalls, "unlabelled_images_change_nothing", "not labelled"),
    (PutsClassesFirst, "rows_of_its_output_are_its_images", ""),
    (DividesByNothing, "images_without_objects_are_learnt_from", "is nan"),
    (NormalisesOneCell, "one_labelled_image_is_enough", "more than 1 value"),
    (AddsUp, "losses_do_not_depend_on_the_batch_size", "a loss is a mean"),
    (HasAnUnusedLayer, "gradients_reach_every_parameter", "'unused.weight'"),
    (CutsOffItsHiddenLayer, "gradients_reach_every_parameter", "'hidden.0.weight'"),
    (CutsOffTheFeatures, "gradients_reach_the_features", "no gradient arrives"),
    (NamesALevelInVain, "gradients_reach_the_features", "'p5'"),
    (LearnsTheOpposite, "a_toy_batch_is_learnt", "should fall below"),
    (SharesALayer, "two_heads_of_a_kind_are_independent", "share 2 parameters"),
    (PredictsTheFirstOnly, "predicts_once_an_image_without_targets", "1 predictions for 3 images"),
    (ReturnsLogitsInEvaluation, "types_do_not_depend_on_the_mode", "SemanticOutput"),
    (SoftensInTraining, "mode_is_not_looked_at", "follow self.training"),
    (LeavesBoxesInTheInput, "coordinates_are_those_of_the_original", "boxes_to_original"),
    (LeavesMapsInTheInput, "coordinates_are_those_of_the_original", "the original image"),
    (ScoresInPercent, "values_are_in_range", "scores reach"),
    (CountsLabelsFromOne, "values_are_in_range", "labels reach"),
    (TruthIsShifted, "truth_is_judged_perfect", "mIoU"),
    (WantsEvenSizes, "odd_sizes_work", "only even sizes"),
    (CentresOverTheBatch, "an_image_alone_is_its_row_of_a_batch", "row in a batch"),
    (DrawsOnTheImage, "predictions_are_drawn", "draw on a copy"),
    (DrawsOnTheImage, "predictions_are_written", "JSON cannot hold"),
    (ActivatesInPlace, "the_batch_stays_as_it_is", "features"),
    (KeepsAScaleToItself, "state_is_restored", "neither parameter nor buffer"),
    (DrawsFromTheSystem, "a_seed_decides", "losses differ"),
    (PredictsAtRandom, "a_seed_decides", "random numbers"),
    (RemembersOnTheModule, "calls_leave_nothing_behind", "keep nothing on the module"),
    (RemembersOnTheModule, "a_fresh_memory_restarts_the_clip", "start of a clip"),
    (HasNoMemoryField, "memory_goes_out_and_comes_in", "no field 'memory'"),
    (ReadsNoMemory, "memory_goes_out_and_comes_in", "with and without it"),
    (HoldsALambda, "copies_predict_the_same", "ambda"),
    (LeavesItsCriticOut, "phases_share_out_the_parameters", "in no phase"),
    (TrainsItsCriticTwice, "phases_share_out_the_parameters", "main and critic"),
    (MainIsAnother, "main_phase_has_the_losses", "differ"),
    (CriticLearnsNothing, "each_phase_trains_its_own_parameters", "in phase 'critic'"),
    (LeavesScoresInHalf, "half_precision_works", "bfloat16"),
    (RelyOnMemoryOrder, "memory_formats_agree", "channels-last"),
    (DecidesByValues, "forward_can_be_exported", "torch.export"),
    (LevelsAreAList, "declares_what_it_is", "must be a tuple"),
    (NamesNoEvaluator, "evaluators_read_its_predictions", "did you mean 'semantic'"),
    (IsJudgedAsBoxes, "evaluators_read_its_predictions", "reads a BoxPrediction"),
    (TakesArgumentsByPlace, "arguments_are_its_configuration", "put a * before"),
    (TakesAnything, "arguments_are_its_configuration", "takes any keyword"),
    (HasAWrongDefault, "arguments_are_its_configuration", "default of 'width'"),
    (IsSilentAboutDepth, "arguments_are_documented", "depth"),
    (KnowsNineClasses, "works_with_one_class_and_with_many", ""),
    (CannotBeBuilt, "is_built", "ValueError: no"),
]


# -- other kinds


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


def whole_mirror(sample):
    from visionkit.data.geometry import whole_image

    return whole_image(sample, mirror=True).sample(sample)


@pytest.fixture
def check(source: ShapesSource, plugins: PluginManager):
    """Runs the kit of a kind, on the data set of these tests."""

    def check(kind: str, made: type, **options: Any) -> Report:
        if kind == "head":
            options |= {"source": source, "plugins": plugins}
        if kind == "evaluator":
            options |= {"source": SoundSource(images=6), "plugins": plugins}
        return KITS[kind](made, **options)

    return check


@pytest.mark.parametrize(("kind", "made"), [(kind, made) for kind, toys in KINDS.items() for made in toys])
def test_sound_toys_pass(kind: str, made: type, check) -> None:
    check(kind, made).assert_passed()


@pytest.mark.parametrize(("kind", "made", "name", "says"), [*(("head", *head) for head in HEADS), *OTHERS])
def test_a_defect_fails_by_its_name(kind: str, made: type, name: str, says: str, check) -> None:
    report = check(kind, made, only=[name])
    assert [result.name for result in report.failed] == [name]
    assert says in report.failed[0].reason


def test_nearly_every_check_of_a_head_is_shown_to_find_something() -> None:
    # The core alone sees to what is left: it makes the losses of a head without labels itself.
    names = {name_of(check) for check in CHECKS["head"]}
    assert names - {name for _, name, _ in HEADS} == {"without_labels_losses_are_zeros_with_a_graph"}
