"""The stacked hourglass's tensors under their authors' names -> ours, for importers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


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
