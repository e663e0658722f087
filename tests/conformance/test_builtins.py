"""Whatever is registered with visionkit keeps the contract of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visionkit.cli.check import CHECKED
from visionkit.data.class_folder import ClassFolderSource
from visionkit.data.pairs import PaintedSource
from visionkit.data.shapes import ShapesSource
from visionkit.plugins import PluginManager
from visionkit.testing import CHECKS, KITS, name_of

# Only what is needed: arguments without a default, and widths that keep this quick.
ARGUMENTS: dict[tuple[str, str], dict[str, Any]] = {
    ("head", "semantic_fpn"): {"channels": 32},
    ("head", "rcnn"): {"fcs": [32, 32]},
    ("head", "roi_mask"): {"convs": [16], "hidden": 16},
    ("head", "roi_keypoint"): {"convs": [16]},
    ("head", "keypoint_heatmap"): {"levels": ["c4"], "deconvs": [16, 16]},
    ("head", "keypoint_regression"): {"loss": "rle"},
    ("head", "yolact"): {"hidden": 16, "prototypes": 8},
    ("head", "cyclegan"): {"blocks": 1, "width": 4, "judge_layers": 2, "judge_width": 4, "pool": 3, "pool_side": 48},
    ("head", "cgan"): {"size": [12, 16]},
    ("head", "style_transfer"): {"width": 4, "blocks": 1, "vgg_width": 4, "style_size": 64},
    ("head", "pix2pix"): {"downs": 5, "width": 4, "judge_layers": 2, "judge_width": 4},
    ("head", "retinanet"): {"channels": 24, "convs": 2},
    ("head", "centernet"): {"hidden": 16},
    ("head", "centernet_pose"): {"hidden": 16},
    ("head", "cornernet"): {"levels": ["p2"], "hidden": 8},
    ("head", "centernet_triplet"): {"levels": ["p2"], "hidden": 8},
    ("head", "upsnet_semantic"): {"channels": [16]},
    ("head", "deeplab_v3"): {"channels": 16, "auxiliary": "c4"},
    ("head", "deeplab_v3plus"): {"channels": 16, "fine_channels": 8},
    ("head", "unet"): {"channels": [16, 16, 8, 8]},
    ("head", "deeplab_largefov"): {"hidden": 16},
    ("head", "xception_unet"): {"channels": [16, 16, 8, 8]},
    ("backbone", "unet_encoder"): {"width": 4},
    ("backbone", "xception_encoder"): {"width": 8, "widths": [8, 16, 16]},
    ("head", "classification"): {"auxiliary": {"c3": 0.3}},
    ("head", "fcn"): {"hidden": 8, "auxiliary": "c4"},
    ("head", "pspnet"): {"hidden": 16, "auxiliary_hidden": 8},
    ("backbone", "dilated_resnet"): {"model": "resnet18", "options": {"channels": [8, 16, 24, 32]}},
    ("backbone", "aligned_xception"): {"middle": 1},
    ("backbone", "timm"): {"model": "resnet10t", "options": {"channels": [16, 24, 32, 48]}},
    ("backbone", "hourglass"): {"channels": 16, "maps": 3, "depth": 2},
    ("backbone", "corner_hourglass"): {"stem": 8, "channels": [16, 16, 24], "blocks": [1, 1, 2], "outputs": 16},
    ("source", "coco"): {"images": "{}/images", "annotations": "{}/instances.json", "panoptic": "{}/panoptic.json"},
    ("source", "folder"): {"images": "{}/images", "masks": "{}/semantic", "classes": [f"class {i}" for i in range(9)]},
    ("source", "voc"): {"root": "{}/../layouts"},
    ("source", "cityscapes"): {"root": "{}/../layouts"},
    ("source", "ade20k"): {"root": "{}/../layouts"},
    ("source", "camvid"): {"root": "{}/../layouts"},
    ("source", "class_folder"): {"images": "{}"},
    ("source", "pairs"): {"images": "{}/images", "pictures": "{}/images"},
    ("source", "unpaired"): {"images": "{}/images", "pictures": "{}/images"},
    ("source", "shapes"): {"root": "{}", "size": 96},
    ("source", "objects"): {"source": {"name": "shapes", "size": 96}},
    ("transform", "crop_object"): {"size": [64, 48], "scale": 0.3, "rotation": 40.0},
    ("transform", "resize"): {"size": [64, 80]},
    ("transform", "scale_jitter_crop"): {"size": 64, "scale": [0.5, 1.5]},
    ("transform", "color_jitter"): {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1},
    ("transform", "hflip"): {"probability": 0.5},
}
PORTS = ("semantic_fpn", "rcnn", "roi_mask")  # the heads that the ports of others are fed by
OF_CLASSES = ("classification", "cgan")
OF_PICTURES = ("pictures", "pix2pix", "cyclegan", "style_transfer")
FAMILIES = 4  # parts that the checks of a head are tried in, for tests that run side by side

CASES = [
    (kind, listed.component.name, part)
    for kind in KITS
    for listed in PluginManager().components(kind)
    if listed.distribution == "visionkit"
    for part in range(FAMILIES if kind == "head" else 1)
]


def arguments(kind: str, name: str, shapes: Path) -> dict[str, Any]:
    given = ARGUMENTS.get((kind, name), {})
    return {key: value.format(shapes) if isinstance(value, str) else value for key, value in given.items()}


@pytest.mark.parametrize(("kind", "name", "part"), CASES)
def test_it_keeps_the_contract(
    kind: str, name: str, part: int, plugins: PluginManager, source: ShapesSource, shapes: Path, classes: Path
) -> None:
    extra: dict[str, Any] = {"source": source, "plugins": plugins} if kind in ("head", "evaluator") else {}
    if extra and name in OF_PICTURES:
        extra["source"] = PaintedSource(source={"name": "shapes", "size": 96, "root": str(shapes)})
    if name in OF_CLASSES:
        extra["source"] = ClassFolderSource(images=str(classes))
    if kind == "head":
        extra["others"] = {other: ARGUMENTS["head", other] for other in PORTS}
        extra["only"] = [name_of(check) for check in CHECKS[kind]][part::FAMILIES]

    report = KITS[kind](plugins.load(kind, name), args=arguments(kind, name, shapes), **extra)

    report.assert_passed()
    assert len(report.passed) >= 4


def test_every_kind_but_importers_has_a_kit() -> None:
    assert {kind for kind, _, _ in CASES} == set(KITS) == set(CHECKED)


@pytest.mark.parametrize("name", sorted({name for kind, name, _ in CASES if kind == "head"}))
def test_every_head_can_be_checked_without_arguments(
    name: str, plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``visionkit check NAME`` does: on synthetic data, with the levels that it asks for. Nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    report = KITS["head"](plugins.load("head", name), plugins=plugins, only=["losses_are_named_finite_scalars"])
    report.assert_passed()
    assert not list(tmp_path.iterdir())
