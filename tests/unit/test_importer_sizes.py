"""Published models in other sizes: every tensor with their names and shapes has a place, and the model runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import reference_shapes as of
from visionkit.config import Pipeline, parse_pipeline
from visionkit.data.base import Sample
from visionkit.data.loader import collate
from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model
from visionkit.model.importing import build_importer, import_model
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, LabelSet

DATA = Path(__file__).parents[1] / "data"
SIZES, BLOCKS = (256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4)
PUBLISHED = {
    "semantic_reference/pspnet/keys.json": of.pspnet((3, 4, 6, 3), 21),
    "semantic_reference/deeplabv2_r101/keys.json": of.deeplab_pytorch("2", (3, 4, 23, 3), 21, 4),
    "semantic_reference/deeplabv3_r101/keys.json": of.deeplab_pytorch("3", (3, 4, 23, 3), 21, 3),
    "semantic_reference/deeplabv3plus_r101/keys.json": of.deeplab_pytorch("3+", (3, 4, 23, 3), 21, 3),
    "semantic_reference/deeplabv3plus_resnet101_jf/keys.json": of.deeplab_resnet((3, 4, 23, 3), 21),
    "semantic_reference/deeplabv3plus_xception/keys.json": of.deeplab_xception(16, 21),
    "stacked_hourglass/keys.json": of.stacked_hourglass(2, 256, 16, 4),
    "cornernet_hg104/keys.json": of.corner_hourglass(2, SIZES, BLOCKS) | of.corner_points(2, 80, ("tl", "br")),
    "centernet_triplet52/keys.json": of.corner_hourglass(1, SIZES, BLOCKS)
    | of.corner_points(1, 80, ("tl", "br", "ct")),
    "centernet_resnet18/keys.json": of.centernet_resnet((2, 2, 2, 2), 80, (256, 256, 256), deformable=False),
    "centernet_resdcn18/keys.json": of.centernet_resnet((2, 2, 2, 2), 80, (256, 128, 64), deformable=True),
    "yolact/resnet50_keys.json": of.yolact((3, 4, 6, 3), 80),
    "translation/cyclegan_resnet9_keys.json": of.cyclegan(64, 9),
    "translation/pix2pix_unet256_keys.json": of.pix2pix(64, 8),
}


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_shapes_of_published_sizes_are_those_of_the_fixtures(file: str) -> None:
    entries = json.loads((DATA / file).read_text())
    assert PUBLISHED[file] == {entry["name"]: tuple(entry["shape"]) for entry in entries}


def tensors(shapes: of.Shapes, device: str = "cpu") -> dict[str, Tensor]:
    """Values of which every network makes numbers of a moderate size."""
    state = {}
    for name, shape in shapes.items():
        if device == "meta" or not shape:
            state[name] = torch.zeros(shape, dtype=torch.float32 if shape else torch.int64, device=device)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape) + 0.5
        else:
            state[name] = torch.randn(shape) / math.sqrt(max(1, math.prod(shape[1:])))
    return state


def fixture_shapes(file: str, **changes: tuple[int, ...]) -> of.Shapes:
    """The shapes of a fixture, some of them changed; ``__`` stands for a dot."""
    shapes = {entry["name"]: tuple(entry["shape"]) for entry in json.loads((DATA / file).read_text())}
    changed = {name.replace("__", "."): shape for name, shape in changes.items()}
    assert changed.keys() <= shapes.keys()
    return shapes | changed


def described(name: str, shapes: of.Shapes, *settings: str) -> tuple[Pipeline, dict[str, LabelSet], MultiTaskModel]:
    """The pipeline, labels and model of a state dict on the meta device, all of whose tensors have a place."""
    importer, plugins = build_importer(PluginManager(), name, settings), PluginManager()
    state = tensors(shapes, "meta")
    text, labels = importer.describe(state)
    pipeline = parse_pipeline(text, name)
    with torch.device("meta"):
        model = build_model(pipeline, plugins, labels)
        converted = importer.convert(state)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    return pipeline, dict(labels), model


LARGE: dict[str, tuple[str, of.Shapes, list[str], Callable[[Pipeline], Any], Any]] = {
    "PSPNet-101": (
        "semseg/pspnet101", of.pspnet((3, 4, 23, 3), 150), [], lambda p: p.backbone.args["model"], "resnet101"
    ),
    "PSPNet-152 by another name": (
        "semseg/pspnet50", of.pspnet((3, 8, 36, 3), 2), [], lambda p: p.backbone.args["model"], "resnet152"
    ),
    "PSPNet of two averages": (
        "semseg/pspnet50", of.pspnet((3, 4, 6, 3), 19, 2), ["bins=[1, 4]"],
        lambda p: p.heads["semantic"].args["bins"], [1, 4],
    ),
    "DeepLabv2-50": (
        "deeplab_pytorch/deeplabv2_resnet101", of.deeplab_pytorch("2", (3, 4, 6, 3), 182, 4), ["rates=[3, 6, 9, 12]"],
        lambda p: (p.backbone.args["model"], p.heads["semantic"].args["rates"]), ("resnet50", [3, 6, 9, 12]),
    ),
    "DeepLabv3-152 at 8": (
        "deeplab_pytorch/deeplabv3_resnet101", of.deeplab_pytorch("3", (3, 8, 36, 3), 5, 3), ["output_stride=8"],
        lambda p: (p.backbone.args["model"], p.backbone.args["output_stride"]), ("resnet152", 8),
    ),
    "DeepLabv3+-50 of four rates": (
        "deeplab_pytorch/deeplabv3plus_resnet101", of.deeplab_pytorch("3+", (3, 4, 6, 3), 19, 4),
        ["output_stride=16", "rates=[4, 8, 12, 16]"], lambda p: p.heads["semantic"].args["rates"], [4, 8, 12, 16],
    ),
    "DeepLab of jfzhang95 at 8": (
        "deeplab_xception/deeplabv3plus_resnet101", of.deeplab_resnet((3, 4, 6, 3), 7), ["output_stride=8"],
        lambda p: (p.backbone.args["model"], p.backbone.args["output_stride"]), ("resnet50", 8),
    ),
    "Xception-41": (
        "deeplab_xception/deeplabv3plus_xception65", of.deeplab_xception(8, 19), ["output_stride=16"],
        lambda p: p.backbone.args["middle"], 8,
    ),
    "CornerNet of three stacks": (
        "cornernet/hourglass104",
        of.corner_hourglass(3, SIZES, BLOCKS) | of.corner_points(3, 20, ("tl", "br")), [],
        lambda p: p.heads["boxes"].args["levels"], ["stack1", "stack2", "stack3"],
    ),
    "CenterNet on Hourglass-52": (
        "centernet/hourglass104", of.centernet_hourglass(1, SIZES, BLOCKS, 3), [],
        lambda p: p.heads["boxes"].args["levels"], ["stack1"],
    ),
    "CenterNet on ResNet-50": (
        "centernet/resdcn101",
        of.centernet_resnet((3, 4, 6, 3), 20, (256, 128, 64), deformable=True, basic=False, sizes=40), [],
        lambda p: (p.backbone.args["model"], p.heads["boxes"].args["class_sizes"]), ("resnet50", True),
    ),
    "CenterNet on DLA-34": (
        "centernet/dla34",
        fixture_shapes("centernet_dla34/keys.json", hm__2__weight=(3, 256, 1, 1), hm__2__bias=(3,)), [],
        lambda p: p.backbone.args["model"], "dla34",
    ),
    "poses of 21 keypoints": (
        "centernet/dla34_pose",
        fixture_shapes(
            "centernet_dla34_pose/keys.json",
            hps__2__weight=(42, 256, 1, 1), hps__2__bias=(42,), hm_hp__2__weight=(21, 256, 1, 1), hm_hp__2__bias=(21,),
        ), [],
        lambda p: p.heads["keypoints"].args["hidden"], 256,
    ),
    "stacked hourglasses": (
        "newell/hourglass8", of.stacked_hourglass(4, 128, 7, 3), [],
        lambda p: [p.backbone.args[key] for key in ("stacks", "channels", "maps", "depth")], [4, 128, 7, 3],
    ),
    "YOLACT at 700": (
        "yolact/resnet50", of.yolact((3, 4, 23, 3), 3), ["image_size=700"],
        lambda p: (p.backbone.args["model"], p.heads["objects"].args["anchor_sizes"]),
        ("resnet101", [[30], [61], [122], [244], [488]]),
    ),
    "YOLACT at 400": (
        "yolact/resnet101", of.yolact((3, 4, 6, 3), 80, 3, 16), ["image_size=400"],
        lambda p: (p.heads["objects"].args["prototypes"], p.heads["objects"].args["anchor_sizes"]),
        (16, [[17], [34], [69], [139], [279]]),
    ),
    "YOLACT of five ratios": (
        "yolact/resnet101", of.yolact((3, 4, 6, 3), 80, 5), ["image_size=550", "anchor_ratios=[1, 0.5, 2, 0.33, 3]"],
        lambda p: p.evaluate.transforms[1].args["size"], 550,
    ),
    "CycleGAN of six blocks": (
        "cyclegan/resnet9", of.cyclegan(32, 6), [], lambda p: p.heads["picture"].args,
        {"blocks": 6, "width": 32, "norm": "instance"},
    ),
    "CycleGAN with dropout and batch norms": (
        "cyclegan/resnet9", of.cyclegan(16, 2, affine=True, dropout=True), [], lambda p: p.heads["picture"].args,
        {"blocks": 2, "width": 16, "norm": "image"},
    ),
    "pix2pix for 128 pixels": (
        "pix2pix/unet256", of.pix2pix(32, 7), [], lambda p: (p.heads["picture"].args, p.evaluate.transforms[0].args),
        ({"downs": 7, "width": 32, "norm": "image"}, {"size": 128}),
    ),
    "pix2pix with instance norms": (
        "pix2pix/unet256", of.pix2pix(16, 6, affine=False), [], lambda p: p.heads["picture"].args,
        {"downs": 6, "width": 16, "norm": "instance"},
    ),
    "pix2pix on a ResNet": (
        "pix2pix/unet256", of.cyclegan(16, 3, affine=True), [], lambda p: p.heads["picture"].args,
        {"generator": "resnet", "blocks": 3, "width": 16, "norm": "image"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", LARGE)
def test_every_tensor_of_another_size_has_a_place(model: str) -> None:
    name, shapes, settings, read, value = LARGE[model]
    if name.startswith(("cyclegan", "pix2pix")):
        pipeline = imported(name, shapes, settings)[0]
    else:
        pipeline, _, _ = described(name, shapes, *settings)
    assert read(pipeline) == value


def imported(
    name: str, shapes: of.Shapes, settings: list[str], folder: Path | None = None
) -> tuple[Pipeline, dict[str, LabelSet], MultiTaskModel]:
    """The pipeline, labels and model that an importer makes of values; with a folder, from a checkpoint there."""
    importer, plugins = build_importer(PluginManager(), name, settings), PluginManager()
    state = tensors(shapes)
    if folder is not None:
        torch.save({"net": {f"module.{key}": tensor for key, tensor in state.items()}, "step": 3}, folder / "w.pth")
        found = import_model(importer, folder / "w.pth", plugins)
        return found.pipeline, dict(found.labels), found.model
    text, labels = importer.describe(state)
    pipeline = parse_pipeline(text, name)
    model = build_model(pipeline, plugins, labels)
    model.load_state_dict(importer.convert(state))
    return pipeline, dict(labels), model.eval()


RUN = {
    "PSPNet": ("semseg/pspnet50", of.pspnet((1, 1, 1, 1), 3, aux=False), [], 33),
    "DeepLabv2": ("deeplab_pytorch/deeplabv2_resnet101", of.deeplab_pytorch("2", (1, 1, 1, 1), 3, 4), [], 32),
    "DeepLabv3": (
        "deeplab_pytorch/deeplabv3_resnet101",
        of.deeplab_pytorch("3", (1, 1, 1, 2), 3, 3), ["output_stride=8", "multi_grid=[1, 2]"], 32,
    ),
    "CornerNet": (
        "cornernet/hourglass104",
        of.corner_hourglass(1, (16, 24, 32), (1, 1, 2), stem=8, outputs=16)
        | of.corner_points(1, 4, ("tl", "br"), outputs=16, hidden=8), [], 64,
    ),
    "triplet": (
        "centernet_triplet/hourglass52",
        of.corner_hourglass(2, (16, 24), (2, 1), stem=8, outputs=16)
        | of.corner_points(2, 4, ("tl", "br", "ct"), outputs=16, hidden=8), [], 64,
    ),
    "CenterNet": ("centernet/resnet18", of.centernet_resnet((1, 1, 1, 1), 3, (16, 8), deformable=False), [], 64),
    "CenterNet, deformable": (
        "centernet/resdcn18", of.centernet_resnet((1, 1, 1, 1), 3, (32, 16, 8), deformable=True, hidden=12), [], 64,
    ),
    "Newell": ("newell/hourglass2", of.stacked_hourglass(3, 32, 5, 2), [], 64),
    "YOLACT": ("yolact/resnet50", of.yolact((1, 1, 1, 1), 4), ["image_size=96"], 96),
    "CycleGAN": ("cyclegan/resnet9", of.cyclegan(8, 1), [], 32),
    "pix2pix": ("pix2pix/unet256", of.pix2pix(8, 5), [], 32),
}  # fmt: skip


@pytest.mark.parametrize("model", RUN)
@torch.no_grad()
def test_a_small_model_is_imported_from_a_checkpoint_and_runs(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, shapes, settings, side = RUN[model]
    _, labels, ours = imported(name, shapes, settings, tmp_path)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    batch = collate([Sample(image, ImageInfo(0, "", (side, side), (side, side)))], size_divisor=1)
    found = ours.predict(batch.normalised(ours.mean, ours.std, channels_last=False))
    assert found.keys() == labels.keys()
    (head,) = labels
    for value in vars(found[head][0]).values():
        assert not isinstance(value, Tensor) or not value.isnan().any()


def test_files_without_counters_of_batches_are_read(tmp_path: Path) -> None:
    shapes = of.stacked_hourglass(1, 16, 2, 1)
    state = {name: tensor for name, tensor in tensors(shapes).items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    model = import_model(
        build_importer(PluginManager(), "newell/hourglass2"), tmp_path / "old.pth", PluginManager()
    ).model
    assert torch.equal(model.backbone.maps[0].weight, state["outs.0.conv.weight"])  # type: ignore[union-attr]


def test_labels_of_other_numbers_of_classes_and_keypoints_are_numbered() -> None:
    _, labels, _ = described("newell/hourglass2", of.stacked_hourglass(1, 64, 3, 2))
    assert labels["keypoints"].keypoints == ("keypoint 0", "keypoint 1", "keypoint 2")
    _, labels, _ = described("newell/hourglass2", of.stacked_hourglass(1, 64, 16, 2))
    assert labels["keypoints"].keypoints[0] == "right_ankle"
    _, labels, _ = described("yolact/resnet50", of.yolact((3, 4, 6, 3), 2), "image_size=550")
    assert labels["objects"].names == ("class 0", "class 1")


@pytest.mark.parametrize(
    ("name", "shapes", "asked"),
    [
        (
            "yolact/resnet50",
            of.yolact((3, 4, 6, 3), 80),
            "image_size cannot be determined from the weights: add --set image_size=550",
        ),
        ("semseg/pspnet50", of.pspnet((3, 4, 6, 3), 21, 2), r"2 averages: add --set bins=\[...\]"),
        (
            "deeplab_pytorch/deeplabv2_resnet101",
            of.deeplab_pytorch("2", (3, 4, 6, 3), 21, 3),
            r"3 dilated branches: add --set rates",
        ),
    ],
)
def test_what_the_weights_do_not_tell_is_asked_for(name: str, shapes: of.Shapes, asked: str) -> None:
    with pytest.raises(UserError, match=asked):
        build_importer(PluginManager(), name).describe(tensors(shapes, "meta"))


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("deeplab_pytorch/deeplabv3_resnet101", of.deeplab_pytorch("3", (3, 4, 6, 3), 4, 3)),
        ("deeplab_pytorch/deeplabv3plus_resnet101", of.deeplab_pytorch("3+", (3, 4, 6, 3), 4, 3)),
        ("deeplab_xception/deeplabv3plus_resnet101", of.deeplab_resnet((3, 4, 6, 3), 4)),
    ],
)
def test_dilations_and_strides_of_deeplab(name: str, shapes: of.Shapes, stride: int) -> None:
    _, _, model = described(name, shapes, f"output_stride={stride}")
    body, factor = model.backbone.resnet.body, 16 // stride  # type: ignore[union-attr]
    assert {block.conv2.dilation for block in body.layer3} == {(factor, factor)}
    assert [block.conv2.dilation[0] for block in body.layer4] == [2 * factor, 4 * factor, 8 * factor]
    branches = model.head("semantic").aspp.branches
    assert [branch.conv.dilation[0] for branch in branches[1:]] == [6 * factor, 12 * factor, 18 * factor]
    assert model.backbone.spec["c5"].stride == stride  # type: ignore[union-attr]


def test_dilations_of_deeplab_on_xception_at_stride_8() -> None:
    _, _, model = described("deeplab_xception/deeplabv3plus_xception65", of.deeplab_xception(3, 4), "output_stride=8")
    blocks: Any = model.backbone.blocks  # type: ignore[union-attr]
    dilations = [[conv.depthwise.dilation[0] for conv in block.convs] for block in blocks]
    assert dilations == [[1, 1, 1], [1, 1, 1], [1, 1, 1], *[[2, 2, 2]] * 3, [2, 2, 1]]
    assert [conv.depthwise.dilation[0] for conv in model.backbone.exit] == [4, 4, 4]  # type: ignore[union-attr]


def test_yolact_has_the_anchors_of_its_published_size() -> None:
    pipeline, _, _ = described("yolact/resnet50", of.yolact((3, 4, 6, 3), 80), "image_size=550")
    assert pipeline.heads["objects"].args["anchor_sizes"] == [[24], [48], [96], [192], [384]]


@pytest.mark.parametrize(
    "shapes",
    [
        of.cyclegan(8, 1) | {"model.1.weight": (8, 1, 7, 7)},
        of.cyclegan(8, 1) | {"model.18.weight": (1, 8, 7, 7)},
    ],
)
def test_generators_of_other_images_are_refused(shapes: of.Shapes) -> None:
    with pytest.raises(UserError, match=r"only color images \(3 to 3\)"):
        build_importer(PluginManager(), "cyclegan/resnet9").describe(tensors(shapes, "meta"))


def test_unknown_settings_are_errors() -> None:
    with pytest.raises(UserError, match=r"image_sise.*did you mean 'image_size'"):
        build_importer(PluginManager(), "yolact/resnet50", ["image_sise=550"])
    with pytest.raises(UserError, match="image_size"):
        build_importer(PluginManager(), "yolact/resnet50", ["image_size=large"])
