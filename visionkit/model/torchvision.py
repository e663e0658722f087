"""What torchvision's detection models have in common, for importers of their weights: ResNet, feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

# Pixels and sums in torchvision's own order: what is found is then equal to the last bits.
EVALUATE = """
train: {channels_last: false}
evaluate:
  transforms: [normalize, {name: resize, short: 800, long: 1333, exact: true}]
"""
"""The sections of a pipeline in which images are treated as there."""


def backbone_names(levels: Sequence[int] = (2, 3, 4, 5)) -> dict[str, str]:
    """Beginnings of their names -> ours, of a ResNet and the feature pyramid on its ``levels``, without norm.

    Files that were published before version 0.13 have the second one where there are two.
    """
    names = {"backbone.body.": "backbone.body.", "backbone.fpn.extra_blocks.": "neck.extras."}
    for i, level in enumerate(levels):
        for block, ours in (("inner", f"neck.lateral.c{level}."), ("layer", f"neck.output.p{level}.")):
            names[f"backbone.fpn.{block}_blocks.{i}.0."] = ours
            names[f"backbone.fpn.{block}_blocks.{i}."] = ours
    return names


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the batch counters that only batch norms in training have."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}


def published_batch_norms(state: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Batch norms that were trained with an epsilon of 0, as equal ones with ``eps``: the scale makes up for it.

    The files of the first versions are such, and torchvision sets epsilon to 0 only when it loads them itself.
    """
    new = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            scale = name.replace("running_var", "weight")
            wide = variance.double()
            new[scale] = (state[scale].double() * ((wide + eps) / wide).sqrt()).to(state[scale].dtype)
    return new
