"""Probabilities over scales, mirror images and windows, and the CRF after them: alone and in the whole chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.cli.predict import look_closer
from visionkit.config import ComponentConfig, CRFConfig, RefineConfig, parse_pipeline
from visionkit.data.wiring import build_sources, resolve_labels
from visionkit.errors import PipelineError, UserError
from visionkit.evaluate.runner import evaluate_model
from visionkit.infer import Predictor
from visionkit.layers.dense_crf import DenseCRF
from visionkit.layers.semantic import cell_size
from visionkit.model import Backbone, Head, MultiTaskModel, refine
from visionkit.model.build import build_model
from visionkit.model.refine import Refiner, mirrored, predict_refined
from visionkit.plugins import PluginManager
from visionkit.types import (
    Batch,
    BoxPrediction,
    Features,
    FeatureSpec,
    ImageInfo,
    LabelSet,
    Level,
    MixedBatch,
    Output,
    SemanticOutput,
    SemanticPrediction,
)

CLASSES = 3


class Plain(Backbone):
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        super().__init__()
        self.spec = FeatureSpec({"c0": Level(3, 1)})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c0": images}


class Pixels(Head):
    """Scores of a convolution of ``side`` x ``side``, every ``stride`` pixels."""

    task, makes, output, loss_names, levels = "semantic", SemanticPrediction, SemanticOutput, (), ("c0",)

    def __init__(self, side: int = 1, stride: int = 1) -> None:
        super().__init__(FeatureSpec({"c0": Level(3, 1)}), LabelSet(("a", "b", "c")))
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, CLASSES, side, padding=side // 2)
        nn.init.normal_(self.conv.weight, std=6 / side)
        self.stride, self.seen = stride, list[tuple[int, ...]]()

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> SemanticOutput:
        self.seen.append(tuple(batch.images.shape))
        return SemanticOutput(F.avg_pool2d(self.conv(features["c0"]), self.stride, ceil_mode=True))


class Boxes(Pixels):
    makes, output = BoxPrediction, Output  # type: ignore[assignment]


def model_of(**heads: Head) -> MultiTaskModel:
    return MultiTaskModel(Plain(), None, heads).eval()


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 1 + height // 8, 1 + width // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")[0]


def info_of(image: Tensor, scale: float = 1.0) -> ImageInfo:
    size = (image.shape[1], image.shape[2])
    original = (round(size[0] / scale), round(size[1] / scale))
    return ImageInfo(0, "", original, size, (size[1] / original[1], 0, 0, 0, size[0] / original[0], 0))


@torch.no_grad()
def probabilities(head: Head, image: Tensor, config: RefineConfig, info: ImageInfo | None = None) -> Tensor:
    """(classes, H, W) as the refiner finds them."""
    refiner = Refiner(model_of(head=head), "head", config, 1)
    return torch.cat([part for _, part in refiner.strips(image, info or info_of(image))]).transpose(0, 1)


@pytest.mark.parametrize(("window", "overlap", "margin"), [(16, 0.5, 0), (20, 0.0, 0), (16, 0.3, 7), (64, 0.5, 0)])
def test_windows_of_a_model_of_single_pixels_are_the_whole(window: int, overlap: float, margin: int) -> None:
    image = picture(37, 50)
    whole = probabilities(Pixels(), image, RefineConfig())
    got = probabilities(Pixels(), image, RefineConfig(window=window, overlap=overlap, margin=margin))
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(whole, Pixels().conv(image[None])[0].softmax(0), rtol=1e-4, atol=1e-5)


def test_windows_of_a_scaled_image_are_the_whole_at_the_original_size() -> None:
    image = picture(37, 50)
    info = info_of(image, 0.5)
    got = probabilities(Pixels(), image, RefineConfig(window=16), info)
    whole = probabilities(Pixels(), image, RefineConfig(), info)
    assert got.shape == (CLASSES, 74, 100)
    # Only beside the edge of a window does a resampled score miss the pixel behind it, and there it counts least.
    assert float((got - whole).abs().mean()) < 2e-3


def test_the_middle_of_a_window_counts_most() -> None:
    """With a wide convolution the edges of a window are wrong; blended they are less so than side by side."""
    image, head = picture(60, 60), Pixels(9)
    whole = probabilities(head, image, RefineConfig())
    alone, blended = (probabilities(head, image, RefineConfig(window=20, overlap=o)) for o in (0.0, 0.5))
    assert float((blended - whole).abs().mean()) < 0.6 * float((alone - whole).abs().mean())


def test_scales_and_mirrors_average_probabilities() -> None:
    image, head, want = picture(30, 40), Pixels(3), torch.zeros(CLASSES, 30, 40)
    with torch.no_grad():
        for height, width in ((15, 20), (30, 40), (60, 80)):
            one = F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)
            for flip in (False, True):
                scores = head.conv(one.flip(3)).flip(3) if flip else head.conv(one)
                want += F.interpolate(scores, size=(30, 40), mode="bilinear")[0].softmax(0) / 6
    got = probabilities(head, image, RefineConfig(scales=(0.5, 1.0, 2.0), flip=True))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_with_mirrors_left_is_right() -> None:
    image, head = picture(24, 31), Pixels(5)
    config = RefineConfig(flip=True, window=16)
    torch.testing.assert_close(
        probabilities(head, image.flip(2), config).flip(2), probabilities(head, image, config), rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(
        probabilities(head, image.flip(2), RefineConfig()).flip(2),
        probabilities(head, image, RefineConfig()),
        atol=1e-2,
    )


@pytest.mark.parametrize("window", [None, 24])
def test_an_image_in_many_strips_is_the_image_in_one(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    image, config = picture(70, 41), RefineConfig(scales=(1.0, 0.7), flip=True, window=window)
    one = probabilities(Pixels(3), image, config)
    monkeypatch.setattr(refine, "_STRIP", 5 * 41 * CLASSES)
    many = list(Refiner(model_of(head=Pixels(3)), "head", config, 1).strips(image, info_of(image)))
    assert len(many) == 14
    torch.testing.assert_close(torch.cat([part for _, part in many]).transpose(0, 1), one)


def test_a_tall_image_never_holds_more_than_the_windows_of_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "_STRIP", 8 * 16 * CLASSES)
    head = Pixels()
    strips = Refiner(model_of(head=head), "head", RefineConfig(window=16), 1).strips(
        picture(800, 16), info_of(picture(800, 16))
    )
    next(strips)
    assert sum(shape[0] for shape in head.seen) <= 4  # of 99 windows


def test_windows_fit_the_network() -> None:
    """Each is of the size that is asked for; padded where the network wants a multiple of something."""
    head, image = Pixels(), picture(20, 90)
    batch = MixedBatch(image[None], (info_of(image),), {})
    predict_refined(model_of(head=head), batch, ["head"], {"head": RefineConfig(window=48)}, size_divisor=32)
    assert {shape[1:] for shape in head.seen} == {(3, 64, 64)}


def test_mirroring_goes_on_and_on() -> None:
    want = np.pad(np.arange(4), (9, 6), mode="symmetric")
    assert mirrored(-9, 19, 4).tolist() == want.tolist()


def test_coarse_scores_are_enlarged_by_their_cells() -> None:
    image = picture(33, 33)
    got = probabilities(Pixels(1, 32), image, RefineConfig())
    assert got.shape == (CLASSES, 33, 33)
    for size, cell in ((33, 32), (64, 32), (9, 3), (65, 8), (12, 4)):
        cells = -(-size // cell)
        batch: Batch = Batch(torch.zeros(1, 3, size, size), ())
        assert cell_size(torch.zeros(1, CLASSES, cells, cells), batch) == cell


def test_a_crf_refines_the_mean_in_the_original_image() -> None:
    image, head = picture(40, 30), Pixels(3)
    crf = CRFConfig(iterations=3, appearance_rgb=20.0, appearance_xy=9.0)
    batch = MixedBatch(image[None], (info_of(image),), {})
    with torch.no_grad():
        found = predict_refined(model_of(head=head), batch, ["head"], {"head": RefineConfig(flip=True, crf=crf)})[
            "head"
        ]
    start = probabilities(head, image, RefineConfig(flip=True))
    want = DenseCRF(iterations=3, appearance_rgb=20.0, appearance_xy=9.0)(start, image * 255).argmax(0)
    assert isinstance(found[0], SemanticPrediction)
    assert torch.equal(found[0].labels.long(), want)
    assert not torch.equal(want, start.argmax(0))


def test_other_heads_predict_as_ever_and_cannot_be_refined() -> None:
    image = picture(16, 16)
    model = model_of(pixels=Pixels(), boxes=Boxes())
    batch = MixedBatch(image[None], (info_of(image),), {})
    with pytest.raises(UserError, match=r"head 'boxes' makes a BoxPrediction.*heads that have them: pixels"):
        predict_refined(model, batch, ["boxes"], {"boxes": RefineConfig()})
    with pytest.raises(UserError, match="head 'boxes' makes a BoxPrediction"):
        Predictor(model, {}, refine={"boxes": RefineConfig()})


def test_windows_of_a_turned_image_are_refused() -> None:
    image = picture(16, 16)
    turned = replace(info_of(image), affine=(0.0, 1.0, 0.0, 1.0, 0.0, 0.0))
    with pytest.raises(UserError, match="was turned"):
        probabilities(Pixels(), image, RefineConfig(window=8), turned)


PIPELINE = """
backbone: {name: timm, model: resnet18, options: {channels: [8, 8, 8, 8]}}
neck: {name: fpn, channels: 8}
heads: {semantic: {name: semantic_fpn, channels: 8}}
sources: {shapes: {name: shapes, val: {images: 3, size: 64, seed: 2}}}
train: {workers: 0}
"""


def test_evaluation_and_prediction_refine_as_the_pipeline_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline, plugins = parse_pipeline(PIPELINE), PluginManager()
    sources = build_sources(pipeline, plugins, "val")
    torch.manual_seed(0)
    labels = resolve_labels(pipeline, plugins, sources)
    model = build_model(pipeline, plugins, labels).eval()

    def metrics(config: dict[str, RefineConfig]) -> dict[str, float]:
        one = replace(pipeline, evaluate=replace(pipeline.evaluate, refine=config, metrics={"semantic": PER_CLASS}))
        return evaluate_model(model, one, plugins, labels, sources)

    plain = metrics({})
    assert metrics({"semantic": RefineConfig()}) == pytest.approx(plain, abs=1e-3)
    looked = metrics({"semantic": RefineConfig(scales=(0.5, 1.0), flip=True)})
    assert looked.keys() == plain.keys()
    assert looked != pytest.approx(plain, abs=1e-3)

    image = (picture(64, 64) * 255).byte().permute(1, 2, 0).numpy()
    config = {"semantic": RefineConfig(scales=(2.0,), flip=True, window=64)}
    once, closer = (Predictor(model, labels, refine=c).predict(image)[0]["semantic"] for c in ({}, config))
    assert closer.labels.shape == once.labels.shape == (64, 64)
    assert not torch.equal(closer.labels, once.labels)


def test_the_command_line_asks_for_it() -> None:
    predictor = Predictor(model_of(pixels=Pixels(), boxes=Boxes()), {})
    look_closer(predictor, ["pixels"], "0.5, 1", True, 64)
    assert predictor.refine == {"pixels": RefineConfig(scales=(0.5, 1.0), flip=True, window=64)}
    with pytest.raises(UserError, match="head 'boxes' makes a BoxPrediction"):
        look_closer(predictor, None, None, True, None)
    with pytest.raises(UserError, match=r"--scales 1,x: expected positive numbers, such as 0.75,1,1.25"):
        look_closer(predictor, ["pixels"], "1,x", False, None)


PER_CLASS = [ComponentConfig("semantic", {"per_class": True})]


def test_what_is_written_down_is_read_again() -> None:
    pipeline = parse_pipeline(f"{PIPELINE}evaluate: {{refine: {{semantic: {{scales: [0.5, 1], crf: {{}}}}}}}}\n")
    assert pipeline.evaluate.refine == {"semantic": RefineConfig(scales=(0.5, 1.0), crf=CRFConfig())}
    assert parse_pipeline(pipeline.to_yaml()) == pipeline


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{semantics: {flip: true}}", "no head 'semantics'; did you mean 'semantic'"),
        ("{semantic: {flips: true}}", "unknown key 'flips' in evaluate.refine.semantic; did you mean 'flip'"),
        ("{semantic: {overlap: 1.0}}", "expected less than 1, not 1.0"),
        ("{semantic: {crf: {iteration: 3}}}", "unknown key 'iteration' in evaluate.refine.semantic.crf"),
        ("{semantic: {scales: []}}", "scales"),
    ],
)
def test_wrong_keys_are_told(section: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(f"{PIPELINE}evaluate: {{refine: {section}}}\n")
