"""Weights of published semantic models: imported, they answer what the models answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import segmentation

from tests.formula_weights import formula_weights
from visionkit.config import parse_pipeline
from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model
from visionkit.model.importing import build_importer
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import Batch, ImageInfo

DATA = Path(__file__).parents[1] / "data" / "semantic_reference"
# Of the reference models whose output stride is not in their weights.
STRIDE_16 = ("deeplab_pytorch/deeplabv3", "deeplab_xception/", "smp/deeplab")
MODELS = {
    "deeplabv2_r101": ("deeplab_pytorch/deeplabv2_resnet101", (2, 1, 1)),
    "deeplabv3_r101": ("deeplab_pytorch/deeplabv3_resnet101", (2, 1, 1)),
    "deeplabv3plus_r101": ("deeplab_pytorch/deeplabv3plus_resnet101", (4, 4, 4)),
    "deeplabv3plus_resnet101_jf": ("deeplab_xception/deeplabv3plus_resnet101", (4, 4, 4)),
    "deeplabv3plus_xception": ("deeplab_xception/deeplabv3plus_xception65", (4, 4, 4)),
    "pspnet": ("semseg/pspnet50", (3, 4, 4)),
}
# Their pixels: those of Caffe are mean-free and, for small numbers, divided by 50.
IMAGENET = (torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255)
CAFFE = (torch.tensor([122.675, 116.669, 104.008]), torch.tensor([50.0, 50.0, 50.0]))


def imported(name: str, state: dict[str, Tensor], *settings: str) -> MultiTaskModel:
    if not settings and name.startswith(STRIDE_16):
        settings = ("output_stride=16",)
    importer = build_importer(PluginManager(), name, settings)
    text, labels = importer.describe(state)
    with torch.device("meta"):
        model = build_model(parse_pipeline(text, name), PluginManager(), labels)
    model.to_empty(device="cpu")
    load_state(model, importer.convert(state), name)
    return model.eval()


def with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms that have seen something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.eval()


def view(images: Tensor) -> Batch:
    size = (int(images.shape[2]), int(images.shape[3]))
    return Batch(images, tuple(ImageInfo(i, "", size, size, (1.0, 0, 0, 0, 1.0, 0)) for i in range(len(images))))


def normalised(image: np.ndarray, caffe: bool) -> Tensor:
    """(1, 3, H, W), red first."""
    pixels = torch.from_numpy(image[..., ::-1].copy() if caffe else image).float()
    mean, std = CAFFE if caffe else IMAGENET
    return ((pixels - mean) / std).permute(2, 0, 1)[None]


@pytest.mark.parametrize("folder", MODELS)
@torch.no_grad()
def test_imported_weights_answer_as_the_reference_does(folder: str) -> None:
    name, (channels, rows, columns) = MODELS[folder]
    reference = np.load(DATA / folder / "io.npz")
    model = imported(name, formula_weights(DATA / folder / "keys.json"))
    images = normalised(reference["image"], name.startswith("deeplab_pytorch"))

    features = model.features(images)
    scores = model.head("semantic")(features, view(images), {}).logits

    found = {"c5": features["c5"][0, ::64][:12], "out": scores[0, ::channels, ::rows, ::columns]}
    for array, mine in found.items():
        scale = float(np.abs(reference[array]).max())
        torch.testing.assert_close(mine, torch.from_numpy(reference[array]), rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("fcn_resnet50", 21), ("deeplabv3_resnet50", 21), ("fcn_resnet101", 4), ("deeplabv3_resnet101", 4)],
)
@torch.no_grad()
def test_imported_weights_answer_as_torchvision_does(name: str, classes: int) -> None:
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None, "num_classes": classes, "aux_loss": True}
    theirs = with_statistics(getattr(segmentation, name)(**options))
    images = torch.randn(2, 3, 64, 96)
    want = theirs(images)

    model = imported(f"torchvision/{name}", theirs.state_dict())
    head, batch = model.head("semantic"), view(images)
    output = head(model.features(images), batch, {})

    for mine, key in ((output.logits, "out"), (head.auxiliary(output.auxiliary), "aux")):
        large = F.interpolate(mine, scale_factor=8, mode="bilinear")
        torch.testing.assert_close(large, want[key], rtol=0, atol=1e-4 * float(want[key].abs().max()))
    labels = torch.stack([prediction.labels for prediction in head.predict(output, batch)])
    assert (labels == want["out"].argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize(
    ("name", "model", "encoder", "arguments"),
    [
        ("smp/unet", smp.Unet, "resnet18", {"classes": 5}),
        ("smp/unet", smp.Unet, "resnet34", {"classes": 3, "encoder_depth": 4, "decoder_channels": (64, 32, 16, 8)}),
        ("smp/unet", smp.Unet, "resnet18", {"classes": 2, "encoder_depth": 3, "decoder_channels": (32, 16, 8)}),
        ("smp/unet", smp.Unet, "resnet50", {"classes": 21, "decoder_channels": (128, 64, 32, 24, 8)}),
        ("smp/deeplabv3plus", smp.DeepLabV3Plus, "resnet34", {"classes": 5}),
        ("smp/deeplabv3plus", smp.DeepLabV3Plus, "resnet50", {"classes": 21}),
        ("smp/deeplabv3plus", smp.DeepLabV3Plus, "resnet101", {"classes": 2, "decoder_channels": 32}),
    ],
)
@torch.no_grad()
def test_imported_weights_answer_as_segmentation_models_pytorch_does(
    name: str, model: type[nn.Module], encoder: str, arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    theirs = with_statistics(model(encoder, encoder_weights=None, **arguments))
    images = torch.randn(2, 3, 64, 96)
    want = theirs(images)

    ours = imported(name, theirs.state_dict())
    found = ours.head("semantic")(ours.features(images), view(images), {}).logits

    if "encoder_depth" not in arguments:  # else theirs has stages that nothing reads
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
@torch.no_grad()
def test_the_output_stride_and_rates_of_deeplabv3plus_are_those_that_are_given(encoder: str) -> None:
    torch.manual_seed(0)
    options = {"encoder_output_stride": 8, "decoder_atrous_rates": (6, 12, 20), "decoder_channels": 32, "classes": 4}
    theirs = with_statistics(smp.DeepLabV3Plus(encoder, encoder_weights=None, **options))
    images = torch.randn(2, 3, 64, 96)
    ours = imported("smp/deeplabv3plus", theirs.state_dict(), "output_stride=8", "rates=[6, 12, 20]")
    found = ours.head("semantic")(ours.features(images), view(images), {}).logits
    want = theirs(images)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-4 * float(want.abs().max()))


@torch.no_grad()
def test_torchvisions_auxiliary_scores_are_optional() -> None:
    options = {"weights": None, "weights_backbone": None, "num_classes": 3, "aux_loss": False}
    with torch.device("meta"):
        state = segmentation.fcn_resnet50(**options).state_dict()
    text, labels = build_importer(PluginManager(), "torchvision/fcn_resnet50").describe(state)
    assert parse_pipeline(text).heads["semantic"].args.get("auxiliary") is None
    assert labels["semantic"].names == ("class 0", "class 1", "class 2")


@torch.no_grad()
def test_one_class_of_segmentation_models_pytorch_is_a_foreground_beside_a_background() -> None:
    torch.manual_seed(0)
    theirs = with_statistics(smp.Unet("resnet18", encoder_weights=None))
    images = torch.randn(1, 3, 64, 64)
    state = theirs.state_dict()
    _, labels = PluginManager().load("importer", "smp/unet")().describe(state)
    ours = imported("smp/unet", state)
    found = ours.head("semantic")(ours.features(images), view(images), {}).logits
    assert labels["semantic"].names == ("background", "foreground")
    torch.testing.assert_close(found.softmax(1)[:, 1:], theirs(images).sigmoid(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [("resnext50_32x4d", "encoder is none of resnet18, "), ("mobilenet_v2", "encoder is none of resnet18, ")],
)
def test_an_encoder_that_is_no_resnet_is_an_error(encoder: str, said: str) -> None:
    with torch.device("meta"):
        state = smp.Unet(encoder, encoder_weights=None).state_dict()
    with pytest.raises(UserError, match=said):
        PluginManager().load("importer", "smp/unet")().describe(state)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("deeplab_pytorch/deeplabv3_resnet101", "deeplabv3_r101"),
        ("deeplab_pytorch/deeplabv3plus_resnet101", "deeplabv3plus_r101"),
        ("deeplab_xception/deeplabv3plus_resnet101", "deeplabv3plus_resnet101_jf"),
        ("deeplab_xception/deeplabv3plus_xception65", "deeplabv3plus_xception"),
    ],
)
def test_an_output_stride_that_the_weights_do_not_tell_is_asked_for(name: str, folder: str) -> None:
    entries = json.loads((DATA / folder / "keys.json").read_text())
    state = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in entries}
    with pytest.raises(
        UserError, match="output_stride cannot be determined from the weights: add --set output_stride=8 or 16"
    ):
        build_importer(PluginManager(), name).describe(state)
    text, _ = build_importer(PluginManager(), name, ["output_stride=8"]).describe(state)
    assert parse_pipeline(text).backbone.args["output_stride"] == 8  # type: ignore[union-attr]
    with pytest.raises(UserError, match="output_stride"):
        build_importer(PluginManager(), name, ["output_stride=32"])


def test_a_strange_tensor_is_an_error() -> None:
    importer = PluginManager().load("importer", "semseg/pspnet50")()
    with pytest.raises(UserError, match=r"tensors of another model: layer9\.w"):
        importer.convert({"layer9.w": torch.zeros(1)})
