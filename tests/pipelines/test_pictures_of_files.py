"""Heads for pictures on files of one's own: what is told before a training, and what a run needs afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models import vgg16

from visionkit import UserError, load
from visionkit.config import Pipeline, parse_pipeline
from visionkit.errors import DataError, PipelineError
from visionkit.infer import PredictionWriter
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.train.validate import validate
from visionkit.types import BoxPrediction, LabelSet, PicturePrediction, Prediction

HEADS = {
    "pix2pix": "{name: pix2pix, downs: 5, width: 4, judge_layers: 1, judge_width: 4}",
    "cyclegan": "{name: cyclegan, blocks: 1, width: 4, judge_layers: 1, judge_width: 4, pool: 2, pool_side: 32}",
    "style_transfer": "{name: style_transfer, width: 4, blocks: 1, style_size: 32}",
}
PIPELINE = """
heads: {{picture: {head}}}
sources:
  pairs:
    name: {source}
    train: {{images: {root}/train, pictures: {root}/train}}
    val: {{images: {root}/val, pictures: {root}/val}}
train: {{steps: 1, batch_size: 2, workers: 0}}
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Pipeline]:
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 3)):
        (tmp_path / split).mkdir()
        for i in range(count):
            blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            cv2.imwrite(str(tmp_path / split / f"{i}.png"), blocks)

    def made(head: str, *changes: str, source: str = "pairs") -> Pipeline:
        text = PIPELINE.format(head=HEADS[head], source=source, root=tmp_path)
        return parse_pipeline(text, "my.yaml", changes)

    return made


def run(pipeline: Pipeline, out: Path) -> dict[str, float]:
    return train(pipeline, PluginManager(), out, accelerator="cpu")


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("{name: pictures, inceptoin: x.pt}", "unknown key 'inceptoin'"),
        ("{name: pictures, lpips: x.pt}", "x.pt: no such file"),
        ("{name: coco_bbox}", "reads a BoxPrediction, but head 'picture' makes a PicturePrediction"),
    ],
)
def test_metrics_are_tried_before_the_first_step(
    metric: str, says: str, pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        run(pipeline("pix2pix", f"evaluate.metrics.picture=[{metric}]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_held_out_image_that_cannot_be_read_is_left_out_of_the_pictures_too(
    pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    run(pipeline("pix2pix"), tmp_path / "whole")
    (tmp_path / "val" / "1.png").write_bytes(b"no image")
    run(pipeline("pix2pix", "train.on_error=skip"), tmp_path / "run")
    pictures = tmp_path / "run" / "pictures" / "pairs"
    assert sorted(path.name for path in pictures.glob("*.jpg")) == ["000_0.jpg", "001_2.jpg", "over_time_picture.jpg"]
    for ours, theirs in (("000_0", "000_0"), ("001_2", "002_2")):
        one, other = (
            cv2.imread(str(tmp_path / name / f"pictures/pairs/{file}.jpg"))
            for name, file in (("run", ours), ("whole", theirs))
        )
        np.testing.assert_array_equal(one, other)
    with pytest.raises(DataError, match=r"1\.png"):
        run(pipeline("pix2pix"), tmp_path / "strict")


@pytest.mark.parametrize("head", ["style_transfer", "pix2pix"])
def test_a_run_needs_no_file_that_it_started_from(head: str, pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    torch.save(vgg16().state_dict(), tmp_path / "start" / "vgg.pth")
    changes = [f"heads.picture.vgg={tmp_path}/start/vgg.pth"]
    if head == "pix2pix":
        changes += ["heads.picture.perceptual=1.0"]
    else:
        cv2.imwrite(str(tmp_path / "start" / "style.png"), np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
        changes += [f"heads.picture.style={tmp_path}/start/style.png", "heads.picture.convention=torchvision"]
    run(pipeline(head, *changes), tmp_path / "run")
    before = load(tmp_path / "run")
    for file in (tmp_path / "start").iterdir():
        file.unlink()
    after = load(tmp_path / "run")
    for key, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[key]), key
    more = pipeline(head, *changes, "train.steps=2")
    train(more, PluginManager(), tmp_path / "run", resume=True, accelerator="cpu")


def test_random_weights_of_vgg_are_told(pipeline: Callable[..., Pipeline]) -> None:
    (model,) = (check for check in validate(pipeline("style_transfer"), PluginManager()) if check.what == "model")
    assert "picture: its VGG-16 has random weights" in model.detail
    with pytest.raises(PipelineError, match="vgg is given, but perceptual is 0"):
        list(load_all(pipeline("pix2pix", "heads.picture.vgg=vgg.pth")))


def load_all(pipeline: Pipeline) -> list[str]:
    """What ``validate`` says, or the first mistake."""
    said = []
    for check in validate(pipeline, PluginManager()):
        if not check.ok:
            raise PipelineError(check.detail)
        said.append(check.detail)
    return said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            "heads.picture.downs=0",
            r"'downs' of head 'picture' \(pix2pix\): expected at least 1, not 0",
        ),
        ("heads.picture.l1=-1.0", "'l1' of head 'picture'"),
        (
            "heads.picture.judge_layers=7",
            "the discriminator judges pictures of 384 pixels a side or more, not of 32x32",
        ),
        ("heads.picture.labels=[a, b]", "learns from 'picture', which has no classes"),
        ("heads.picture.levels=[p9]", r"no feature level 'p9' \(there is: none: the pipeline has no backbone\)"),
        ("train.transforms=[{name: resize, size: [64]}]", "expected an integer or at least 2 items"),
    ],
)
def test_mistakes_are_told_in_words(change: str, says: str, pipeline: Callable[..., Pipeline]) -> None:
    with pytest.raises(PipelineError, match=says):
        load_all(pipeline("pix2pix", change))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_examples_of_another_domain_are_no_truth(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    assert run(pipeline("cyclegan", source="unpaired"), tmp_path / "run") == {}
    counted = torch.jit.script(Mean())
    counted.save(str(tmp_path / "mean.pt"))
    metric = f"evaluate.metrics.picture=[{{name: pictures, inception: {tmp_path}/mean.pt}}]"
    assert set(run(pipeline("cyclegan", metric, source="unpaired"), tmp_path / "set")) == {
        "pairs/picture/FID",
        "pairs/picture/KID",
    }
    assert "pairs/picture/L1" in run(pipeline("cyclegan"), tmp_path / "pairs")


class Mean(torch.nn.Module):
    """Pictures as their mean colours."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.float().mean((2, 3))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_network_for_something_else_is_told(pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(7, 2)).save(str(tmp_path / "other.pt"))
    for key in ("inception", "lpips"):
        metric = f"evaluate.metrics.picture=[{{name: pictures, {key}: {tmp_path}/other.pt}}]"
        with pytest.raises(UserError, match=f"pictures: {key}: .*other.pt: the network takes no such pictures"):
            run(pipeline("pix2pix", metric), tmp_path / key)


def test_pictures_that_were_made_stand_beside_the_overlay(tmp_path: Path) -> None:
    image = np.full((64, 64, 3), 200, np.uint8)
    boxes = BoxPrediction(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([0.9]), torch.tensor([0]))
    made = PicturePrediction(torch.zeros(3, 64, 64))
    labels = {"boxes": LabelSet(("a",)), "picture": LabelSet(())}
    shapes = {}
    parts: dict[str, dict[str, Prediction]] = {
        "boxes": {"boxes": boxes}, "picture": {"picture": made}, "both": {"boxes": boxes, "picture": made}
    }  # fmt: skip
    with PredictionWriter(tmp_path, labels) as writer:
        for name, predictions in parts.items():
            writer.add(predictions, image_id=name, name=name, image=image)
            shapes[name] = cv2.imread(str(tmp_path / "pictures" / f"{name}.jpg")).shape
    assert shapes["boxes"] == shapes["picture"]
    assert shapes["both"][1] > 3 * shapes["boxes"][1]  # input, boxes, picture


def test_a_phase_takes_what_it_does_not_say_from_the_optimiser(pipeline: Callable[..., Pipeline]) -> None:
    main = "train.optimizer={name: adamw, lr: 0.002, betas: [0.5, 0.999]}"
    phases = pipeline("pix2pix", main, "train.phases.discriminator.lr=0.001").train.phases
    assert (phases["discriminator"].name, phases["discriminator"].lr) == ("adamw", 0.001)
    assert phases["discriminator"].betas == (0.5, 0.999)
    whole = pipeline("pix2pix", main, "train.phases.discriminator={name: sgd}").train.phases["discriminator"]
    assert (whole.name, whole.lr) == ("sgd", 0.01)
