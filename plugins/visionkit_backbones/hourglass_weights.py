"""The stacked hourglass of its authors (``princeton-vl/pytorch_stacked_hourglass``) as a run of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet

MPII = LabelSet(
    ("person",),
    keypoints=(
        *("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle"),
        *("pelvis", "thorax", "upper_neck", "head_top"),
        *("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    ),
    skeleton=(
        *((0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9)),
        *((10, 11), (11, 12), (12, 7), (7, 13), (13, 14), (14, 15)),
    ),
    swaps=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
)
"""The joints of MPII Human Pose, in the order of its annotations."""
PIPELINE = """
backbone: {{name: hourglass, stacks: {stacks}, maps: 16}}
heads:
  keypoints:
    name: keypoint_heatmap
    levels: [{levels}]
    deconvs: []
    last: false
    sigma: 1.0
    flip_test: true
evaluate:
  transforms: [{{name: crop_object, size: 256}}]
"""


def pipeline(stacks: int) -> str:
    """The maps of every stack as heatmaps."""
    return PIPELINE.format(stacks=stacks, levels=", ".join(f"maps{i + 1}" for i in range(stacks)))


class Hourglass2(Importer):
    """Two stacks, 16 joints of MPII."""

    stacks = 2
    pipeline = pipeline(2)
    labels: ClassVar[Mapping[str, LabelSet]] = {"keypoints": MPII}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Parallel training and the module that computes the loss leave their names behind.
        plain = {re.sub(r"^(module\.|model\.)+", "", name): tensor for name, tensor in state.items()}
        return rename(without_idle_shortcuts(plain), newell_names(self.stacks))


class Hourglass8(Hourglass2):
    """Eight stacks, 16 joints of MPII."""

    stacks = 8
    pipeline = pipeline(8)


def newell_names(stacks: int, depth: int = 4, prefix: str = "backbone.") -> dict[str, str]:
    """Names of the stacked hourglass in its authors' PyTorch version, without the shortcuts that it never uses."""
    names = {"pre.0.conv.": f"{prefix}stem.0.0.", "pre.0.bn.": f"{prefix}stem.0.1."}
    for i in (1, 3, 4):
        names |= _residual(f"pre.{i}.", f"{prefix}stem.{i}.")
    for i in range(stacks):
        for level in range(depth):
            theirs = f"hgs.{i}.0." + "low2." * level
            ours = f"{prefix}stacks.{i}." + "inside." * level
            parts = {"up1.": "beside.", "low1.": "down.", "low3.": "up."}
            parts |= {"low2.": "inside."} if level == depth - 1 else {}
            for part, new in parts.items():
                names |= _residual(theirs + part, ours + new)
        names |= _residual(f"features.{i}.0.", f"{prefix}features.{i}.0.")
        names[f"features.{i}.1.conv."] = f"{prefix}features.{i}.1.0."
        names[f"features.{i}.1.bn."] = f"{prefix}features.{i}.1.1."
        names[f"outs.{i}.conv."] = f"{prefix}maps.{i}."
        names[f"merge_features.{i}.conv.conv."] = f"{prefix}merge_features.{i}."
        names[f"merge_preds.{i}.conv.conv."] = f"{prefix}merge_maps.{i}."
    return names


def _residual(theirs: str, ours: str) -> dict[str, str]:
    names = {f"{theirs}skip_layer.conv.": f"{ours}skip."}
    for i in range(3):
        names[f"{theirs}bn{i + 1}."] = f"{ours}layers.{3 * i}."
        names[f"{theirs}conv{i + 1}.conv."] = f"{ours}layers.{3 * i + 2}."
    return names


def without_idle_shortcuts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors without those of shortcuts between equal widths, which are there and never used."""
    idle = {
        name.removesuffix(".weight")
        for name, tensor in state.items()
        if name.endswith("skip_layer.conv.weight") and tensor.shape[0] == tensor.shape[1]
    }
    return {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in idle}
