"""``visionkit conflicts``: gradients of heads held against one another, by hand and on a whole pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visionkit import cli
from visionkit.draw.chart import heat_map
from visionkit.model import Backbone, Head, MultiTaskModel
from visionkit.train.balance import Fixed
from visionkit.train.conflicts import SHARED, Pair, hints, measure, sentence
from visionkit.types import FeatureSpec, ImageInfo, LabelSet, Level, MixedBatch, Output, Prediction, SemanticTarget

# -- by hand


class Stem(Backbone):
    """One number a channel, so that a head's gradient by it is just as the head wishes."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = FeatureSpec({"c1": Level(2, 1)})
        self.channels = nn.Parameter(torch.zeros(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c1": self.channels[None, :, None, None].expand(len(images), 2, 1, 1)}


class ValueOutput(Output):
    pass


class Pull(Head):
    task, makes, output, loss_names = "semantic", Prediction, ValueOutput, ("pull",)

    def __init__(self, spec: FeatureSpec, labels: LabelSet, directions: list[tuple[float, float]]) -> None:
        super().__init__(spec, labels)
        self.levels = ("c1",)
        self.directions = directions
        self.calls = 0

    def forward(self, features, batch, upstream):
        self.mean = features["c1"].mean((0, 2, 3))
        return ValueOutput()

    def losses(self, output, batch):
        direction = self.directions[self.calls % len(self.directions)]
        self.calls += 1
        return {"pull": self.mean @ torch.tensor(direction)}

    def predict(self, output, batch):
        return []


def batch_of(*heads: str) -> MixedBatch:
    target = SemanticTarget(torch.zeros(4, 4, dtype=torch.uint8))
    info = (ImageInfo(0, "0.png", (4, 4), (4, 4)),)
    return MixedBatch(torch.zeros(1, 3, 4, 4), info, {h: [target if h in heads else None] for h in ("a", "b", "c")})


def measured(a, b, c, batches: list[MixedBatch], weights: dict[str, float] | None = None):
    stem = Stem()
    heads = {name: Pull(stem.spec, LabelSet(("x",)), list(d)) for name, d in (("a", a), ("b", b), ("c", c))}
    model = MultiTaskModel(stem, None, heads)
    return measure(model, batches, Fixed(dict.fromkeys(heads, ("pull",)), weights=weights))


def test_cosines_and_norms_are_those_of_the_gradients():
    parts = measured([(3.0, 4.0)], [(-4.0, 3.0), (-3.0, -4.0)], [(1.0, 0.0)], [batch_of("a", "b", "c")] * 2)
    assert list(parts) == [SHARED]
    part = parts[SHARED]
    assert part.parameters == 2
    assert [pair.heads for pair in part.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    ab, ac, bc = part.pairs
    assert ab.cosine == pytest.approx((0.0 - 1.0) / 2)
    assert (ab.negative, ab.batches) == (0.5, 2)
    assert ab.error == pytest.approx(np.std([0, -1], ddof=1) / math.sqrt(2))
    assert (ac.cosine, ac.error, ac.negative) == (pytest.approx(0.6), pytest.approx(0.0), 0.0)
    assert bc.cosine == pytest.approx((-0.8 - 0.6) / 2)
    assert part.norms["a"].mean == pytest.approx(5.0)
    assert part.norms["a"].spread == pytest.approx(0.0)
    assert ab.of_averages == pytest.approx(np.dot([3, 4], [-7, -1]) / 5 / math.hypot(7, 1))
    assert ac.ratio == pytest.approx(5.0)
    assert [pair.verdict for pair in part.pairs] == ["unrelated", "agree", "conflict"]


def test_only_batches_that_both_heads_learn_from_count():
    part = measured([(1.0, 0.0)], [(-1.0, 0.1)], [(1.0, 1.0)], [batch_of("a"), batch_of("a", "b"), batch_of("b")])[
        SHARED
    ]
    assert [pair.heads for pair in part.pairs] == [("a", "b")]
    assert part.pairs[0].batches == 1
    assert {head: norm.batches for head, norm in part.norms.items()} == {"a": 2, "b": 2}


def test_heads_that_never_share_a_batch_are_compared_by_their_averages():
    batches = [batch_of("a"), batch_of("c"), batch_of("a"), batch_of("c")]
    (pair,) = measured([(1.0, 0.0), (0.0, 1.0)], [(1.0, 0.0)], [(-1.0, -1.0)], batches)[SHARED].pairs
    assert pair.cosine == pytest.approx(-1.0)
    assert (pair.heads, pair.batches, pair.negative, pair.error) == (("a", "c"), 0, None, None)
    assert "they never share a batch" in sentence(pair)
    assert pair.verdict == "conflict"


def test_base_weights_count_as_in_training():
    part = measured([(1.0, 0.0)], [(2.0, 0.0)], [(0.0, 1.0)], [batch_of("a", "b")], weights={"b": 0.25})[SHARED]
    assert part.norms["b"].mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cosine", "error", "verdict"),
    [(0.3, 0.05, "agree"), (-0.3, 0.05, "conflict"), (-0.3, 0.2, "unrelated"), (0.04, 0.001, "unrelated"),
     (0.08, None, "unrelated"), (-0.2, None, "conflict")],
)  # fmt: skip
def test_a_verdict_needs_a_cosine_that_is_clear_of_zero_and_of_its_error(cosine, error, verdict):
    assert Pair(("a", "b"), cosine, error, 0.5, 4, cosine, 1.0).verdict == verdict


def test_what_may_help_is_said_where_something_is_wrong():
    quiet = measured([(1.0, 0.0)], [(2.0, 0.1)], [(0.0, 1.0)], [batch_of("a", "b")])[SHARED]
    assert hints(quiet) == []
    loud = measured([(1.0, 0.0)], [(-60.0, 0.0)], [(0.0, 1.0)], [batch_of("a", "b")])[SHARED]
    assert len(hints(loud)) == 2
    assert "upgrad" in hints(loud)[0]
    assert hints(loud)[1].startswith("b pulls 60 times as hard as a")


# -- the picture


def test_the_heat_map_colours_what_is_below_and_above_zero():
    values = np.array([[1.0, -0.4, np.nan], [-0.4, 1.0, 0.4], [np.nan, 0.4, 1.0]])
    picture = heat_map(values, ["a", "b", "c"], title="t", subtitle="s", bars={"a": 1.0}, bars_title="n", lines=["x"])
    assert picture.dtype == np.uint8
    pixels = picture.reshape(-1, 3).astype(int)
    assert (np.abs(pixels - (213, 94, 0)).sum(1) < 12).any()  # the ends of the scale
    assert (np.abs(pixels - (0, 114, 178)).sum(1) < 12).any()
    flipped = heat_map(-values, ["a", "b", "c"], title="t", subtitle="s", bars={"a": 1.0}, bars_title="n", lines=["x"])
    assert flipped.shape == picture.shape
    assert (flipped != picture).any()


# -- the command

PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads:
  one: {{name: semantic_fpn, channels: 16}}
  two: {{name: semantic_fpn, channels: 16}}
  far: {{name: semantic_fpn, channels: 16}}
sources:
  both:
    name: shapes
    heads: [one, two]
    train: {{root: {root}/both, images: 6, seed: 0, size: 64}}
  apart:
    name: shapes
    heads: [far]
    train: {{root: {root}/apart, images: 6, seed: 1, size: 64}}
train: {{steps: 2, batch_size: 1, workers: 0}}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conflicts")
    (folder / "three.yaml").write_text(PIPELINE.format(root=folder))
    return folder / "three.yaml"


def visionkit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    return int(ended.value.code or 0)


def test_the_command_tells_prints_and_draws(file, tmp_path, capsys):
    arguments = ("conflicts", file, "--batches", 6, "--device", "cpu")
    assert visionkit(*arguments, "--out", tmp_path, "--json", tmp_path / "found.json") == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["heads"], found["batches"]) == (["one", "two", "far"], 6)
    assert list(found["parts"]) == [SHARED, "backbone", "neck"]
    assert list(found["sources"]) == ["both"]
    count = {name: part["parameters"] for name, part in found["parts"].items()}
    assert count[SHARED] == count["backbone"] + count["neck"]
    pairs = {tuple(pair["heads"]): pair for pair in found["parts"][SHARED]["pairs"]}
    assert pairs["one", "two"]["batches"] == 3
    assert pairs["one", "far"]["batches"] == pairs["two", "far"]["batches"] == 0
    assert all(-1 <= pair["cosine"] <= 1 for pair in pairs.values())
    for name in found["parts"]:
        norms = found["parts"][name]["norms"]
        assert {head: norm["batches"] for head, norm in norms.items()} == {"one": 3, "two": 3, "far": 3}
    assert out.count("they never share a batch") == 2
    picture = cv2.imread(str(tmp_path / "conflicts.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 200

    assert visionkit(*arguments, "--json", tmp_path / "again.json") == 0
    assert json.loads((tmp_path / "again.json").read_text()) == found  # the same batches, the same weights


def test_the_weights_of_a_run_can_be_measured(file, tmp_path, capsys):
    assert visionkit("train", file, "--out", tmp_path / "run", "--accelerator", "cpu") == 0
    arguments = ("conflicts", file, "--batches", 2, "--device", "cpu")
    for name, more in (("fresh", ()), ("trained", ("--run", tmp_path / "run"))):
        assert visionkit(*arguments, *more, "--json", tmp_path / f"{name}.json") == 0
    fresh, trained = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("fresh", "trained"))
    assert fresh["parts"] != trained["parts"]
    assert trained["weights"] == str(tmp_path / "run")
    capsys.readouterr()
    assert visionkit(*arguments, "--run", tmp_path / "none") == 2
    assert "no such run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["heads={one: {name: semantic_fpn, channels: 16}}", "sources.both.heads=[one]", "sources.apart.heads=[one]"],
         "one head alone has nobody to conflict with"),
        (["train.parts={backbone: {freeze: true}, neck: {freeze: true}}"], "share nothing that is trained"),
        (["sources={held_out: {name: shapes, val: {images: 2, size: 64}}}"], "no source has a `train` split"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said_in_a_line(file, changes, message, capsys):
    overrides = [word for change in changes for word in ("--set", change)]
    assert visionkit("conflicts", file, "--batches", 1, *overrides) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
