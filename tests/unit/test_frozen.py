"""Frozen parts: nothing in them changes, whatever kind of module they are and however they were frozen."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from visionkit.config.pipeline import PartConfig
from visionkit.errors import UserError
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.train.optim import MovingAverage, build_optimizers, freeze_parts, phases_of
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch, Output, Prediction, SemanticTarget

LABELS = LabelSet(("a", "b"))
SPEC = FeatureSpec({"c1": Level(4, 2)})


@dataclass
class Maps(Output):
    maps: Tensor


class Running(nn.Module):
    """Buffers that move in every forward pass, whatever the mode: in place, and by another tensor in their place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.center = 0.9 * self.center + 0.1 * x.mean((0, 2, 3))
            self.calls += 1
        return x - self.center[:, None, None]


class Stem(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.body = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.last = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c1": self.last(self.body(images))}


class Everything(Head):
    """A head with all that changes while training."""

    task, makes, output, loss_names = "semantic", Prediction, Maps, ("square",)

    def __init__(self, spec: FeatureSpec, labels: LabelSet, frozen: bool = False) -> None:
        super().__init__(spec, labels)
        self.levels = ("c1",)
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 2, 1))
        self.old = nn.utils.spectral_norm(nn.Conv2d(2, 2, 1))
        self.norm, self.plain = nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False)
        self.running, self.dropout = Running(), nn.Dropout(0.5)
        self.code = nn.Parameter(torch.zeros(2), requires_grad=False)
        if frozen:
            self.requires_grad_(False)

    def forward(self, features, batch, upstream):
        return Maps(self.dropout(self.running(self.plain(self.norm(self.old(self.conv(features["c1"])))))))

    def losses(self, output, batch):
        return {"square": output.maps.square().mean()}


class Codebook(Everything):
    """A head that updates a parameter without gradient itself."""

    def losses(self, output, batch):
        with torch.no_grad():
            self.code += 1.0
        return super().losses(output, batch)


class Clipped(Everything):
    """A head that clips its weights itself."""

    def losses(self, output, batch):
        with torch.no_grad():
            self.norm.weight.clamp_(max=0.01)
        return super().losses(output, batch)


def model(**heads: Head) -> MultiTaskModel:
    return MultiTaskModel(Stem(), None, heads)


def head(kind: type[Everything] = Everything, frozen: bool = False) -> Everything:
    return kind(SPEC, LABELS, frozen)


def batch(heads: list[str]) -> MixedBatch:
    target = SemanticTarget(torch.zeros(8, 8, dtype=torch.uint8))
    info = tuple(ImageInfo(i, f"{i}.png", (8, 8), (8, 8)) for i in range(2))
    return MixedBatch(torch.rand(2, 3, 8, 8), info, {name: [target, target] for name in heads})


def pipeline(**parts: dict) -> SimpleNamespace:
    def fail(at: tuple, message: str) -> UserError:
        return UserError(f"{'.'.join(at)}: {message}")

    named = {name.replace("__", "."): PartConfig(**part) for name, part in parts.items()}
    optimizer = SimpleNamespace(name="adamw", lr=0.1, weight_decay=0.1, betas=(0.9, 0.999))
    train = SimpleNamespace(parts=named, optimizer=optimizer, precision="32-true", phases={})
    return SimpleNamespace(train=train, fail=fail)


def trained(m: MultiTaskModel, description: SimpleNamespace, steps: int = 2) -> tuple[set[str], MovingAverage]:
    """The names of all tensors that training has changed, and the average of the weights."""
    torch.manual_seed(0)
    freeze_parts(m, description)
    (optimizer,) = build_optimizers(m, phases_of(m), description, nn.Module()).values()
    average, before = MovingAverage(m, 0.5), copy.deepcopy(m.state_dict())
    for _ in range(steps):
        m.train()
        losses, _ = m.losses(batch(list(m.heads)))
        sum(value for named in losses.values() for value in named.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(m)
    m.eval()  # an evaluation follows
    m.losses(batch(list(m.heads)))
    after = m.state_dict()
    assert average.state.keys() == before.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}, average


def under(names: set[str], prefix: str) -> set[str]:
    return {name for name in names if name.startswith(prefix)}


def test_nothing_under_a_frozen_prefix_changes_nor_does_its_average():
    m = model(kept=head(), learning=head())
    before = copy.deepcopy(m.state_dict())
    moved, average = trained(m, pipeline(backbone={"freeze": True}, heads__kept={"freeze": True}))
    assert not under(moved, "backbone")
    assert not under(moved, "heads.kept")
    kept = [name for name in before if not name.startswith("heads.learning")]
    assert all(torch.equal(average.state[name], before[name]) for name in kept)
    # All of these do change where nothing is frozen.
    for name in ("running.center", "running.calls", "norm.running_mean", "plain.num_batches_tracked", "old.weight_u"):
        assert f"heads.learning.{name}" in moved


def test_parameters_without_a_gradient_freeze_their_module_too():
    m = model(kept=head(frozen=True), learning=head())
    m.backbone.body[1].requires_grad_(False)
    moved, _ = trained(m, pipeline())
    assert not under(moved, "heads.kept")
    assert not under(moved, "backbone.body.1")
    assert "backbone.last.1.running_mean" in moved


def test_the_longest_prefix_decides_for_parameters_buffers_and_modes():
    m = model(a=head())
    parts = {"backbone": {"freeze": True}, "backbone__last": {"lr_scale": 0.5}, "backbone__last__1": {"freeze": True}}
    moved, _ = trained(m, pipeline(**parts, heads={"freeze": True}, heads__a__running={"freeze": False}))
    assert moved == {
        "backbone.last.0.weight",
        "backbone.last.0.bias",
        "heads.a.running.center",
        "heads.a.running.calls",
    }
    m.train()
    assert m.backbone.last[0].training
    assert not m.backbone.last[1].training
    assert not m.backbone.body[2].training
    m.eval()
    assert not any(module.training for module in m.modules())


def test_a_single_layer_and_a_single_parameter_can_be_frozen():
    m = model(a=head())
    moved, _ = trained(m, pipeline(heads__a__norm__weight={"freeze": True}, backbone__body__1={"freeze": True}))
    assert "heads.a.norm.weight" not in moved
    assert not under(moved, "backbone.body.1")
    assert {"heads.a.norm.bias", "heads.a.norm.running_mean", "backbone.body.0.weight"} <= moved


def test_a_module_under_two_names_is_frozen_if_one_of_them_is():
    first, second = head(), head()
    second.norm = first.norm
    moved, _ = trained(model(a=first, b=second), pipeline(heads__b={"freeze": True}))
    assert not under(moved, "heads.a.norm")
    assert not under(moved, "heads.b")


def test_a_parameter_that_a_frozen_head_updates_itself_is_reset_or_refused():
    moved, _ = trained(model(a=head(Codebook)), pipeline(heads__a={"freeze": True}))
    assert not under(moved, "heads.a")
    for parts in ({"heads__a": {"freeze": True}}, {"heads__a__norm": {"freeze": True}}):
        with pytest.raises(
            UserError, match=r"'heads\.a\.norm\.weight' requires no gradient and is frozen, but the code"
        ):
            trained(model(a=head(Clipped)), pipeline(**parts))


def test_loaded_weights_are_the_ones_that_frozen_parts_keep():
    m, other = model(a=head(), b=head()), model(a=head(), b=head())
    freeze_parts(m, pipeline(heads__a={"freeze": True}))
    m.load_state_dict(other.state_dict())
    m.train()
    m.losses(batch(["a", "b"]))
    m.train()
    state, expected = m.state_dict(), other.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in under(set(expected), "heads.a"))


def test_a_prefix_that_matches_nothing_is_an_error_with_a_suggestion():
    message = r"train\.parts\.heads\.a\.nrom: the model has no part 'heads\.a\.nrom'; did you mean 'heads\.a\.norm'\?"
    with pytest.raises(UserError, match=message + r" \(there are .*heads\.a\.running"):
        freeze_parts(model(a=head()), pipeline(heads__a__nrom={"freeze": True}))
    with pytest.raises(UserError, match=r"no part 'backbon'; did you mean 'backbone'\? \(there are backbone, heads\)"):
        freeze_parts(model(a=head()), pipeline(backbon={"freeze": True}))
    with pytest.raises(UserError, match=r"no parameter lies under 'heads\.a\.dropout'"):
        freeze_parts(model(a=head()), pipeline(heads__a__dropout={"lr_scale": 2.0}))


def test_nothing_left_to_optimize_is_an_error():
    with pytest.raises(UserError, match=r"train\.parts: nothing is left to optimize: .* freezes backbone, heads"):
        trained(model(a=head()), pipeline(backbone={"freeze": True}, heads={"freeze": True}))
    m = model(a=head(frozen=True))
    m.backbone.requires_grad_(False)
    with pytest.raises(UserError, match="heads: nothing is left to optimize: every parameter of the model is frozen"):
        trained(m, pipeline())


def test_a_batch_norm_over_a_single_value_is_named():
    m = model(a=head()).train()
    image = ImageInfo(0, "0.png", (2, 2), (2, 2))
    alone = MixedBatch(torch.rand(1, 3, 2, 2), (image,), {"a": [SemanticTarget(torch.zeros(2, 2, dtype=torch.uint8))]})
    with pytest.raises(UserError, match=r"'backbone\.body\.1' \(BatchNorm2d\) .* input is 1 x 4 x 1 x 1\): use larger"):
        m.losses(alone)
    freeze_parts(
        m, pipeline(backbone={"freeze": True}, heads__a__norm={"freeze": True}, heads__a__plain={"freeze": True})
    )
    m.train()
    m.losses(alone)
