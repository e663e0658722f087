"""Folding batch norms into convolutions: the same features and predictions as before, and nothing folded wrongly."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from visionkit.config.load import load_pipeline
from visionkit.infer import Predictor
from visionkit.layers.fast_conv import use_fast_convs
from visionkit.layers.norm import FrozenBatchNorm2d, freeze_batch_norms
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.model.build import build_model, placeholder_labels
from visionkit.model.fold import fold_batch_norms, join_frozen_norms
from visionkit.plugins import PluginManager
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch, Output, Prediction


class Body(Backbone):
    """Any module on the images; the last of what it makes is what the head reads."""

    spec = FeatureSpec({"c1": Level(8, 1)})

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        made = self.body(images)
        return {"c1": made if isinstance(made, Tensor) else made[-1]}


@dataclass
class Seen(Output):
    sums: Tensor


@dataclass
class Sum(Prediction):
    value: Tensor


class Summed(Head):
    task, makes, output, loss_names, levels = "sum", Sum, Seen, (), ("c1",)

    def forward(self, features: Mapping[str, Tensor], batch, upstream):
        return Seen(features["c1"].sum((1, 2, 3)))

    def predict(self, output, batch):
        return [Sum(value) for value in output.sums]


def norm(channels: int, kind: type = nn.BatchNorm2d) -> nn.Module:
    """A batch norm as training leaves it."""
    made = kind(channels)
    for tensor, low, high in (
        (made.weight, 0.5, 2.0), (made.bias, -1.0, 1.0), (made.running_mean, -1.0, 1.0), (made.running_var, 0.2, 3.0),
    ):  # fmt: skip
        nn.init.uniform_(tensor, low, high)
    return made


def frozen(channels: int) -> nn.Module:
    return FrozenBatchNorm2d.like(norm(channels, BatchNormAct2d))


def model_of(body: nn.Module) -> MultiTaskModel:
    return MultiTaskModel(Body(body), None, {"sum": Summed(Body.spec, LabelSet(("one",)))}).eval()


@torch.no_grad()
def folded(body: nn.Module, size: int = 32) -> tuple[int, nn.Module]:
    """How many batch norms of ``body`` are folded, and what it has become; its result must stay what it was."""
    x = torch.randn(2, 3, size, size)
    model = model_of(body)
    want = model.features(x)["c1"]
    count = fold_batch_norms(model, (size, size))
    found = model.features(x)["c1"]
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    return count, model.backbone.body


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def norms_in(body: nn.Module) -> int:
    return sum("BatchNorm" in type(module).__name__ for module in body.modules())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [norm, frozen, lambda n: norm(n, BatchNormAct2d)], ids=["torch", "frozen", "timm"])
def test_a_convolution_takes_up_its_batch_norm(kind, bias):
    count, body = folded(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=bias), kind(8)))
    assert count == 1
    assert norms_in(body) == 0


def test_activations_that_batch_norms_carry_stay():
    for kind in (frozen, lambda n: norm(n, BatchNormAct2d)):
        _, body = folded(nn.Sequential(nn.Conv2d(3, 8, 3), kind(8)))
        assert float(body(torch.randn(1, 3, 9, 9)).detach().min()) == 0.0


def test_grouped_and_transposed_convolutions():
    assert folded(nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), norm(6)))[0] == 1
    assert folded(nn.Sequential(nn.ConvTranspose2d(3, 8, 4, stride=2, padding=1, bias=False), norm(8)))[0] == 1
    assert folded(nn.Sequential(nn.ConvTranspose2d(3, 6, 2, stride=2, groups=3), norm(6)))[0] == 0


def test_a_batch_norm_without_an_affine_map():
    plain = nn.BatchNorm2d(8, affine=False)
    nn.init.uniform_(plain.running_var, 0.2, 3.0)
    assert folded(nn.Sequential(nn.Conv2d(3, 8, 1), plain))[0] == 1


class ReadTwice(nn.Module):
    """Something besides the batch norm reads the convolution's result, before or after it."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.first = nn.Conv2d(3, 8, 1), norm(8), first

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.first:
            other = x.sigmoid()
            return self.norm(x) + other
        return self.norm(x) + x


@pytest.mark.parametrize("first", [False, True])
def test_a_result_that_is_read_twice_stays(first):
    assert folded(ReadTwice(first=first))[0] == 0


class Changed(nn.Sequential):
    """Between convolution and batch norm the result is changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).add_(1))


def test_a_result_that_is_changed_in_between_stays():
    assert folded(Changed(nn.Conv2d(3, 8, 1), norm(8)))[0] == 0
    assert folded(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), norm(8)))[0] == 0


class OneConvolutionTwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 8, 1), nn.ModuleList([norm(8), norm(8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.conv(x)) + self.norms[1](self.conv(2 * x))


class TwoConvolutionsOneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs, self.norm = nn.ModuleList([nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)]), norm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convs[0](x)) + self.norm(self.convs[1](x))


class OneWeightTwoConvolutions(TwoConvolutionsOneNorm):
    def __init__(self) -> None:
        super().__init__()
        self.convs[1].weight = self.convs[0].weight


@pytest.mark.parametrize("body", [OneConvolutionTwoNorms, TwoConvolutionsOneNorm, OneWeightTwoConvolutions])
def test_what_is_shared_with_others_stays(body):
    assert folded(body())[0] == 0


class OverLevels(nn.Module):
    """A convolution and its batch norm, shared over maps of several sizes and registered under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), norm(8)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        fine, coarse = self.again(self.conv(x)), self.norm(self.conv(x[:, :, ::2, ::2]))
        return fine + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_pair_that_runs_more_than_once_is_folded_once():
    count, body = folded(OverLevels())
    assert count == 1
    assert norms_in(body) == 0


def test_batch_norms_before_convolutions_and_those_that_count_stay():
    assert folded(nn.Sequential(norm(3), nn.Conv2d(3, 8, 1)))[0] == 0
    assert folded(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)))[0] == 0
    training = model_of(nn.Sequential(nn.Conv2d(3, 8, 1), norm(8))).train()
    assert fold_batch_norms(training) == 0


def test_weights_that_are_made_anew_at_every_call_stay():
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1))
    assert folded(nn.Sequential(conv, norm(8)))[0] == 0


def test_a_module_that_is_watched_stays():
    conv, seen = nn.Conv2d(3, 8, 1), []
    conv.register_forward_hook(lambda module, args, out: seen.append(out))
    assert folded(nn.Sequential(conv, norm(8)))[0] == 0


def test_a_network_for_another_size_is_left_alone():
    body = nn.Sequential(nn.Conv2d(3, 8, 1), norm(8), nn.Flatten(2), nn.Linear(32 * 32, 2))
    model = model_of(body)
    before = copy.deepcopy(model.state_dict())
    assert fold_batch_norms(model, (64, 64)) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "resnet26d", "mobilenetv3_small_050", "efficientnet_lite0"])
def test_networks_of_timm_lose_all_their_batch_norms(name, freeze):
    body = timm.create_model(name, features_only=True)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if freeze:
        freeze_batch_norms(body)
    before = norms_in(body)
    count, body = folded(body, 64)
    assert count == before > 0
    assert norms_in(body) == 0


def joined(body: nn.Module, size: int = 32) -> tuple[int, nn.Module]:
    """How many frozen norms of ``body`` are joined, and what it has become; results and gradients must stay."""
    usual, other = Body(copy.deepcopy(body)), Body(body)
    count = join_frozen_norms(other, (size, size))
    assert other.state_dict().keys() == usual.state_dict().keys()
    x = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(other.eval()(x)["c1"], usual.eval()(x)["c1"])
    want, found = usual.train()(x)["c1"], copy.deepcopy(other).train()(x)["c1"]
    near(found, want)
    above = torch.randn_like(want)
    other.train()(x)["c1"].backward(above)
    want.backward(above)
    for mine, theirs in zip(other.parameters(), usual.parameters(), strict=True):
        near(mine.grad, theirs.grad)
    return count, other.body


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.detach().abs().max()))


def test_frozen_norms_are_joined_with_what_stands_before_them():
    for bias in (False, True):
        count, body = joined(
            nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), frozen(8), nn.Conv2d(8, 8, 1, bias=False), norm(8))
        )
        assert count == 1
        assert type(body[2]) is nn.Conv2d
    shared = ReadTwice(first=False)
    shared.norm = frozen(8)
    assert joined(shared)[0] == 0


def test_a_frozen_network_joins_all_its_norms_and_can_still_be_folded():
    body = timm.create_model("resnet18", features_only=True, channels=[96, 96, 96, 96])
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    use_fast_convs(freeze_batch_norms(body))
    count, body = joined(body, 64)
    assert count == norms_in(body) == 21
    other = model_of(copy.deepcopy(body))
    x = torch.randn(2, 3, 64, 64)
    want = other.features(x)["c1"]
    assert fold_batch_norms(other, (64, 64)) == 21
    near(other.features(x)["c1"], want)
    assert norms_in(body) == 21


def test_a_predictor_finds_the_same_when_it_folds():
    plugins = PluginManager()
    pipeline = load_pipeline("demo")
    labels = placeholder_labels(pipeline, plugins, classes=3)
    model = build_model(pipeline, plugins, labels).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    plain = Predictor(copy.deepcopy(model), labels)
    folding = Predictor(model, labels, fold=True)
    assert norms_in(plain.model) > 0 == norms_in(folding.model.backbone)
    batch = MixedBatch(torch.randn(2, 3, 96, 128), tuple(ImageInfo(i, "", (96, 128), (96, 128)) for i in range(2)), {})
    with torch.no_grad():
        for want, found in zip(outputs(plain.model, batch), outputs(folding.model, batch), strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-5 * float(want.abs().max()))
    want, found = plain.predict([image])[0], folding.predict([image])[0]
    assert want.keys() == found.keys() == set(model.order)
    assert (want["semantic"].labels == found["semantic"].labels).float().mean() > 0.999


def outputs(model: MultiTaskModel, batch: MixedBatch) -> list[Tensor]:
    """Features, what is said of every anchor, and of every pixel."""
    features = model.features(batch.images)
    rows = list(range(len(batch)))
    made = model.run_heads(model.branches(features), batch, {"boxes": rows, "semantic": rows})
    rpn = made["boxes"].rpn
    return [*features.values(), *rpn.objectness, *rpn.deltas, made["semantic"].logits]
