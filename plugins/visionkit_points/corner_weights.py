"""Models on CornerNet's hourglass as runs of ours: CornerNet, CenterNet of triplets, and CenterNet's Hourglass-104."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet
from visionkit_points.centernet_weights import MAPS, for_our_pixels, nest, published

PIPELINE = """
backbone: {{name: corner_hourglass, stacks: {stacks}}}
heads:
  boxes: {{name: {head}, levels: [{levels}]{more}}}
"""
STEM = "backbone.stem.0.conv.weight"
BLOCK = {"conv1.": "first.conv.", "bn1.": "first.norm.", "conv2.": "second.conv.", "bn2.": "second.norm."}
BLOCK |= {"skip.0.": "skip.conv.", "skip.1.": "skip.norm."}
UNIT = {"conv.": "conv.", "bn.": "norm."}
SIZES, BLOCKS = 6, 4
"""At how many sizes an hourglass has blocks, and how many in a row at most."""


def pipeline(head: str, stacks: int, more: str = "") -> str:
    """A head on every stack of an hourglass."""
    levels = ", ".join(f"stack{i + 1}" for i in range(stacks))
    return PIPELINE.format(head=head, stacks=stacks, levels=levels, more=more)


def hourglass_names(stacks: int) -> dict[str, str]:
    """Names of CornerNet's hourglass."""
    names = {**nest("pre.0.", "backbone.stem.0.", UNIT), **nest("pre.1.", "backbone.stem.1.", BLOCK)}
    for i in range(stacks):
        for depth in range(SIZES - 1):
            theirs, ours = f"kps.{i}." + "low2." * depth, f"backbone.stacks.{i}." + "inside." * depth
            rows = {"up1.": "beside.", "low1.": "down.", "low3.": "up."}
            rows |= {"low2.": "inside."} if depth == SIZES - 2 else {}
            for part, new in rows.items():
                for k in range(BLOCKS):
                    names |= nest(f"{theirs}{part}{k}.", f"{ours}{new}{k}.", BLOCK)
        between = f"backbone.between.{i}."
        names |= nest(f"cnvs.{i}.", f"backbone.features.{i}.", UNIT)
        names |= nest(f"inters.{i}.", f"{between}block.", BLOCK)
        names |= nest(f"inters_.{i}.", f"{between}given.", {"0.": "conv.", "1.": "norm."})
        names |= nest(f"cnvs_.{i}.", f"{between}made.", {"0.": "conv.", "1.": "norm."})
    return names


def point_names(kind: str, ours: str, stacks: int) -> dict[str, str]:
    """Names of the branches for one kind of point: ``tl``, ``br`` or ``ct``."""
    pooling = {"p_conv1.": "join.conv.", "p_bn1.": "join.norm.", "conv1.": "skip.conv.", "bn1.": "skip.norm."}
    pooling |= nest("conv2.", "last.", UNIT) | nest("p1_conv1.", "down.", UNIT) | nest("p2_conv1.", "across.", UNIT)
    for i in range(2):
        pooling |= nest(f"look_conv{i + 1}.", f"inward.{i}.look.", UNIT)
        pooling[f"P{i + 1}_look_conv."] = f"inward.{i}.join."
    names: dict[str, str] = {}
    for i in range(stacks):
        names |= nest(f"{kind}_cnvs.{i}.", f"heads.boxes.{ours}.{i}.pool.", pooling)
        for what, new in (("heats", "heat"), ("tags", "tag"), ("regrs", "offset")):
            maps = f"heads.boxes.{ours}.{i}.maps.{new}."
            names |= nest(f"{kind}_{what}.{i}.", maps, {"0.conv.": "0.", "1.": "2."})
    return names


class CornerNet104(Importer):
    """``CornerNet`` on Hourglass-104."""

    pipeline = pipeline("cornernet", 2)
    labels: ClassVar[Mapping[str, LabelSet]] = {"boxes": COCO_OBJECTS}
    stacks: ClassVar[int] = 2
    kinds: ClassVar[Mapping[str, str]] = {"tl": "top_left", "br": "bottom_right"}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = hourglass_names(self.stacks)
        for kind, ours in self.kinds.items():
            names |= point_names(kind, ours, self.stacks)
        return for_our_pixels(rename(published(state), names), STEM)


class Triplet104(CornerNet104):
    """``CenterNet-104`` of Duan et al., on Hourglass-104."""

    pipeline = pipeline("centernet_triplet", 2)
    kinds: ClassVar[Mapping[str, str]] = {"tl": "top_left", "br": "bottom_right", "ct": "centre"}


class Triplet52(Triplet104):
    """``CenterNet-52`` of Duan et al., on Hourglass-52."""

    pipeline = pipeline("centernet_triplet", 1)
    stacks = 1


class CenterNet104(Importer):
    """``ctdet_coco_hg``: CenterNet of Zhou et al. on Hourglass-104."""

    pipeline = pipeline("centernet", 2, ", hidden: 256")
    labels: ClassVar[Mapping[str, LabelSet]] = {"boxes": COCO_OBJECTS}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = hourglass_names(2)
        for i in range(2):
            for theirs, ours in MAPS.items():
                maps = f"heads.boxes.maps.{i}.{ours}"
                names |= nest(f"{theirs}{i}.", maps, {"0.conv.": "0.", "1.": "2."})
        return for_our_pixels(rename(published(state), names), STEM)
