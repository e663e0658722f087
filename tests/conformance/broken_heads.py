"""Heads with one planted defect each, and ``HEADS``: the check that finds it, and a part of what that says."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conformance.toys import (
    BoxOutput,
    MemoryOutput,
    Sound,
    SoundBoxes,
    SoundMemory,
    SoundPhases,
)
from visionkit.types import BoxPrediction, FeatureSpec, LabelSet, Output, SemanticOutput, SemanticPrediction


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


class AveragesOverItsBatch(Sound):
    """The scale of the loss depends on which images are in the batch together."""

    def losses(self, output, batch):
        mean = super().losses(output, batch)["entropy"]
        return {"entropy": mean.value() * output.logits.detach().abs().amax()}


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


class MixesDevices(Sound):
    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        return SemanticOutput(logits + torch.zeros(logits.shape[-2:]))


class LeavesALossOnTheCPU(Sound):
    def losses(self, output, batch):
        if not any((target.labels == 0).any() for target in batch.targets):
            return {"entropy": torch.zeros((), requires_grad=True)}
        return super().losses(output, batch)


class PredictsThroughNumPy(Sound):
    def predict(self, output, batch):
        output.logits.argmax(1).numpy()
        return super().predict(output, batch)


class OverflowsInHalf(Sound):
    def losses(self, output, batch):
        flat = output.logits.flatten(1) * 1000
        scale = (flat @ flat.T).sum()
        return {"entropy": super().losses(output, batch)["entropy"].value() + scale * 1e-9}


class RoundsCoordinates(SoundBoxes):
    def forward(self, features, batch, upstream):
        said = self.score(features["c4"].mean((2, 3)))
        near, far = said[:, :2].sigmoid() * 0.5, 0.5 + said[:, 2:4].sigmoid() * 0.5
        height, width = batch.images.shape[-2:]
        scale = torch.stack((said.new_full((), width), said.new_full((), height))).repeat(2)
        return BoxOutput((torch.cat((near, far), 1) * scale).float(), said[:, 4].sigmoid().float())


class RoundsShares(SoundBoxes):
    def forward(self, features, batch, upstream):
        said = self.score(features["c4"].mean((2, 3)))
        near, far = said[:, :2].sigmoid() * 0.5, 0.5 + said[:, 2:4].sigmoid() * 0.5
        height, width = batch.images.shape[-2:]
        scale = torch.stack((said.new_full((), width), said.new_full((), height))).repeat(2)
        return BoxOutput(torch.cat((near, far), 1).float() * scale.float(), said[:, 4].sigmoid().float())


class WaitsForEveryRow(Sound):
    def losses(self, output, batch):
        rows = [row.mean().item() for logits in output.logits for row in logits[0]]
        return {"entropy": super().losses(output, batch)["entropy"].value() + 0 * sum(rows)}


class WaitsForEveryRowItPredicts(Sound):
    def predict(self, output, batch):
        assert all(bool(row.isfinite().all()) for logits in output.logits for row in logits[0])
        return super().predict(output, batch)


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
    (NormalisesOneCell, "one_labelled_image_is_enough", "cannot normalize a single value"),
    (AveragesOverItsBatch, "losses_of_batches_add_up", "in one batch and in three"),
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
    (MixesDevices, "works_on_an_accelerator", "broken_heads.py"),
    (LeavesALossOnTheCPU, "works_on_an_accelerator", "loss 'entropy' is on the CPU"),
    (PredictsThroughNumPy, "works_on_an_accelerator", "to numpy"),
    (OverflowsInHalf, "works_on_an_accelerator", "16-mixed, loss 'entropy' is inf"),
    (RoundsCoordinates, "works_on_an_accelerator", "rounded to half precision"),
    (RoundsShares, "works_on_an_accelerator", "rounded to half precision"),
    (WaitsForEveryRow, "works_on_an_accelerator", "in a training step the host waits"),
    (WaitsForEveryRowItPredicts, "works_on_an_accelerator", "in a prediction the host waits"),
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
