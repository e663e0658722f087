"""CenterNet (Objects as Points) of its authors as runs of ours, under their names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_PERSONS
from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet

# What the authors say of blue, green and red, in the order of our pixels.
NORMALIZED = "mean: [0.470, 0.447, 0.408], std: [0.278, 0.274, 0.289]"
BACKBONE = "\nbackbone: {{name: timm, model: {model}, " + NORMALIZED + "}}\n"
PLAIN_NECK = "neck: {name: deconv, channels: [256, 256, 256]}\n"
DEFORMABLE_NECK = "neck: {name: deconv, channels: [256, 128, 64], deformable: true}\n"
DLA_NECK = "neck: {name: dla_up}\n"
BOXES = "heads:\n  boxes: {{name: centernet, levels: [{levels}], hidden: {hidden}}}\n"

DEFORM = {"": "", "conv_offset_mask.": "offset."}
MAPS = {"hm.": "heat.", "wh.": "size.", "reg.": "offset."}


def for_our_pixels(state: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """``state`` with the first convolution, of this name, turned from blue, green, red to red, green, blue."""
    return {name: tensor.flip(1) if name == stem else tensor for name, tensor in state.items()}


def published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the beginning of names that parallel training leaves behind."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def nest(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Beginnings of names inside of a module: ``parts`` says what becomes what there."""
    return {theirs + a: ours + b for a, b in parts.items()}


class CenterNetResNet18(Importer):
    """``ctdet_coco`` on ResNet-18 with plain deconvolutions."""

    pipeline = BACKBONE.format(model="resnet18") + PLAIN_NECK + BOXES.format(levels="p2", hidden=64)
    labels: ClassVar[Mapping[str, LabelSet]] = {"boxes": COCO_OBJECTS}
    # Their places of deconvolution and batch norm in a row of layers, level by level.
    neck: ClassVar[Mapping[str, str]] = {
        f"deconv_layers.{3 * i + j}.": f"neck.steps.p{4 - i}.{j}." for i in range(3) for j in range(2)
    }

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {name: f"backbone.body.{name}" for name in ("conv1.", "bn1.", "layer")}
        maps = nest("", "heads.boxes.maps.0.", MAPS)
        ours = rename(published(state), {**names, **self.neck, **maps})
        return for_our_pixels(ours, "backbone.body.conv1.weight")


class CenterNetResNet101(CenterNetResNet18):
    """``ctdet_coco`` on ResNet-101 with plain deconvolutions."""

    pipeline = BACKBONE.format(model="resnet101") + PLAIN_NECK + BOXES.format(levels="p2", hidden=64)


class CenterNetResDCN18(CenterNetResNet18):
    """``ctdet_coco_resdcn18``: ResNet-18 with deformable convolutions between the deconvolutions."""

    pipeline = BACKBONE.format(model="resnet18") + DEFORMABLE_NECK + BOXES.format(levels="p2", hidden=64)
    neck: ClassVar[Mapping[str, str]] = {
        theirs: ours
        for i in range(3)
        for j in (0, 1, 3, 4)
        for theirs, ours in nest(
            f"deconv_layers.{6 * i + j}.", f"neck.steps.p{4 - i}.{j}.", DEFORM if j == 0 else {"": ""}
        ).items()
    }


class CenterNetResDCN101(CenterNetResDCN18):
    """``ctdet_coco_resdcn101``: the same on ResNet-101."""

    pipeline = BACKBONE.format(model="resnet101") + DEFORMABLE_NECK + BOXES.format(levels="p2", hidden=64)


class CenterNetDLA34(Importer):
    """``ctdet_coco_dla_2x``: DLA-34 with deformable aggregation."""

    pipeline = BACKBONE.format(model="dla34") + DLA_NECK + BOXES.format(levels="p2", hidden=256)
    labels: ClassVar[Mapping[str, LabelSet]] = {"boxes": COCO_OBJECTS}
    head: ClassVar[str] = "boxes"
    maps: ClassVar[Mapping[str, str]] = MAPS

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The authors' trees of two levels have a projection that nothing ever passes, and a classifier besides.
        unused = ("base.level3.project.", "base.level4.project.", "base.fc.")
        used = {name: tensor for name, tensor in published(state).items() if not name.startswith(unused)}
        names = {"base.": "backbone.body.", **nest("", f"heads.{self.head}.maps.0.", self.maps)}
        for stage, count in (("dla_up.ida_0", 1), ("dla_up.ida_1", 2), ("dla_up.ida_2", 3), ("ida_up", 2)):
            ours = "neck.last" if stage == "ida_up" else f"neck.stages.{stage[-1]}"
            names |= aggregation_names(stage, ours, count)
        return for_our_pixels(rename(used, names), "backbone.body.base_layer.0.weight")


class CenterNetPoseDLA34(CenterNetDLA34):
    """``multi_pose_dla_3x``: persons and their 17 keypoints, on DLA-34."""

    pipeline = (
        BACKBONE.format(model="dla34")
        + DLA_NECK
        + "heads:\n  keypoints: {name: centernet_pose, levels: [p2], hidden: 256}\n"
    )
    labels: ClassVar[Mapping[str, LabelSet]] = {"keypoints": COCO_PERSONS}
    head = "keypoints"
    maps: ClassVar[Mapping[str, str]] = {
        **MAPS,
        "hps.": "joints.",
        "hm_hp.": "joint_heat.",
        "hp_offset.": "joint_offset.",
    }


def aggregation_names(theirs: str, ours: str, count: int) -> dict[str, str]:
    """Names of one stage that joins ``count`` levels with a first one."""
    names: dict[str, str] = {}
    for i in range(count):
        for part, new in (("proj", "project"), ("node", "node")):
            block, mine = f"{theirs}.{part}_{i + 1}.", f"{ours}.{new}.{i}."
            names |= nest(f"{block}conv.", f"{mine}conv.", DEFORM) | {f"{block}actf.0.": f"{mine}norm."}
        names[f"{theirs}.up_{i + 1}."] = f"{ours}.grow.{i}."
    return names
