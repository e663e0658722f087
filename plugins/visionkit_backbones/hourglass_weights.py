"""The stacked hourglass of its authors (``princeton-vl/pytorch_stacked_hourglass``) as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, class_labels, count_in, rename, section, shape_of
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


class StackedHourglass(Importer):
    """``PoseNet`` of any number of stacks, channels, levels and keypoints; 16 are taken for the joints of MPII."""

    key = "hgs.0.0.up1.conv1.conv.weight"

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        stacks = count_in(state, "hgs.#.")
        keypoints, channels = shape_of(state, "outs.0.conv.weight")[:2]
        text = section(
            backbone={
                "name": "hourglass", "stacks": stacks, "channels": channels, "maps": keypoints, "depth": _depth(state)
            },
            heads={
                "keypoints": {
                    "name": "keypoint_heatmap",
                    "levels": [f"maps{i + 1}" for i in range(stacks)],  # the maps of every stack are heatmaps
                    "deconvs": [],
                    "last": False,
                    "sigma": 1.0,
                    "flip_test": True,
                }
            },
            evaluate={"transforms": [{"name": "crop_object", "size": 256}]},
        )  # fmt: skip
        return text, {"keypoints": class_labels(1, MPII, keypoints=keypoints)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(without_idle_shortcuts(state), newell_names(_depth(state)))


def _depth(state: Mapping[str, Tensor]) -> int:
    """How many times an hourglass halves its input."""
    depth = 0
    while f"hgs.0.0.{'low2.' * depth}up1.conv1.conv.weight" in state:
        depth += 1
    return depth


def newell_names(depth: int = 4, prefix: str = "backbone.") -> dict[str, str]:
    """Names of the stacked hourglass in its authors' PyTorch version, without the shortcuts that it never uses."""
    names = {"pre.0.conv.": f"{prefix}stem.0.0.", "pre.0.bn.": f"{prefix}stem.0.1."}
    for i in (1, 3, 4):
        names |= _residual(f"pre.{i}.", f"{prefix}stem.{i}.")
    for level in range(depth):
        theirs = "hgs.#.0." + "low2." * level
        ours = f"{prefix}stacks.#." + "inside." * level
        parts = {"up1.": "beside.", "low1.": "down.", "low3.": "up."}
        parts |= {"low2.": "inside."} if level == depth - 1 else {}
        for part, new in parts.items():
            names |= _residual(theirs + part, ours + new)
    names |= _residual("features.#.0.", f"{prefix}features.#.0.")
    names["features.#.1.conv."] = f"{prefix}features.#.1.0."
    names["features.#.1.bn."] = f"{prefix}features.#.1.1."
    names["outs.#.conv."] = f"{prefix}maps.#."
    names["merge_features.#.conv.conv."] = f"{prefix}merge_features.#."
    names["merge_preds.#.conv.conv."] = f"{prefix}merge_maps.#."
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
