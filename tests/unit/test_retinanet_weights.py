"""Weights of torchvision's and detectron2's RetinaNet: imported, they find what those find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.ops import box_iou

from tests.formula_weights import formula_image, formula_weights
from tests.lively import spread
from visionkit.cli.import_weights import command
from visionkit.config import load_pipeline, parse_pipeline
from visionkit.data.base import Sample
from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.data.loader import collate
from visionkit.data.transforms import Normalize, Resize
from visionkit.model.build import build_model
from visionkit.model.detectron2 import ratios_first
from visionkit.model.importing import Importer
from visionkit.model.run import LoadedRun, load_model
from visionkit.plugins import PluginManager
from visionkit.types import BoxPrediction, ImageInfo, InstanceTarget, MixedBatch
from visionkit_dense_detection.retinanet_weights import (
    COCO_OBJECTS_91,
    Detectron2RetinaNet,
    TorchvisionRetinaNet,
)

NAMES = ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"]
FIXTURE = Path(__file__).parent.parent / "data" / "retinanet"


def random_reference(name: str, images: list[Tensor]) -> Any:
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, min_size=96, max_size=160).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    head = model.head
    spread(head.classification_head.cls_logits, 1.0, lambda: model(images), mean=-3.0)
    spread(head.regression_head.bbox_reg, 0.3, lambda: model(images))
    return model


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, LoadedRun, list[Tensor]]:
    """torchvision's model, our run with its weights, and two images of unequal size."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    coarse = [torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8) for _ in range(2)]
    pixels = [F.interpolate(x, size=size)[0] for x, size in zip(coarse, ((141, 203), (97, 61)))]
    theirs = random_reference(request.param, [image / 255 for image in pixels])
    torch.save(theirs.state_dict(), folder / "weights.pth")
    command(f"torchvision/{request.param}", folder / "weights.pth", folder / "run")
    return theirs, load_model(folder / "run", PluginManager()), pixels


def test_imported_run_finds_what_torchvision_finds(pair: tuple[Any, LoadedRun, list[Tensor]]) -> None:
    theirs, run, pixels = pair
    normalize, resize = Normalize(), Resize(short=96, long=160, exact=True)
    samples = [
        resize(normalize(Sample(image, ImageInfo(i, "", tuple(image.shape[-2:]), tuple(image.shape[-2:])))))
        for i, image in enumerate(pixels)
    ]
    batch = collate(samples).normalised(run.model.mean, run.model.std, channels_last=False)
    with torch.no_grad():
        expected = theirs([image / 255 for image in pixels])
        got = run.model.predict(batch)["boxes"]
    for own, want in zip(got, expected):
        # They keep boxes of which nothing is left inside the image; we don't, so that others take their place.
        full = (want["boxes"][:, 2:] > want["boxes"][:, :2]).all(1)
        boxes, scores, labels = (want[key][full] for key in ("boxes", "scores", "labels"))
        assert 150 < len(boxes) <= len(own) == 300
        assert len(labels.unique()) > 40
        torch.testing.assert_close(own.boxes[: len(boxes)], boxes, atol=1e-4, rtol=0)
        torch.testing.assert_close(own.scores[: len(boxes)], scores, atol=1e-5, rtol=0)
        assert torch.equal(own.labels[: len(boxes)], labels)


def test_imported_run_has_the_losses_of_torchvision(pair: tuple[Any, LoadedRun, list[Tensor]]) -> None:
    theirs, run, _ = pair
    torch.manual_seed(2)
    coarse = torch.rand(2, 3, 4, 4)
    images = F.interpolate(coarse, size=(96, 128))
    boxes = [torch.tensor([[4, 8, 60, 70], [50, 20, 122, 90], [10, 10, 40, 40.0]]), torch.tensor([[30, 30, 90, 80.0]])]
    labels = [torch.tensor([1, 17, 90]), torch.tensor([44])]
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # else it would normalise by the batch
    targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels)]
    want = theirs(list(images), targets)
    theirs.eval()

    pixels, _ = theirs.transform(list(images))
    info = tuple(ImageInfo(i, "", (96, 128), (96, 128)) for i in range(2))
    mine = [InstanceTarget(b, c, c < 0, b[:, 0], c) for b, c in zip(boxes, labels)]
    losses, _ = run.model.losses(MixedBatch(pixels.tensors, info, {"boxes": mine}))
    torch.testing.assert_close(losses["boxes"]["class"], want["classification"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["boxes"]["box"], want["bbox_regression"], rtol=1e-4, atol=1e-6)
    assert want["bbox_regression"] > 0.1

    own = gradient(run.model, sum(losses["boxes"].values()), "neck.extras.p6")
    theirs_too = gradient(theirs, sum(want.values()), "backbone.fpn.extra_blocks.p6")
    assert theirs_too.abs().max() > 1e-6
    torch.testing.assert_close(own, theirs_too, rtol=1e-3, atol=1e-6)


def gradient(model: Any, loss: Any, layer: str) -> Tensor:
    loss.backward()
    return model.get_submodule(layer).weight.grad


def detectron2_state(depth: int) -> dict[str, Tensor]:
    """Names and shapes of detectron2's model on the meta device; the deeper one has more blocks in the fourth stage."""
    entries = json.loads((FIXTURE / "keys.json").read_text())
    state = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in entries}
    for i in range(6, {50: 6, 101: 23}[depth]):
        state |= {k.replace(".res4.5.", f".res4.{i}."): v for k, v in state.items() if ".res4.5." in k}
    return state


def torchvision_state(version: str, p6_inputs: int = 256) -> dict[str, Tensor]:
    """Names and shapes of torchvision's model on the meta device."""
    with torch.device("meta"):
        state = getattr(detection, f"retinanet_resnet50_fpn{version}")(weights=None, weights_backbone=None).state_dict()
        if not version:
            state["backbone.fpn.extra_blocks.p6.weight"] = torch.empty(256, p6_inputs, 3, 3)
    return state


@pytest.mark.parametrize(
    ("importer", "state", "whole", "head"),
    [
        (TorchvisionRetinaNet(), torchvision_state(""), 34_014_999, 6_691_415),
        (TorchvisionRetinaNet(), torchvision_state("", 2048), 38_143_767, 6_691_415),
        (TorchvisionRetinaNet(), torchvision_state("_v2"), 38_198_935, 6_693_463),
        (Detectron2RetinaNet(), detectron2_state(50), 37_915_572, 6_463_220),
        (Detectron2RetinaNet(), detectron2_state(101), 37_915_572 + 42_394_816 - 23_454_912, 6_463_220),
    ],
)
def test_parameter_counts(importer: Importer, state: dict[str, Tensor], whole: int, head: int) -> None:
    text, labels = importer.describe(state)
    with torch.device("meta"):
        model = build_model(parse_pipeline(text, "counts"), PluginManager(), labels)
    assert sum(p.numel() for p in model.parameters()) == whole
    assert sum(p.numel() for p in model.heads.parameters()) == head
    converted = importer.convert(state)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_the_shipped_pipeline_has_detectron2s_size() -> None:
    with torch.device("meta"):
        model = build_model(load_pipeline("retinanet_r50_fpn_coco"), PluginManager(), {"boxes": COCO_OBJECTS})
    assert sum(p.numel() for p in model.parameters()) == 37_915_572


def test_torchvision_counts_the_same() -> None:
    with torch.device("meta"):
        theirs = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)
    assert sum(p.numel() for p in theirs.parameters()) == 38_198_935


def test_published_files_have_other_names_and_batch_norms_without_epsilon() -> None:
    new = {
        name: torch.rand(tensor.shape) if tensor.ndim < 2 else tensor for name, tensor in torchvision_state("").items()
    }
    old = {}
    for name, tensor in new.items():
        for i in range(4):
            name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.").replace(f".conv.{i}.0.", f".conv.{2 * i}.")
        if not name.endswith("num_batches_tracked"):
            old[name] = tensor
    theirs_now, theirs_then = TorchvisionRetinaNet().convert(new), TorchvisionRetinaNet().convert(old)
    assert theirs_now.keys() == theirs_then.keys()
    assert "heads.boxes.class_tower.conv.3.conv.bias" in theirs_now
    small = [k for k, tensor in theirs_now.items() if tensor.ndim < 2]
    changed = {k for k in small if not torch.equal(theirs_now[k], theirs_then[k])}
    norms = {k.removesuffix("running_var") for k in theirs_now if k.endswith("running_var")}
    assert changed == {f"{norm}weight" for norm in norms}


def test_labels_leave_a_place_for_torchvisions_background() -> None:
    assert len(COCO_OBJECTS_91) == 91
    assert COCO_OBJECTS_91.ids == tuple(range(91))
    assert COCO_OBJECTS_91.names[1] == "person"
    assert COCO_OBJECTS_91.names[90] == "toothbrush"


def test_anchors_of_a_cell_change_their_order() -> None:
    theirs = torch.tensor([100 * size + 10 * ratio + k for size in range(3) for ratio in range(3) for k in range(2)])
    ours = [100 * size + 10 * ratio + k for ratio in range(3) for size in range(3) for k in range(2)]
    assert ratios_first(theirs).tolist() == ours


# -- detectron2


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(FIXTURE / "io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Any, BoxPrediction]:
    """Features, output and prediction of an imported run for the reference's image."""
    folder = tmp_path_factory.mktemp("detectron2")
    torch.save({"model": formula_weights(FIXTURE / "keys.json")}, folder / "weights.pth")
    command("detectron2/retinanet_R_50_FPN_3x", folder / "weights.pth", folder / "run")
    model = load_model(folder / "run", PluginManager()).model
    image = torch.from_numpy(formula_image(250, 333)[..., ::-1].copy()).permute(2, 0, 1)
    # Their detections are scaled to an image twice as large.
    info = ImageInfo(0, "", (500, 666), (250, 333), (0.5, 0, 0, 0, 0.5, 0))
    batch = collate([Sample(image, info)]).normalised(model.mean, model.std, channels_last=False)
    assert batch.images.shape[-2:] == (256, 352)
    with torch.no_grad():
        features = model.features(batch.images)
        output = model.run_heads(model.branches(features), batch, {"boxes": [0]})["boxes"]
        return features, output, model.head("boxes").predict(output, batch.view("boxes", [0], targets=False))[0]


def near(own: Tensor, want: Tensor) -> None:
    scale = float(want.abs().max())
    torch.testing.assert_close(own, want, atol=2e-5 * scale, rtol=1e-4)


def test_pyramid_of_detectron2(said: Any, reference: dict[str, Tensor]) -> None:
    for level, step in (("p3", 64), ("p4", 32), ("p5", 32), ("p6", 16), ("p7", 8)):
        near(said[0][level][0, ::step], reference[level])


def test_towers_of_detectron2(said: Any, reference: dict[str, Tensor]) -> None:
    features, output, _ = said
    for i, (level, step, of_deltas) in enumerate(
        (("p3", 148, 20), ("p4", 148, 4), ("p5", 74, 3), ("p6", 37, 1), ("p7", 37, 1))
    ):
        logits = as_map(output.logits[i], features[level], 80)[::step]
        near(logits[:, ::2, ::2] if level == "p3" else logits, reference[f"cls_logits_{level}"])
        near(as_map(output.deltas[i], features[level], 4)[::of_deltas], reference[f"bbox_deltas_{level}"])


def as_map(values: Tensor, features: Tensor, each: int) -> Tensor:
    """(1, h * w * 9, each) as detectron2's map (9 * each, h, w), where anchors are counted size by size."""
    height, width = features.shape[-2:]
    return values.view(height, width, 3, 3, each).permute(3, 2, 4, 0, 1).reshape(-1, height, width)


def test_anchors_of_detectron2(said: Any, reference: dict[str, Tensor]) -> None:
    for anchors, (level, step) in zip(
        said[1].anchors.levels, (("p3", 97), ("p4", 31), ("p5", 7), ("p6", 1), ("p7", 1)), strict=True
    ):
        theirs = anchors.view(-1, 3, 3, 4).transpose(1, 2).reshape(-1, 4)
        torch.testing.assert_close(theirs[::step], reference[f"anchors_{level}"], atol=1e-4, rtol=0)


def test_detections_of_detectron2(said: Any, reference: dict[str, Tensor]) -> None:
    found = said[2]
    assert len(found) == 99  # of one of a hundred nothing is left inside the image
    same = box_iou(found.boxes, reference["det_boxes"]) * (found.labels[:, None] == reference["det_classes"])
    overlap, own = same.max(0)
    assert overlap.min() > 0.99
    torch.testing.assert_close(found.scores[own], reference["det_scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes[own], reference["det_boxes"], atol=5e-3, rtol=0)
