"""What detectron2's models have in common, for importers of their weights: ResNet, feature pyramid, class order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BACKBONE = "backbone: {{name: timm, model: resnet{depth}, frozen_bn: true, stride_in_1x1: true}}\n"
"""The backbone section of a pipeline: their ResNets of 50 and 101 layers stride in the first convolution of a block."""

_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_CONVS = {
    "conv1": ("conv1", "bn1"),
    "conv2": ("conv2", "bn2"),
    "conv3": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}
# Their pixels are blue, green, red in 0 ... 255 with only the mean taken off; ours are red, green, blue and divided by
# these, so that the weights of the first convolution have to make up for it.
_SCALE = torch.tensor((0.229, 0.224, 0.225)) * 255.0


def backbone_names(depth: int = 50, outputs: Sequence[int] = (2, 3, 4, 5)) -> dict[str, str]:
    """Beginnings of their names -> ours, of a ResNet and the feature pyramid on its levels.

    Args:
        depth: of the ResNet, 50 or 101.
        outputs: the levels that the pyramid is built on, as numbers.
    """
    names = {}
    prefix = "backbone.bottom_up."
    blocks = [(f"res{i + 2}.{j}.", f"layer{i + 1}.{j}.") for i, n in enumerate(_DEPTHS[depth]) for j in range(n)]
    for theirs, ours in [("stem.", ""), *blocks]:
        for conv, (new, norm) in _CONVS.items():
            names[f"{prefix}{theirs}{conv}."] = f"backbone.body.{ours}{new}."
            names[f"{prefix}{theirs}{conv}.norm."] = f"backbone.body.{ours}{norm}."
    for i in outputs:
        names[f"backbone.fpn_lateral{i}."] = f"neck.lateral.c{i}."
        names[f"backbone.fpn_output{i}."] = f"neck.output.p{i}."
    return names


def to_rgb(stem: Tensor) -> Tensor:
    """The weights (out, 3, k, k) of their first convolution, for pixels as we normalise them."""
    return stem.flip(1) * _SCALE.to(stem)[:, None, None]


def background_first(logits: Tensor) -> Tensor:
    """Weights or biases (classes + 1, ...) of class logits with the background, their last class, put first."""
    return logits.roll(1, 0)


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
