"""What a run for semantic segmentation sees in pictures that were made, against the same by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.config import parse_pipeline
from visionkit.data.base import Source
from visionkit.data.pairs import PaintedSource, PairsSource
from visionkit.data.shapes import ShapesSource
from visionkit.errors import UserError
from visionkit.evaluate.pictures import PicturesEvaluator
from visionkit.evaluate.semantic import SemanticEvaluator
from visionkit.infer import load
from visionkit.model.build import build_model
from visionkit.model.run import RunFolder
from visionkit.plugins import PluginManager
from visionkit.types import LabelSet, PicturePrediction, PictureTarget, SemanticTarget

NOTHING = LabelSet(())
RUN = """
backbone: {name: timm, model: resnet18, options: {channels: [8, 8, 8, 8]}}
neck: {name: fpn, channels: 8}
heads: {one: {name: semantic_fpn, channels: 8}, two: {name: semantic_fpn, channels: 8}}
evaluate: {transforms: [{name: resize, size: 96}]}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes") / "scenes"


def painted(scenes: Path, reverse: bool = True) -> PaintedSource:
    source = {"name": "shapes", "size": 64, "images": 3, "root": str(scenes)}
    return PaintedSource(source=source, reverse=reverse)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of random weights, which see something in every picture."""
    folder, pipeline = RunFolder(tmp_path_factory.mktemp("runs") / "semantic"), parse_pipeline(RUN, "run.yaml")
    theirs = ShapesSource(size=64, images=3, root=str(scenes)).labels["semantic"]
    turned = LabelSet(theirs.names[::-1])  # the run counts its classes the other way round
    labels = {"one": turned, "two": turned}
    torch.manual_seed(0)
    model = build_model(pipeline, PluginManager(), labels)
    for parameter in model.parameters():
        parameter.data.mul_(3.0)
    folder.write_description(pipeline, labels)
    folder.write_weights(model.state_dict())
    return str(folder.path)


def judged(source: Source, run: str, made: list[Tensor], head: str = "one") -> dict[str, float]:
    """The scores of pictures (3, H, W) in 0 ... 1; in two halves, as two processes would have them."""
    first, second = (PicturesEvaluator(source, NOTHING, segmenter=run, segmenter_head=head) for _ in range(2))
    for i, picture in enumerate(made):
        sample = source.load(i, ("picture",))
        evaluator = first if i % 2 else second
        evaluator.add([PicturePrediction(picture)], [sample.targets["picture"]], [sample.info])
    first.merge([second.state()])
    return {name: value for name, value in first.result().items() if name.startswith("segmented")}


def noisy(source: Source) -> list[Tensor]:
    """The pictures that are wanted, with noise, in whole bytes."""
    generator, out = torch.Generator().manual_seed(0), []
    for i in range(len(source)):
        target = source.load(i, ("picture",)).targets["picture"]
        assert isinstance(target, PictureTarget)
        picture = target.picture.float() / 255 + 0.2 * torch.randn(target.picture.shape, generator=generator)
        out.append((picture.clamp(0, 1) * 255).round() / 255)
    return out


def test_the_score_is_that_of_the_run_on_the_pictures(scenes: Path, run: str) -> None:
    source, predictor = painted(scenes), load(run)
    made = noisy(source)
    labels = predictor.labels["one"]
    by_hand = SemanticEvaluator(source, labels)
    truth = ShapesSource(size=64, images=3, root=str(scenes))
    table = torch.tensor([labels.names.index(name) for name in truth.labels["semantic"].names])
    for i, picture in enumerate(made):
        pixels = np.ascontiguousarray((picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        seen = predictor.predict(pixels, heads=["one"])[0]["one"]
        sample = truth.load(i, ("semantic",))
        target = sample.targets["semantic"]
        assert isinstance(target, SemanticTarget)
        by_hand.add([seen], [target.relabel(table)], [sample.info])
    expected = {f"segmented_{name}": value for name, value in by_hand.result().items()}
    assert 0.0 < expected["segmented_pixel_accuracy"] < 1.0
    assert judged(source, run, made) == pytest.approx(expected, abs=2e-3)  # the predictor folds its batch norms


def test_without_label_maps_the_wanted_picture_says_what_is_right(scenes: Path, run: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    for i, both in enumerate(cv2.blur(one, (9, 9)) for one in pixels):
        cv2.imwrite(str(tmp_path / f"{i}.png"), both)
    source = PairsSource(images=str(tmp_path))
    perfect = []
    for i in range(2):
        target = source.load(i, ("picture",)).targets["picture"]
        assert isinstance(target, PictureTarget)
        perfect.append(target.picture.float() / 255)
    assert set(judged(source, run, perfect).values()) == {1.0}
    assert judged(source, run, noisy(source))["segmented_pixel_accuracy"] < 1.0


def test_label_maps_come_with_what_is_made_of_them_only(scenes: Path) -> None:
    for reverse in (False, True):
        target = painted(scenes, reverse).load(0, ("picture",)).targets["picture"]
        assert isinstance(target, PictureTarget)
        assert (target.shows is not None) == reverse


def test_a_run_that_cannot_judge_is_told(scenes: Path, run: str, tmp_path: Path) -> None:
    source = painted(scenes)
    with pytest.raises(UserError, match=r"name one with segmenter_head .heads that make label maps: one, two."):
        PicturesEvaluator(source, NOTHING, segmenter=run)
    with pytest.raises(UserError, match="it has no such head 'three'"):
        PicturesEvaluator(source, NOTHING, segmenter=run, segmenter_head="three")
    with pytest.raises(UserError, match="nowhere"):
        PicturesEvaluator(source, NOTHING, segmenter=str(tmp_path / "nowhere"))
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.png"), np.zeros((64, 64), np.uint8))
    folders = {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    other = PaintedSource(source={"name": "folder", **folders, "classes": ["road"]}, reverse=True)
    with pytest.raises(UserError, match=r"does not know the class 'road' that the pictures show .it knows: sand, "):
        PicturesEvaluator(other, NOTHING, segmenter=run, segmenter_head="one")
