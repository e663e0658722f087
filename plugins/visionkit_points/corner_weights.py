"""Models on CornerNet's hourglass as runs of ours: CornerNet, CenterNet of triplets, and CenterNet's Hourglass-104."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.model.importing import Importer, class_labels, count_in, rename, section, shape_of
from visionkit.types import LabelSet
from visionkit_points.centernet_weights import MAPS, box_head, for_our_pixels, nest

STEM = "backbone.stem.0.conv.weight"
BLOCK = {"conv1.": "first.conv.", "bn1.": "first.norm.", "conv2.": "second.conv.", "bn2.": "second.norm."}
BLOCK |= {"skip.0.": "skip.conv.", "skip.1.": "skip.norm."}
UNIT = {"conv.": "conv.", "bn.": "norm."}


def pipeline(state: Mapping[str, Tensor], head: Mapping[str, Any]) -> str:
    """The hourglass that the tensors are of, and a head on every stack of it."""
    levels = [f"stack{i + 1}" for i in range(count_in(state, "kps.#."))]
    return section(backbone=hourglass_section(state), heads={"boxes": {**head, "levels": levels}})


def hourglass_section(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The backbone's section: stacks, sizes at which there are blocks, and how many blocks of which width."""
    sizes = halvings(state)
    places = [f"kps.0.{'low2.' * depth}up1." for depth in range(sizes)] + [f"kps.0.{'low2.' * sizes}"]
    return {
        "name": "corner_hourglass",
        "stacks": count_in(state, "kps.#."),
        "stem": shape_of(state, "pre.0.conv.weight")[0],
        "channels": [shape_of(state, f"{place}0.conv1.weight")[0] for place in places],
        "blocks": [count_in(state, f"{place}#.") for place in places],
        "outputs": shape_of(state, "cnvs.0.conv.weight")[0],
    }


def halvings(state: Mapping[str, Tensor]) -> int:
    """How many times an hourglass halves its input."""
    depth = 0
    while any(name.startswith(f"kps.0.{'low2.' * depth}up1.") for name in state):
        depth += 1
    return depth


def hourglass_names(depth: int) -> dict[str, str]:
    """Names of CornerNet's hourglass that halves its input so many times."""
    names = {**nest("pre.0.", "backbone.stem.0.", UNIT), **nest("pre.1.", "backbone.stem.1.", BLOCK)}
    for i in range(depth):
        theirs, ours = "kps.#." + "low2." * i, "backbone.stacks.#." + "inside." * i
        rows = {"up1.": "beside.", "low1.": "down.", "low3.": "up."}
        rows |= {"low2.": "inside."} if i == depth - 1 else {}
        for part, new in rows.items():
            names |= nest(f"{theirs}{part}#.", f"{ours}{new}#.", BLOCK)
    names |= nest("cnvs.#.", "backbone.features.#.", UNIT)
    names |= nest("inters.#.", "backbone.between.#.block.", BLOCK)
    names |= nest("inters_.#.", "backbone.between.#.given.", {"0.": "conv.", "1.": "norm."})
    names |= nest("cnvs_.#.", "backbone.between.#.made.", {"0.": "conv.", "1.": "norm."})
    return names


def point_names(kind: str, ours: str) -> dict[str, str]:
    """Names of the branches for one kind of point: ``tl``, ``br`` or ``ct``."""
    pooling = {"p_conv1.": "join.conv.", "p_bn1.": "join.norm.", "conv1.": "skip.conv.", "bn1.": "skip.norm."}
    pooling |= nest("conv2.", "last.", UNIT) | nest("p1_conv1.", "down.", UNIT) | nest("p2_conv1.", "across.", UNIT)
    for i in range(2):
        pooling |= nest(f"look_conv{i + 1}.", f"inward.{i}.look.", UNIT)
        pooling[f"P{i + 1}_look_conv."] = f"inward.{i}.join."
    names = nest(f"{kind}_cnvs.#.", f"heads.boxes.{ours}.#.pool.", pooling)
    for what, new in (("heats", "heat"), ("tags", "tag"), ("regrs", "offset")):
        names |= nest(f"{kind}_{what}.#.", f"heads.boxes.{ours}.#.maps.{new}.", {"0.conv.": "0.", "1.": "2."})
    return names


class CornerNet(Importer):
    """``CornerNet`` on an hourglass of any number of stacks, sizes and blocks."""

    key = "tl_tags.0.1.weight"
    head: ClassVar[str] = "cornernet"
    kinds: ClassVar[Mapping[str, str]] = {"tl": "top_left", "br": "bottom_right"}

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        hidden = shape_of(state, "tl_cnvs.0.p1_conv1.conv.weight")[0]
        labels = class_labels(shape_of(state, "tl_heats.0.1.weight")[0], COCO_OBJECTS)
        return pipeline(state, {"name": self.head, "hidden": hidden}), {"boxes": labels}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = hourglass_names(halvings(state))
        for kind, ours in self.kinds.items():
            names |= point_names(kind, ours)
        return for_our_pixels(rename(state, names), STEM)


class Triplet(CornerNet):
    """``CenterNet-104`` and ``CenterNet-52`` of Duan et al., and others of any number of stacks, sizes and blocks."""

    head = "centernet_triplet"
    kinds: ClassVar[Mapping[str, str]] = {"tl": "top_left", "br": "bottom_right", "ct": "centre"}


class CenterNetHourglass(Importer):
    """``ctdet_coco_hg``: CenterNet of Zhou et al. on an hourglass of any number of stacks, sizes and blocks."""

    key = "hm.0.1.weight"

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        head = box_head(state, "hm.0.0.conv.weight", self.key, "wh.0.1.weight")
        return pipeline(state, head), {"boxes": class_labels(shape_of(state, self.key)[0], COCO_OBJECTS)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = hourglass_names(halvings(state))
        for theirs, ours in MAPS.items():
            names |= nest(f"{theirs}#.", f"heads.boxes.maps.#.{ours}", {"0.conv.": "0.", "1.": "2."})
        return for_our_pixels(rename(state, names), STEM)
