"""The head graph: who runs on which rows, ports, and zeros where nothing is labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch, Output, Prediction, SemanticTarget

LABELS = LabelSet(("a", "b"))
SPEC = FeatureSpec({"c1": Level(4, 2)})


@dataclass
class Mean(Prediction):
    value: float


@dataclass
class MapOutput(Output):
    maps: Tensor
    names: list[str]


@dataclass
class OtherOutput(Output):
    value: Tensor


class Stem(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.spec = SPEC
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.passes = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.passes += 1
        return {"c1": self.conv(images)}


class Maps(Head):
    task = "semantic"
    makes = Mean
    output = MapOutput
    loss_names = ("square",)

    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.levels = ("c1",)
        self.conv = nn.Conv2d(spec["c1"].channels, 2, 1)
        self.seen: list[list[str]] = []

    def forward(self, features, batch, upstream):
        self.seen.append([str(info.id) for info in batch.info])
        assert batch.targets == ()
        return MapOutput(self.conv(features["c1"]), [str(info.id) for info in batch.info])

    def losses(self, output, batch):
        assert output.names == [str(info.id) for info in batch.info]
        assert all(target is not None for target in batch.targets)
        return {"square": output.maps.square().mean()}

    def predict(self, output, batch):
        return [Mean(m.mean().item()) for m in output.maps]


class Reader(Maps):
    needs = {"maps": MapOutput}

    def forward(self, features, batch, upstream):
        out = super().forward(features, batch, upstream)
        assert upstream["maps"].names == out.names
        return MapOutput(out.maps + upstream["maps"].maps, out.names)


class Stranger(Maps):
    output = OtherOutput


def batch(**labelled: list[int]) -> MixedBatch:
    target = SemanticTarget(torch.zeros(8, 8, dtype=torch.uint8))
    info = tuple(ImageInfo(i, f"{i}.png", (8, 8), (8, 8)) for i in range(4))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return MixedBatch(
        images, info, {h: [target if i in rows else None for i in range(4)] for h, rows in labelled.items()}
    )


def model(**heads: type[Head]) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(Stem(), None, {name: cls(SPEC, LABELS) for name, cls in heads.items()})


def test_each_head_learns_only_from_its_own_rows_and_one_backbone_pass_serves_all():
    m = model(first=Maps, second=Maps)
    losses, _ = m.losses(batch(first=[0, 2], second=[1, 2, 3]))
    assert m.head("first").seen == [["0", "2"]]
    assert m.head("second").seen == [["1", "2", "3"]]
    assert m.backbone.passes == 1
    assert set(losses) == {"first", "second"}


def test_loss_of_a_mixed_batch_equals_that_of_its_labelled_images_alone():
    m = model(first=Maps)
    whole = batch(first=[1, 3])
    alone = MixedBatch(whole.images[[1, 3]], (whole.info[1], whole.info[3]), {"first": [whole.targets["first"][1]] * 2})
    assert torch.equal(m.losses(whole)[0]["first"]["square"], m.losses(alone)[0]["first"]["square"])


def test_a_head_without_labels_gives_zeros_that_reach_all_its_parameters():
    m = model(first=Maps, second=Maps)
    losses, _ = m.losses(batch(first=[0], second=[]))
    assert losses["second"]["square"].item() == 0.0
    losses["second"]["square"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in m.head("second").parameters())
    assert m.backbone.conv.weight.grad is not None


def test_a_head_that_is_read_also_runs_on_rows_labelled_for_its_reader_alone():
    m = model(reader=Reader, maps=Maps)
    assert m.order == ["maps", "reader"]
    losses, _ = m.losses(batch(reader=[1, 2], maps=[0]))
    assert m.head("maps").seen == [["0", "1", "2"]]
    assert m.head("reader").seen == [["1", "2"]]
    sum(named["square"] for named in losses.values()).backward()
    assert m.head("maps").conv.weight.grad.any()


def test_predictions_of_some_heads_run_only_those_and_what_they_read():
    built = {name: cls(SPEC, LABELS) for name, cls in {"reader": Reader, "maps": Maps, "third": Maps}.items()}
    m = MultiTaskModel(Stem(), None, built, {"reader": {"maps": "maps"}}).eval()
    out = m.predict(batch(), ["reader"])
    assert set(out) == {"reader"}
    assert len(out["reader"]) == 4
    assert m.head("third").seen == []


def test_return_types_do_not_depend_on_the_mode():
    m = model(first=Maps)
    for mode in (True, False):
        m.train(mode)
        losses, outputs = m.losses(batch(first=[0]))
        assert isinstance(outputs["first"], MapOutput)
        assert isinstance(m.predict(batch())["first"][0], Mean)
        assert set(losses["first"]) == {"square"}


@pytest.mark.parametrize(
    ("heads", "reads", "message"),
    [
        ({"reader": Reader}, {}, "no head gives one"),
        ({"reader": Reader, "x": Maps, "y": Maps}, {}, "2 heads give one: x, y"),
        ({"reader": Reader, "x": Stranger}, {"reader": {"maps": "x"}}, "head 'x' gives a OtherOutput"),
        ({"reader": Reader, "x": Maps}, {"reader": {"maps": "z"}}, "there is no such head"),
        ({"reader": Reader, "x": Maps}, {"reader": {"mops": "x"}}, "no port 'mops'"),
        ({"a": Reader, "b": Reader}, {"a": {"maps": "b"}, "b": {"maps": "a"}}, "in a circle: a, b"),
    ],
)
def test_ports_that_do_not_fit_are_told_before_the_first_batch(heads, reads, message):
    built = {name: cls(SPEC, LABELS) for name, cls in heads.items()}
    with pytest.raises(UserError, match=message):
        MultiTaskModel(Stem(), None, built, reads)


def test_padding_is_zero_after_normalisation():
    info = (ImageInfo(0, "", (4, 5), (4, 5)), ImageInfo(1, "", (8, 8), (8, 8)))
    mixed = MixedBatch(torch.full((2, 3, 8, 8), 255, dtype=torch.uint8), info, {})
    x = mixed.normalised(torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)).images
    assert torch.equal(x[0, :, :4, :5], torch.full((3, 4, 5), 2.0))
    assert not x[0, :, 4:].any()
    assert not x[0, :, :, 5:].any()
    assert torch.equal(x[1], torch.full((3, 8, 8), 2.0))


class Wrong(Maps):
    """Returns what it is given."""

    returned: Any = None

    def forward(self, features, batch, upstream):
        output = super().forward(features, batch, upstream)
        return self.returned.get("forward", output)

    def losses(self, output, batch):
        return self.returned.get("losses") or super().losses(output, batch)

    def predict(self, output, batch):
        return self.returned["predict"] if "predict" in self.returned else super().predict(output, batch)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ({"forward": None}, "head 'a': forward returns a NoneType; it declares MapOutput"),
        ({"forward": OtherOutput(torch.zeros(1))}, "forward returns a OtherOutput; it declares MapOutput"),
        ({"losses": 3.0}, "gives a float as losses; it must be a mapping by name"),
        ({"losses": {"square": 1.0}}, "loss 'square' is float; it must be a scalar tensor or a Mean of one"),
        ({"losses": {"square": torch.zeros(2)}}, r"loss 'square' is a tensor of shape \(2,\)"),
        ({"losses": {"other": torch.zeros(())}}, r"gives losses \['other'\], but declares \['square'\]"),
        ({"predict": None}, "predict returns a NoneType for 4 images"),
        ({"predict": [Mean(1.0)]}, "predict returns 1 predictions for 4 images; it must be a list with one for each"),
        ({"predict": [1, 2, 3, 4]}, "predict returns a int; it declares Mean"),
    ],
)
def test_a_head_that_returns_something_else_is_named(returned: dict[str, Any], says: str) -> None:
    whole, images = model(a=Wrong), batch(a=[0, 1])
    whole.head("a").returned = returned  # type: ignore[assignment]
    with pytest.raises(UserError, match=says):
        (whole.predict if "predict" in returned else whole.losses)(images)
