"""CenterNet (Objects as Points) of its authors as runs of ours, under their names of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_PERSONS
from visionkit.model.importing import Importer, class_labels, numbers_in, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet

# What the authors say of blue, green and red, in the order of our pixels.
NORMALIZED = {"mean": [0.470, 0.447, 0.408], "std": [0.278, 0.274, 0.289]}

DEFORM = {"": "", "conv_offset_mask.": "offset."}
MAPS = {"hm.": "heat.", "wh.": "size.", "reg.": "offset."}


def for_our_pixels(state: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """``state`` with the first convolution, of this name, turned from blue, green, red to red, green, blue."""
    return {name: tensor.flip(1) if name == stem else tensor for name, tensor in state.items()}


def nest(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Beginnings of names inside of a module: ``parts`` says what becomes what there."""
    return {theirs + a: ours + b for a, b in parts.items()}


def box_head(state: Mapping[str, Tensor], hidden: str, heat: str, size: str) -> dict[str, Any]:
    """Keys of the head ``centernet``, from the names of three weights: a size for each class where there are as many.

    Args:
        state: names and tensors.
        hidden, heat: the first and the last layer of the heatmaps.
        size: the last layer of the sizes.
    """
    keys: dict[str, Any] = {"name": "centernet", "hidden": shape_of(state, hidden)[0]}
    classes = shape_of(state, heat)[0]
    return keys | ({"class_sizes": True} if classes > 1 and shape_of(state, size)[0] == 2 * classes else {})


class CenterNetResNet(Importer):
    """``ctdet`` on a ResNet, with plain deconvolutions or with deformable convolutions between them (``resdcn``)."""

    key = "hm.2.weight"

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        resnet = resnet_section(state, [f"layer{i}." for i in range(1, 5)])
        steps = _deconvs(state)
        deformable = {"deformable": True} if DEFORMABLE in state else {}
        widths = [shape_of(state, f"deconv_layers.{place}.weight")[1] for place in steps]
        head = box_head(state, "hm.0.weight", "hm.2.weight", "wh.2.weight")
        text = section(
            backbone={"name": "timm", **resnet, **NORMALIZED},
            neck={"name": "deconv", "channels": widths, **deformable},
            heads={"boxes": {**head, "levels": [f"p{5 - len(steps)}"]}},
        )
        return text, {"boxes": class_labels(shape_of(state, self.key)[0], COCO_OBJECTS)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {name: f"backbone.body.{name}" for name in ("conv1.", "bn1.", "layer")}
        names |= nest("", "heads.boxes.maps.0.", MAPS)
        # Of three places in their row of layers, the last one is a ReLU.
        for i, place in enumerate(_deconvs(state)):
            theirs, ours = "deconv_layers.", f"neck.steps.p{4 - i}."
            if DEFORMABLE in state:
                names |= nest(f"{theirs}{place - 3}.", f"{ours}0.", DEFORM)
                names |= {f"{theirs}{place + j}.": f"{ours}{3 + j}." for j in (-2, 0, 1)}
            else:
                names |= {f"{theirs}{place + j}.": f"{ours}{j}." for j in (0, 1)}
        return for_our_pixels(rename(state, names), "backbone.body.conv1.weight")


DEFORMABLE = "deconv_layers.0.conv_offset_mask.weight"


def _deconvs(state: Mapping[str, Tensor]) -> list[int]:
    """Places of the deconvolutions in their row of layers."""
    period, first = (6, 3) if DEFORMABLE in state else (3, 0)
    return [i for i in numbers_in(state, "deconv_layers.#.") if i % period == first]


class CenterNetDLA34(Importer):
    """``ctdet_coco_dla_2x``: DLA-34 with deformable aggregation."""

    key = "hm.2.weight"
    head: ClassVar[str] = "boxes"
    maps: ClassVar[Mapping[str, str]] = MAPS

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        text = section(
            backbone={"name": "timm", "model": "dla34", **NORMALIZED},
            neck={"name": "dla_up"},
            heads={self.head: {**self.head_of(state), "levels": ["p2"]}},
        )
        return text, {self.head: self.classes(state)}

    def head_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keys of the head."""
        return box_head(state, "hm.0.weight", "hm.2.weight", "wh.2.weight")

    def classes(self, state: Mapping[str, Tensor]) -> LabelSet:
        """Labels of the head."""
        return class_labels(shape_of(state, self.key)[0], COCO_OBJECTS)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The authors' trees of two levels have a projection that nothing ever passes, and a classifier besides.
        unused = ("base.level3.project.", "base.level4.project.", "base.fc.")
        used = {name: tensor for name, tensor in state.items() if not name.startswith(unused)}
        names = {"base.": "backbone.body.", **nest("", f"heads.{self.head}.maps.0.", self.maps)}
        for stage, count in (("dla_up.ida_0", 1), ("dla_up.ida_1", 2), ("dla_up.ida_2", 3), ("ida_up", 2)):
            ours = "neck.last" if stage == "ida_up" else f"neck.stages.{stage[-1]}"
            names |= aggregation_names(stage, ours, count)
        return for_our_pixels(rename(used, names), "backbone.body.base_layer.0.weight")


class CenterNetPoseDLA34(CenterNetDLA34):
    """``multi_pose_dla_3x``: persons and their 17 keypoints, or other classes and keypoints, on DLA-34."""

    key = "hps.2.weight"
    head = "keypoints"
    maps: ClassVar[Mapping[str, str]] = {
        **MAPS,
        "hps.": "joints.",
        "hm_hp.": "joint_heat.",
        "hp_offset.": "joint_offset.",
    }

    def head_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "centernet_pose", "hidden": shape_of(state, "hm.0.weight")[0]}

    def classes(self, state: Mapping[str, Tensor]) -> LabelSet:
        keypoints = shape_of(state, self.key)[0] // 2
        return class_labels(shape_of(state, "hm.2.weight")[0], COCO_PERSONS, keypoints=keypoints)


def aggregation_names(theirs: str, ours: str, count: int) -> dict[str, str]:
    """Names of one stage that joins ``count`` levels with a first one."""
    names: dict[str, str] = {}
    for i in range(count):
        for part, new in (("proj", "project"), ("node", "node")):
            block, mine = f"{theirs}.{part}_{i + 1}.", f"{ours}.{new}.{i}."
            names |= nest(f"{block}conv.", f"{mine}conv.", DEFORM) | {f"{block}actf.0.": f"{mine}norm."}
        names[f"{theirs}.up_{i + 1}."] = f"{ours}.grow.{i}."
    return names
