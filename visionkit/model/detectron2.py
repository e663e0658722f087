"""What detectron2's models have in common, for importers of their weights: ResNet, feature pyramid, class order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import numbers_in, shape_of
from visionkit.model.resnets import resnet_section

EVALUATE: Mapping[str, Any] = {"evaluate": {"transforms": [{"name": "resize", "short": 800, "long": 1333}]}}
"""The section of a pipeline in which images are resized as there."""
_PREFIX = "backbone.bottom_up."
_CONVS = {
    "conv1": ("conv1", "bn1"),
    "conv2": ("conv2", "bn2"),
    "conv3": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}
# Their pixels are blue, green, red in 0 ... 255 with only the mean taken off; ours are red, green, blue and divided by
# these, so that the weights of the first convolution have to make up for it.
_SCALE = torch.tensor((0.229, 0.224, 0.225)) * 255.0


def backbone_section(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The backbone's section. Bottlenecks stride in their first convolution, as in all their ResNets without groups.

    Raises:
        UserError: a ResNeXt, whose configurations have another stride and other pixels.
    """
    resnet = resnet_section(state, [f"{_PREFIX}res{i}." for i in range(2, 6)])
    groups = shape_of(state, f"{_PREFIX}res2.0.conv2.weight")[1] < shape_of(state, f"{_PREFIX}res2.0.conv2.weight")[0]
    bottleneck = f"{_PREFIX}res2.0.conv3.weight" in state
    if groups and bottleneck:
        raise UserError("a ResNeXt; only ResNets of detectron2 can be imported")
    section = {"name": "timm", **resnet, "frozen_bn": True}
    return section | ({"stride_in_1x1": True} if bottleneck else {})


def neck_section(state: Mapping[str, Tensor], extra: str) -> dict[str, Any]:
    """The section of the feature pyramid with ``extra`` levels."""
    levels = levels_of(state)
    channels = shape_of(state, f"backbone.fpn_lateral{levels[0]}.weight")[0]
    return {"name": "fpn", "channels": channels, "inputs": [f"c{level}" for level in levels], "extra": extra}


def levels_of(state: Mapping[str, Tensor]) -> list[int]:
    """The levels that the pyramid is built on, as numbers. Raises ``UserError`` where there is no pyramid."""
    levels = numbers_in(state, "backbone.fpn_lateral#.")
    if not levels:
        raise UserError("no tensor begins with 'backbone.fpn_lateral': there is no feature pyramid")
    return levels


def backbone_names() -> dict[str, str]:
    """Beginnings of their names -> ours, of a ResNet and the feature pyramid on its levels."""
    names = {"backbone.fpn_lateral#.": "neck.lateral.c#.", "backbone.fpn_output#.": "neck.output.p#."}
    for theirs, ours in (("stem.", ""), *((f"res{i + 1}.#.", f"layer{i}.#.") for i in range(1, 5))):
        for conv, (new, norm) in _CONVS.items():
            names[f"{_PREFIX}{theirs}{conv}."] = f"backbone.body.{ours}{new}."
            names[f"{_PREFIX}{theirs}{conv}.norm."] = f"backbone.body.{ours}{norm}."
    return names


def to_rgb(stem: Tensor) -> Tensor:
    """The weights (out, 3, k, k) of their first convolution, for pixels as we normalise them."""
    return stem.flip(1) * _SCALE.to(stem)[:, None, None]


def background_first(logits: Tensor) -> Tensor:
    """Weights or biases (classes + 1, ...) of class logits with the background, their last class, put first."""
    return logits.roll(1, 0)


def ratios_first(last: Tensor, sizes: int = 3, ratios: int = 3) -> Tensor:
    """Weights or biases of the last layer: theirs count the anchors of a cell size by size, ours ratio by ratio."""
    return last.unflatten(0, (sizes, ratios, -1)).transpose(0, 1).flatten(0, 2)


def convert_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A renamed state with the first convolution adapted to our pixels, without the tensors that are computed anew.

    Apply it to what :func:`~visionkit.model.importing.rename` returns.
    """
    new = dict(state)
    stem = "backbone.body.conv1.weight"
    if stem in new:
        new[stem] = to_rgb(new[stem])
    return new


def trained(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the buffers that some of their files hold: pixel statistics, anchors, batch counters."""
    unused = ("pixel_mean", "pixel_std", "num_batches_tracked")
    return {k: v for k, v in state.items() if not k.endswith(unused) and ".cell_anchors." not in k}
