"""Weights of the published YOLACT: imported, they say what its own code says."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from tests.formula_weights import formula_weights
from visionkit import rle
from visionkit.config import load_pipeline, parse_pipeline
from visionkit.data.base import Sample
from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.data.loader import collate
from visionkit.data.wiring import build_transforms
from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model
from visionkit.model.importing import Importer, import_model
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, MaskPrediction
from visionkit_yolact.masks import assemble
from visionkit_yolact.yolact import YOLACT, YOLACTOutput
from visionkit_yolact.yolact_weights import YOLACT as YOLACTImporter

DATA = Path(__file__).parents[1] / "data/yolact"
SIDE = 550
ORIGINAL = (250, 333)
INFO = ImageInfo(0, "", ORIGINAL, (SIDE, SIDE), (SIDE / ORIGINAL[1], 0, 0, 0, SIDE / ORIGINAL[0], 0))


@dataclass
class Run:
    """An imported model, all it says of the picture, and what the published code says; ``step`` thins out lists."""

    model: MultiTaskModel
    features: dict[str, Tensor]
    output: YOLACTOutput
    found: tuple[Tensor, Tensor, Tensor, Tensor]
    prediction: MaskPrediction
    published: dict[str, Tensor]
    step: int

    @property
    def head(self) -> YOLACT:
        head = self.model.head("objects")
        assert isinstance(head, YOLACT)
        return head


def picture() -> np.ndarray:
    """(550, 550, 3) uint8: blocks of ten pixels."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(b"image")))
    return random.integers(0, 256, (SIDE // 10, SIDE // 10, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)


@torch.no_grad()
def run(importer: Importer, name: str, step: int, folder: Path) -> Run:
    torch.save(formula_weights(DATA / f"{name}_keys.json"), folder / "weights.pth")
    imported = import_model(importer, folder / "weights.pth", PluginManager())
    pipeline, model = imported.pipeline, imported.model
    sample = Sample(torch.from_numpy(picture()).permute(2, 0, 1), INFO)
    normalize = build_transforms(pipeline, PluginManager(), pipeline.evaluate.transforms)[0]
    batch = collate([normalize(sample)], size_divisor=1).normalised(model.mean, model.std, channels_last=False)
    features, view = model.features(batch.images), batch.view("objects", [0], targets=False)
    head = model.head("objects")
    output = head(features, view, {})
    (prediction,) = head.predict(output, view)
    with np.load(DATA / f"{name}.npz") as arrays:
        published = {key: torch.from_numpy(arrays[key]) for key in arrays}
    return Run(model, features, output, head.detect(output, 0, INFO), prediction, published, step)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {
        "resnet50": run(YOLACTImporter(image_size=550), "resnet50", 4, tmp_path_factory.mktemp("fifty")),
        "resnet101": run(YOLACTImporter(image_size=550), "resnet101", 8, tmp_path_factory.mktemp("hundred")),
    }


@pytest.fixture(params=["resnet50", "resnet101"])
def one(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    return runs[request.param]


def assert_near(got: Tensor, want: Tensor) -> None:
    """Within a ten-thousandth of the scale of the array; the order of sums alone moves it by a tenth of that."""
    torch.testing.assert_close(got, want, atol=1e-4 * float(want.abs().max()), rtol=0)


def test_stages_and_pyramid(one: Run) -> None:
    for level, channels, cells in (("c3", 32, 4), ("c4", 64, 2), ("c5", 128, 1)):
        assert_near(one.features[level][0, :: channels * one.step, ::cells, ::cells], one.published[level.upper()])
    for level, cells in (("p3", 4), ("p4", 2), ("p5", 1), ("p6", 1), ("p7", 1)):
        assert_near(one.features[level][0, :: 16 * one.step, ::cells, ::cells], one.published[level.upper()])


def test_what_is_said_of_every_prior(one: Run) -> None:
    output, step = one.output, 37 * (4 if one.step == 4 else 16)
    assert output.deltas.shape[1] == 19_248
    assert_near(output.deltas[0, ::step], one.published["loc"])
    assert_near(output.logits[0].softmax(1)[:: 2 * step], one.published["conf"])
    assert_near(output.coefficients[0, ::step], one.published["mask"])
    priors = box_convert(one.head.priors(output.grids, INFO) / SIDE, "xyxy", "cxcywh")
    torch.testing.assert_close(priors[::step], one.published["priors"], atol=1e-6, rtol=0)
    cells = 12 if one.step == 4 else 28
    assert_near(output.prototypes[0].permute(1, 2, 0)[::cells, ::cells], one.published["proto"])


def test_detections(one: Run) -> None:
    boxes, scores, labels, coefficients = one.found
    assert torch.equal(labels.int(), one.published["det_classes"])
    torch.testing.assert_close(scores, one.published["det_scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(boxes / SIDE, one.published["det_boxes"], atol=1e-5, rtol=0)
    assert_near(coefficients[:40:4], one.published["det_coeffs"])
    assert_near(assemble(one.output.prototypes[0], coefficients[:12:4])[:, ::12, ::12], one.published["assembled"])


def test_masks_in_the_original_image(one: Run) -> None:
    found = one.prediction
    torch.testing.assert_close(found.scores, one.published["det_scores"], atol=1e-5, rtol=0)
    assert (found.boxes.int() - one.published["post_boxes"]).abs().max() <= 1  # theirs are cut to whole pixels
    areas = torch.from_numpy(rle.area(found.rles).astype(np.int64))
    assert (areas - one.published["post_mask_area"]).abs().max() <= 3
    if "post_masks_packed" in one.published:
        height, width = ORIGINAL
        packed = one.published["post_masks_packed"].numpy()
        masks = np.unpackbits(packed, axis=1)[:, : height * width].reshape(-1, height, width)
        differ = [int((rle.decode(own) != mask).sum()) for own, mask in zip(found.rles, masks)]
        assert len(differ) == 6
        assert max(differ) <= 3


def test_parameter_counts(runs: dict[str, Run]) -> None:
    def count(part: torch.nn.Module | None) -> int:
        assert part is not None
        return sum(p.numel() for p in part.parameters())

    base = runs["resnet101"]
    assert count(base.model) == 50_157_071
    assert count(base.model.backbone) == 42_500_160
    assert count(base.model.neck) == 3_868_672
    assert count(base.head.protonet) == 2_368_544
    assert count(base.head.branch) == 1_399_135
    assert count(base.head.semantic) == 20_560
    assert count(runs["resnet50"].model) == 50_157_071 - 42_500_160 + 23_508_032


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        ("yolact_r101_coco", (), 50_157_071),
        ("yolact_r50_coco", (), 31_164_943),
        ("yolact_r101_coco", ("backbone.model=darknet53",), 47_783_087),
    ],
)
def test_shipped_pipelines_have_as_many(name: str, changes: tuple[str, ...], parameters: int) -> None:
    pipeline, plugins = load_pipeline(name, changes), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, {"objects": COCO_OBJECTS})
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_pictures_are_resized_and_normalised_as_published() -> None:
    entries = json.loads((DATA / "resnet50_keys.json").read_text())
    state = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in entries}
    pipeline = parse_pipeline(YOLACTImporter(image_size=SIDE).describe(state)[0], "yolact")
    pixels = torch.from_numpy(picture()[:170, :90]).permute(2, 0, 1)
    sample = Sample(pixels, ImageInfo(0, "", (170, 90), (170, 90)))
    for transform in build_transforms(pipeline, PluginManager(), pipeline.evaluate.transforms):
        sample = transform(sample)
    mean, std = torch.tensor((123.68, 116.78, 103.94)), torch.tensor((58.40, 57.12, 57.38))
    whole = torch.nn.functional.interpolate(pixels[None].float(), (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(sample.image, (whole - mean[:, None, None]) / std[:, None, None], atol=1e-4, rtol=0)


def test_what_published_files_hold_besides(runs: dict[str, Run]) -> None:
    entries = json.loads((DATA / "resnet50_keys.json").read_text())
    state = {entry["name"]: torch.zeros(1) for entry in entries}
    ours = YOLACTImporter().convert(state)
    besides = {"backbone.layer1.0.conv1.weight": torch.zeros(1), "fpn.downsample_layers.2.weight": torch.zeros(1)}
    assert YOLACTImporter().convert(state | besides).keys() == ours.keys() == runs["resnet50"].model.state_dict().keys()
    with pytest.raises(UserError, match=r"another model: maskiou_net\.0\.weight"):
        YOLACTImporter().convert({**state, "maskiou_net.0.weight": torch.zeros(1)})
