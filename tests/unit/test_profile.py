"""The cost of a model against closed forms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from visionkit.cli import main
from visionkit.config import load_pipeline
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.model.build import build_model, placeholder_labels
from visionkit.model.profile import networks_of, profile_model
from visionkit.plugins import PluginManager
from visionkit.types import Detections, FeatureSpec, LabelSet, Level, Output, Prediction, RegionOutput


class Stem(Backbone):
    spec = FeatureSpec({"c2": Level(8, 4)})

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1, bias=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c2": self.conv(images).relu()}


@dataclass
class Scores(Output):
    logits: Tensor


@dataclass
class Found(RegionOutput):
    def samples(self, targets):
        return []

    def detections(self):
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]


class Plain(Head):
    task, makes, output, loss_names = "plain", Prediction, Scores, ("loss",)

    def __init__(self, classes: int) -> None:
        super().__init__(FeatureSpec(), LabelSet(("thing",)))
        self.levels = ("c2",)
        self.score = nn.Conv2d(8, classes, 1)

    def forward(self, features: Mapping[str, Tensor], batch, upstream):
        return Scores(self.score(features["c2"]))

    def predict(self, output, batch):
        return [Prediction() for _ in batch.info]


class Boxes(Plain):
    output = Found

    def forward(self, features, batch, upstream):
        self.score(features["c2"])
        return Found(self.labels)


class Branch(Plain):
    needs = {"regions": RegionOutput}
    seen: list[Detections]

    def forward(self, features, batch, upstream):
        assert isinstance(upstream["regions"], Found)
        self.seen = upstream["regions"].detections()
        return super().forward(features, batch, upstream)


def model() -> MultiTaskModel:
    return MultiTaskModel(Stem(), None, {"a": Plain(5), "boxes": Boxes(3), "branch": Branch(2)})


def test_closed_forms() -> None:
    profile = profile_model(model(), (60, 128), repeats=1)  # 60 is padded to 64
    cells = 16 * 32
    assert {name: cost.parameters for name, cost in profile.parts.items()} == {
        "backbone": 216, "heads/a": 45, "heads/boxes": 27, "heads/branch": 18
    }  # fmt: skip
    assert {name: cost.flops for name, cost in profile.parts.items()} == {
        "backbone": 2 * 216 * cells, "heads/a": 2 * 40 * cells, "heads/boxes": 2 * 24 * cells,
        "heads/branch": 2 * 16 * cells,
    }  # fmt: skip
    assert profile.parts["backbone"].peak_bytes == 2 * 8 * cells * 4  # before and after ReLU
    assert profile.parts["heads/a"].peak_bytes == 5 * cells * 4
    # All that is alive at the end: one feature map and the outputs that are kept.
    assert profile.total.peak_bytes == 2 * 8 * cells * 4
    assert profile.total.parameters == 216 + 45 + 27 + 18
    assert all(cost.milliseconds > 0 for cost in profile.parts.values())


def test_what_sharing_saves() -> None:
    profile = profile_model(model(), (64, 64), repeats=1)
    assert profile.separate == ["a", "branch"]  # a branch brings its boxes along
    assert profile.alone["branch"].parameters == 216 + 27 + 18
    assert profile.alone["boxes"].parameters == 216 + 27
    sharing = profile.sharing()
    assert sharing["separate"]["parameters"] == (216 + 45) + (216 + 27 + 18)
    assert sharing["times_fewer"]["parameters"] == pytest.approx(522 / 306)


def test_branches_are_given_boxes() -> None:
    shared = model()
    profile = profile_model(shared, (96, 64), images=2, boxes=30, repeats=1)
    seen = shared.head("branch").seen
    assert [len(found.boxes) for found in seen] == [30, 30]
    for found in seen:
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([64, 96])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert profile.boxes == 30


def test_no_backbone() -> None:
    class Alone(Plain):
        def forward(self, features, batch, upstream):
            return Scores(self.score(batch.images.repeat(1, 3, 1, 1)[:, :8]))

    head = Alone(2)
    head.levels = ()
    profile = profile_model(MultiTaskModel(None, None, {"alone": head}), (32, 32), repeats=1)
    assert list(profile.parts) == ["heads/alone"]
    assert profile.total.parameters == profile.alone["alone"].parameters == 18


PIPELINE = """
backbone: {name: timm, model: resnet18, pretrained: no/such/file.pth}
neck: {name: fpn, channels: 16}
heads:
  ground: {name: semantic_fpn, channels: 16, labels: [grass, sky]}
  objects: {name: semantic_fpn, channels: 16}
"""


def test_command(tmp_path, capsys) -> None:
    (tmp_path / "two.yaml").write_text(PIPELINE)
    out = tmp_path / "cost.json"
    with pytest.raises(SystemExit) as done:
        main(["profile", str(tmp_path / "two.yaml"), "--size", "64x96", "--classes", "9", "--json", str(out)])
    assert done.value.code in (0, None)
    cost = json.loads(out.read_text())
    assert list(cost["parts"]) == ["backbone", "neck", "heads/ground", "heads/objects"]
    assert cost["parts"]["backbone"]["parameters"] == 11_176_512  # torchvision's ResNet-18 without its classifier
    assert sum(part["parameters"] for part in cost["parts"].values()) == cost["total"]["parameters"]
    grown = cost["parts"]["heads/objects"]["parameters"] - cost["parts"]["heads/ground"]["parameters"]
    assert grown == 7 * 17
    assert cost["sharing"]["models"] == ["ground", "objects"]
    assert cost["size"] == [64, 96]
    assert "sharing takes" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--size", "480"], ["--size", "0x64"], ["--device", "toaster"]])
def test_mistakes(tmp_path, capsys, arguments) -> None:
    (tmp_path / "two.yaml").write_text(PIPELINE)
    with pytest.raises(SystemExit) as done:
        main(["profile", str(tmp_path / "two.yaml"), *arguments])
    assert done.value.code == 2
    assert arguments[1] in capsys.readouterr().err


PAPERS = {
    "pix2pix_facades": {"generator": (54_413_955, "main"), "discriminator": (2_768_705, "discriminator")},
    "cyclegan_horse2zebra": {
        "forth": (11_378_179, "main"), "back": (11_378_179, "main"),
        "judge_first": (2_764_737, "discriminator"), "judge_second": (2_764_737, "discriminator"),
    },
    "style_transfer_coco": {"network": (1_679_235, "main"), "vgg": (7_635_264, "frozen")},
    "cgan_mnist": {"generator": (2_413_984, "main"), "discriminator": (1_224_351, "discriminator")},
    "demo": {},
}  # fmt: skip


@pytest.mark.parametrize("name", PAPERS)
def test_networks_that_are_trained_apart_are_counted_apart(name: str) -> None:
    pipeline, plugins = load_pipeline(name), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    found = {part: networks_of(model.head(part)) for part in model.order}
    counts = {n: (network.parameters, network.phase) for own in found.values() for n, network in own.items()}
    assert counts == PAPERS[name]


def test_the_command_shows_generator_and_discriminator(tmp_path, capsys) -> None:
    (tmp_path / "gan.yaml").write_text("heads: {digits: {name: cgan, size: [4, 4]}}\n")
    out = tmp_path / "cost.json"
    with pytest.raises(SystemExit):
        main(["profile", str(tmp_path / "gan.yaml"), "--size", "32x32", "--classes", "3", "--json", str(out)])
    networks = json.loads(out.read_text())["networks"]["heads/digits"]
    assert list(networks) == ["generator", "discriminator"]
    assert networks["discriminator"]["phase"] == "discriminator"
    told = capsys.readouterr().out
    assert "generator (main)" in told
    assert f"{networks['generator']['parameters']:,}" in told
