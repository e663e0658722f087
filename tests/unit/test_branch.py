"""The node where heads branch off: plain gradients for the heads, weighed ones for what they share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from visionkit.model import Backbone, Head, MultiTaskModel, Step
from visionkit.train.balance import Balancer
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch, Output, SemanticPrediction, Target

SPEC = FeatureSpec({"c1": Level(4, 2), "c2": Level(6, 4)})
LABELS = LabelSet(("a", "b"))


class Stem(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.one, self.two = nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 6, 2, 2)
        self.passes = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        c1 = self.one(images)
        return {"c1": c1, "c2": self.two(c1.tanh())}


class Reader(Head):
    task = "any"
    makes = SemanticPrediction
    output = Output
    loss_names = ("far",)

    def __init__(self, spec: FeatureSpec, levels: tuple[str, ...], power: int) -> None:
        super().__init__(spec, LABELS)
        self.levels, self.power = levels, power
        self.convs = nn.ModuleDict({level: nn.Conv2d(spec[level].channels, 1, 1) for level in levels})

    def forward(self, features, batch, upstream):
        return MapsOutput([self.convs[level](features[level]).mean((1, 2, 3)) for level in self.levels])

    def losses(self, output, batch):
        return {"far": torch.stack([(m - 1).abs().pow(self.power).mean() for m in output.maps]).sum()}


class MapsOutput(Output):
    def __init__(self, maps: list[Tensor]) -> None:
        self.maps = maps

    def rows(self, rows, total):
        return MapsOutput([m[list(rows)] for m in self.maps])


HEADS = {"x": ("c1",), "y": ("c1", "c2"), "z": ("c2",)}


def a_model() -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(Stem(), None, {n: Reader(SPEC, own, 1 + i) for i, (n, own) in enumerate(HEADS.items())})


def a_batch(**labelled: list[int]) -> MixedBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 8, 8, generator=generator).to(memory_format=torch.channels_last)
    rows = {name: labelled.get(name, [0, 1, 2, 3]) for name in HEADS}
    info = tuple(ImageInfo(i, "", (8, 8), (8, 8)) for i in range(4))
    return MixedBatch(images, info, {n: [Target() if i in own else None for i in range(4)] for n, own in rows.items()})


class Given(Balancer):
    """Weights that a test gives; keeps what it was asked."""

    at_features = True

    def __init__(self, weights: dict[str, float]) -> None:
        super().__init__(dict.fromkeys(HEADS, ("far",)))
        self.given, self.asked = weights, []

    def weigh(self, gramian: Tensor, heads) -> Tensor:
        self.asked.append((gramian, list(heads)))
        return torch.tensor([self.given[head] for head in heads])


def gradients(balancer: Balancer | None, batch: MixedBatch, only: str | None = None) -> dict[str, Tensor]:
    model = a_model()
    step = Step(batch, balancer.branch if balancer else None)
    losses = model(step)
    total = Balancer(dict.fromkeys(HEADS, ("far",)))(
        {name: own for name, own in losses.items() if only in (None, name)}, step.counts.labelled
    )
    total.backward()
    assert model.backbone.passes == 1
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


BATCHES = [a_batch(), a_batch(x=[0, 2], y=[3], z=[0, 1]), a_batch(y=[])]


@pytest.mark.parametrize("batch", BATCHES)
def test_weights_of_one_are_the_plain_gradient(batch):
    plain, parted = gradients(None, batch), gradients(Given(dict.fromkeys(HEADS, 1.0)), batch)
    for name, value in plain.items():
        torch.testing.assert_close(parted[name], value)


@pytest.mark.parametrize("batch", BATCHES)
def test_what_is_shared_gets_the_weighed_sum_and_heads_their_own(batch):
    weights = {"x": 0.5, "y": 3.0, "z": -2.0}
    parted = gradients(Given(weights), batch)
    single = {name: gradients(None, batch, only=name) for name in HEADS}
    for name, value in parted.items():
        if name.startswith("backbone"):
            torch.testing.assert_close(value, sum(weights[head] * single[head][name] for head in HEADS))
        else:
            torch.testing.assert_close(value, sum(single[head][name] for head in HEADS))


def test_the_gramian_is_that_of_the_gradients_at_the_features_of_the_labelled_heads():
    batch = a_batch(x=[0, 2], y=[])
    balancer = Given(dict.fromkeys(HEADS, 1.0))
    gradients(balancer, batch)
    ((gramian, heads),) = balancer.asked
    assert heads == ["x", "z"]
    model = a_model()
    features = {k: v.detach().requires_grad_() for k, v in model.features(batch.images).items()}
    rows = []
    for head in heads:
        mine = batch.labelled(head)
        own = {level: features[level][mine] for level in HEADS[head]}
        module = model.head(head)
        loss = module.losses(module(own, batch.view(head, mine, targets=False), {}), None)["far"]
        parts = torch.autograd.grad(loss, list(features.values()), allow_unused=True)
        parts = [torch.zeros_like(f) if g is None else g for f, g in zip(features.values(), parts)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    jacobian = torch.stack(rows)
    torch.testing.assert_close(gramian, jacobian.double() @ jacobian.double().T, rtol=1e-5, atol=1e-8)


def test_a_frozen_backbone_has_nothing_to_weigh():
    model = a_model()
    model.backbone.requires_grad_(False)
    balancer = Given(dict.fromkeys(HEADS, 1.0))
    step = Step(a_batch(), balancer.branch)
    balancer(model(step), step.counts.labelled).backward()
    assert balancer.asked == []
    assert all(p.grad is not None for p in model.heads.parameters())


def test_no_head_with_labels_is_no_step():
    balancer = Given({})
    grads = gradients(balancer, a_batch(x=[], y=[], z=[]))
    assert balancer.asked == []
    assert not any(value.any() for value in grads.values())
