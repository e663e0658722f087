"""The files of the how-to pages for plugin authors do what their pages say."""

from __future__ import annotations

import json
import math
import runpy
import shlex
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from visionkit import UserError
from visionkit.config import load_pipeline
from visionkit.errors import DataError
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.types import BoxPrediction, ImageInfo, InstanceTarget, LabelSet, MixedBatch

LABELS = LabelSet(("a", "b"))
BASE = """
backbone: {name: timm, model: resnet18, options: {channels: [8, 8, 16, 16]}}
neck: {name: fpn, channels: 16}
heads:
  semantic: {name: semantic_fpn, channels: 16}
HEADS
sources:
  shapes:
    name: shapes
    train: {images: 4, seed: 0, size: 64}
    val: {images: 2, seed: 1, size: 64}
train: {steps: 2, batch_size: 2, workers: 0}
"""


@pytest.fixture
def files(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PluginManager]:
    """Puts files of a page into the working directory, and loads those that are plugins."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, *wanted: str) -> PluginManager:
        for file in wanted:
            (tmp_path / file).write_text(page(name).file(file))
        plugins = PluginManager(files=[f for f in wanted if f.endswith(".py") and not f.startswith("test_")])
        assert plugins.problems == []
        return plugins

    return write


def run_commands(page: Any, run: Any, *settings: str) -> None:
    """Every command of a page; training and validation with these settings."""
    for line in page.commands():
        name, *arguments = shlex.split(line)[1:]
        if name in ("train", "validate"):
            arguments += [word for setting in settings for word in ("--set", setting)]
        status, output = run([name, *arguments])
        assert status == 0, f"{line}: {output}"


# -- heads that need more


def test_a_head_that_reads_another_is_connected_and_learns(files: Any, tmp_path: Path) -> None:
    plugins = files("how-to/write-a-head.md", "coverage.py")
    (tmp_path / "base.yaml").write_text(BASE.replace("HEADS", "  coverage: {name: coverage}"))

    metrics = train(load_pipeline("base.yaml"), plugins, tmp_path / "run", accelerator="cpu")

    assert "shapes/semantic/mIoU" in metrics
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert last["losses"]["coverage/share"] > 0


def test_coverage_is_drawn_as_a_bar(files: Any) -> None:
    made = files("how-to/write-a-head.md", "coverage.py").load("head", "coverage").makes
    picture = made(torch.tensor([0.25, 0.75])).draw(np.zeros((20, 40, 3), np.uint8), LABELS)
    assert not picture[:12].any()
    assert (picture[-1, :10] == picture[-1, 0]).all()
    assert (picture[-1, 10] != picture[-1, 9]).any()


def test_a_tower_is_added_to_a_detector_and_learns(files: Any, tmp_path: Path) -> None:
    plugins = files("how-to/write-a-head.md", "points.py")
    heads = """  boxes: {name: retinanet, channels: 16, convs: 1, prior: 0.1}
  points: {name: points, channels: 16, convs: 1}"""
    pyramid = "neck: {name: fpn, channels: 16, inputs: [c3, c4, c5], extra: conv_c5}"
    base = BASE.replace("neck: {name: fpn, channels: 16}", pyramid)
    semantic = "  semantic: {name: semantic_fpn, channels: 16}\nHEADS"
    (tmp_path / "base.yaml").write_text(base.replace(semantic, heads))

    metrics = train(load_pipeline("base.yaml"), plugins, tmp_path / "run", accelerator="cpu")

    assert "shapes/points/AP" in metrics
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert last["losses"]["points/point"] > 0


def test_the_phases_that_are_shown_are_those_of_a_head_that_trains(page: Any, repository: Path) -> None:
    whole = textwrap.dedent((repository / "tests/plugins/translate.py").read_text())
    shown = [block for block in page("how-to/write-a-head.md").blocks("python") if block.startswith("    ")]
    assert len(shown) == 3
    assert [block for block in shown if block.strip("\n") not in whole] == []


def test_a_head_with_memory_goes_on_from_the_frame_before(files: Any) -> None:
    from visionkit.model import Backbone, MultiTaskModel
    from visionkit.types import FeatureSpec, Level

    class Stem(Backbone):
        spec = FeatureSpec({"p2": Level(3, 1)})

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"p2": images}

    steady = files("how-to/write-a-head.md", "steady.py").load("head", "steady")
    model = MultiTaskModel(Stem(), None, {"seg": steady(Stem.spec, LABELS, inertia=0.25)}).eval()
    frames = [MixedBatch(torch.randn(1, 3, 8, 8), (ImageInfo(i, "", (8, 8), (8, 8)),), {}) for i in range(2)]
    alone = [model.head("seg")(model.features(f.images), f.view("seg", [0], targets=False), {}).logits for f in frames]

    memory: dict[str, Any] = {}
    for frame in frames:
        model.predict(frame, memory=memory)

    torch.testing.assert_close(memory["seg"], 0.75 * alone[1] + 0.25 * alone[0])


def test_a_head_that_mends_images_learns_and_passes_the_check(files: Any, run: Any, tmp_path: Path) -> None:
    plugins = files("how-to/translate-pictures.md", "mend.py")
    (tmp_path / "mend.yaml").write_text(
        """
heads: {picture: {name: mend, hidden: 8}}
sources:
  shapes:
    name: painted
    train: {source: {name: shapes, images: 4, seed: 0, size: 32}}
    val: {source: {name: shapes, images: 2, seed: 1, size: 32}}
train: {steps: 2, batch_size: 2, workers: 0}
"""
    )
    metrics = train(load_pipeline("mend.yaml"), plugins, tmp_path / "run", accelerator="cpu")
    assert metrics["shapes/picture/L1"] > 0
    status, output = run(["check", "mend.py"])
    assert status == 0, output


# -- a source


@pytest.fixture
def photos(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    lines = ["file,left,top,right,bottom,class"]
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"photos/{i}.jpg"), rng.integers(0, 255, (64, 80, 3), dtype=np.uint8))
        lines += [f"{i}.jpg,10,8,40.5,50,dog", f"{i}.jpg,50,8,70,50,cat"] if i else ["0.jpg,,,,,"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))


def test_boxes_from_a_table(files: Any, photos: None, page: Any, run: Any, tmp_path: Path) -> None:
    source = files("how-to/own-data-source.md", "csv_boxes.py", "boxes.yaml").load("source", "csv_boxes")(
        images="photos", table="boxes.csv"
    )
    assert source.labels["boxes"].names == ("cat", "dog")
    nothing, two = (source.load(i, ["boxes"]).targets["boxes"] for i in (0, 1))
    assert len(nothing) == 0
    assert two.boxes.tolist() == [[10.0, 8.0, 40.5, 50.0], [50.0, 8.0, 70.0, 50.0]]
    assert two.labels.tolist() == [1, 0]
    assert source.load(1, []).targets == {}

    run_commands(page("how-to/own-data-source.md"), run, "train.steps=1", "train.batch_size=2", "train.workers=0")

    assert "photos/boxes/AP" in json.loads((tmp_path / "runs/boxes/metrics.json").read_text())


def test_the_source_passes_the_check_of_its_page(
    files: Any, photos: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files("how-to/own-data-source.md", "csv_boxes.py", "test_csv_boxes.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        runpy.run_path("test_csv_boxes.py")["test_the_source_keeps_the_contract"]()
    finally:
        sys.modules.pop("csv_boxes", None)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,left\n", "has no column bottom, class, right, top"),
        ("file,left,top,right,bottom,class\na.jpg,5,5,2,9,dog\n", "boxes.csv:2: left < right"),
        ("file,left,top,right,bottom,class\na.jpg,5,x,9,9,dog\n", "boxes.csv:2: left < right"),
    ],
)
def test_a_wrong_table_is_one_message(files: Any, photos: None, tmp_path: Path, table: str, says: str) -> None:
    (tmp_path / "boxes.csv").write_text(table)
    made = files("how-to/own-data-source.md", "csv_boxes.py").load("source", "csv_boxes")
    with pytest.raises(DataError, match=says):
        made(images="photos", table="boxes.csv")


# -- a metric


def test_the_metric_counts_what_is_found_and_merges(files: Any) -> None:
    found = files("how-to/own-metric.md", "found.py").load("evaluator", "found")
    target = InstanceTarget(
        boxes=torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 40, 40]]),
        labels=torch.tensor([0, 1, 0]),
        crowd=torch.tensor([False, False, True]),
        areas=torch.ones(3),
        ids=torch.arange(3),
    )
    prediction = BoxPrediction(
        boxes=torch.tensor([[0.0, 0, 10, 9], [50, 50, 60, 60], [20, 20, 30, 30]]),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        labels=torch.tensor([1, 1, 1]),
    )
    infos = [ImageInfo(i, "", (64, 64), (64, 64)) for i in range(3)]
    few, many = found(None, LABELS, boxes=2), found(None, LABELS, boxes=3)
    assert math.isnan(few.result()["found"])
    for metric in (few, many):
        metric.add([prediction, prediction], [target, None], infos[:2])
    assert few.result() == {"found": 0.5}
    assert many.result() == {"found": 1.0}
    other = found(None, LABELS, boxes=3)
    other.add([prediction, BoxPrediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))],
              [target, target], [infos[0], infos[2]])  # fmt: skip
    many.merge([other.state()])
    assert many.result() == {"found": 0.5}


def test_the_metric_judges_a_run_and_passes_the_check(files: Any, page: Any, run: Any, tmp_path: Path) -> None:
    files("how-to/own-metric.md", "found.py")
    boxes = "  boxes: {name: rcnn, fcs: [16], rpn_before_nms: 50, rpn_after_nms: 10, samples: 8}"
    metrics = next(b for b in page("how-to/own-metric.md").blocks("yaml") if b.startswith("evaluate:"))
    (tmp_path / "my.yaml").write_text(BASE.replace("HEADS", boxes) + metrics)

    run_commands(page("how-to/own-metric.md"), run)

    assert 0 <= json.loads((tmp_path / "runs/my/metrics.json").read_text())["shapes/boxes/found"] <= 1
    status, output = run(["check", "found.py"])
    assert status == 0, output


# -- balancers


def losses(**values: float) -> dict[str, dict[str, torch.Tensor]]:
    return {head: {"x": torch.tensor(value, requires_grad=True)} for head, value in values.items()}


def test_heads_join_one_after_the_other(files: Any) -> None:
    stagger = files("how-to/own-balancer.md", "stagger.py").load("balancer", "stagger")
    heads = {"early": ("x",), "late": ("x",)}
    balancer = stagger(heads, weights={"early": 3.0}, start={"late": 2}, ramp=2)
    seen = []
    for _ in range(5):
        given = losses(early=1.0, late=1.0)
        balancer(given, {"early": 4, "late": 4}).backward()
        seen.append([named["x"].grad.item() for named in given.values()])
    assert seen == [[3.0, 0.0], [3.0, 0.0], [3.0, 0.5], [3.0, 1.0], [3.0, 1.0]]
    other = stagger(heads, start={"late": 2}, ramp=2)
    other.load_state_dict(balancer.state_dict())
    assert int(other.batches) == 5
    with pytest.raises(UserError, match="no head 'lat'"):
        stagger(heads, start={"lat": 2})


def test_every_head_pulls_with_the_same_strength(files: Any) -> None:
    balancer = files("how-to/own-balancer.md", "equal_pull.py").load("balancer", "equal_pull")({"a": ("x",)})
    jacobian = torch.randn(3, 50) * torch.tensor([[0.01], [1.0], [30.0]])
    weights = balancer.weigh(jacobian @ jacobian.T, ["a", "b", "c"])
    norms = (weights[:, None] * jacobian).norm(dim=1)
    torch.testing.assert_close(norms, jacobian.norm(dim=1).mean().expand(3))


def test_the_balancers_train(files: Any, page: Any, run: Any, tmp_path: Path) -> None:
    """As the page has them, but on a pipeline that is quicker than the demo."""
    files("how-to/own-balancer.md", "stagger.py", "equal_pull.py")
    (tmp_path / "small.yaml").write_text(BASE.replace("HEADS", "  keypoints: {name: semantic_fpn, channels: 16}"))
    commands = page("how-to/own-balancer.md").commands()
    assert len(commands) == 2
    for number, line in enumerate(commands):
        words = ["small.yaml" if word == "demo" else word for word in shlex.split(line)[1:]]
        status, output = run([*words, "--out", f"runs/{number}"])
        assert status == 0, f"{line}: {output}"


# -- a hook


def test_the_logger_writes_the_losses_of_every_report(files: Any, tmp_path: Path) -> None:
    plugins = files("reference/hooks.md", "log_csv.py")
    (tmp_path / "base.yaml").write_text(BASE.replace("HEADS\n", ""))
    train(load_pipeline("base.yaml", ["train.log_every=1"]), plugins, tmp_path / "run", accelerator="cpu")
    lines = (tmp_path / "run/losses.csv").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in lines] == ["1,semantic/cross_entropy", "2,semantic/cross_entropy"]


# -- several data sets


def test_two_sources_feed_different_heads(files: Any, page: Any, run: Any, tmp_path: Path) -> None:
    files("how-to/several-data-sets.md", "two.yaml")
    smaller = [f"sources.{s}.{split}.{key}" for s in ("things", "stuff") for split in ("train", "val")
               for key in ("images=6", "size=64")]  # fmt: skip

    light = ["heads.boxes.fcs=[32]", "heads.boxes.samples=8", "heads.masks.convs=[8]", "heads.boxes.rpn_after_nms=20"]
    run_commands(page("how-to/several-data-sets.md"), run, *smaller, *light, "train.steps=1", "train.workers=0")

    metrics = json.loads((tmp_path / "runs/two/metrics.json").read_text())
    assert {key.rsplit("/", 1)[0] for key in metrics} == {"things/boxes", "things/masks", "stuff/semantic"}
