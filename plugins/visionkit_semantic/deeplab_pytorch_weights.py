"""DeepLabv2, v3 and v3+ of kazuto1011/deeplab-pytorch as runs of ours.

Their pixels are blue, green, red in 0 ... 255 less Caffe's mean; the first convolution is turned to red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import Importer, class_labels, count_in, given, numbers_in, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet
from visionkit_semantic.voc import VOC

_CONVS = {
    "reduce": ("conv1", "bn1"),
    "conv3x3": ("conv2", "bn2"),
    "increase": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}
BODY = "backbone.resnet.body."
HEAD = "heads.semantic."


def _pair(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv.": f"{HEAD}{ours}.conv.", f"{theirs}.bn.": f"{HEAD}{ours}.norm."}


def backbone_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Beginnings of their names -> ours. They count stages from 2 and blocks from 1."""
    names = {"layer1.conv1.conv.": f"{BODY}conv1.", "layer1.conv1.bn.": f"{BODY}bn1."}
    for stage in range(2, 6):
        for block in numbers_in(state, f"layer{stage}.block#."):
            for conv, parts in _CONVS.items():
                for theirs, ours in zip(("conv", "bn"), parts):
                    new = f"{BODY}layer{stage - 1}.{block - 1}.{ours}."
                    names[f"layer{stage}.block{block}.{conv}.{theirs}."] = new
    return names


ASPP = {
    "aspp.stages.c#.conv.": f"{HEAD}aspp.branches.#.conv.",
    "aspp.stages.c#.bn.": f"{HEAD}aspp.branches.#.norm.",
    **_pair("aspp.stages.imagepool.conv", "aspp.pool"),
    **_pair("fc1", "aspp.project"),
}


class _DeepLab(Importer):
    """What all have in common. Their multi-scale wrapper is left out."""

    key = "layer5.block1.conv3x3.conv.weight"
    names: Mapping[str, str]
    score: str

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        resnet = resnet_section(
            state, [f"layer{i}.block" for i in range(2, 6)], ("reduce.conv", "conv3x3.conv", "increase.conv")
        )
        labels = class_labels(shape_of(state, self.score)[0], VOC)
        dilations = self.dilations(state)
        text = section(
            backbone={"name": "dilated_resnet", **resnet, "stride_in_1x1": True, **dilations, "pixels": "caffe"},
            heads={"semantic": self.head(state)},
            train={"channels_last": False},
        )
        return text, {"semantic": labels}

    def dilations(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keys of the backbone's section."""
        return {"output_stride": 8}

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Section of the head."""
        raise NotImplementedError

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = rename(state, {**backbone_names(state), **self.names})
        return {name: tensor.flip(1) if name == f"{BODY}conv1.weight" else tensor for name, tensor in ours.items()}


class DeepLabV2(_DeepLab):
    """``DeepLabV2_ResNet101_MSC`` without its scales: summed dilations on stride 8.

    Args:
        rates: dilations of the branches.
    """

    names = {"aspp.c#.": f"{HEAD}aspp.branches.#."}
    score = "aspp.c0.weight"

    def __init__(self, *, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        self.rates = tuple(rates)

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "deeplab_v2", "rates": fitting_rates(self.rates, count_in(state, "aspp.c#."))}


class DeepLabV3(_DeepLab):
    """``DeepLabV3_ResNet101_MSC`` without its scales.

    Args:
        output_stride: 8 or 16; it cannot be determined from the weights.
        rates: dilations of the branches at output stride 16; they are twice as large at 8.
        multi_grid: factors of the dilations in the last stage.
    """

    names = {**ASPP, "fc2.": f"{HEAD}score."}
    score = "fc2.weight"

    def __init__(
        self,
        *,
        output_stride: Literal[8, 16] | None = None,
        rates: Sequence[int] = (6, 12, 18),
        multi_grid: Sequence[int] = (1, 2, 4),
    ) -> None:
        self.output_stride, self.rates, self.multi_grid = output_stride, tuple(rates), tuple(multi_grid)

    def dilations(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        grid = fitting_grid(self.multi_grid, count_in(state, "layer5.block#."))
        return {"output_stride": given(self.output_stride, "output_stride", "8 or 16"), "multi_grid": grid}

    def aspp(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keys of the head for the pyramid."""
        rates = fitting_rates(self.rates, count_in(state, "aspp.stages.c#.") - 1)
        return {"channels": shape_of(state, "fc1.conv.weight")[0], "rates": rates}

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "deeplab_v3", **self.aspp(state)}


class DeepLabV3Plus(DeepLabV3):
    """``DeepLabV3Plus_ResNet101_MSC`` without its scales.

    Args:
        output_stride: 8 or 16; it cannot be determined from the weights.
        rates: dilations of the branches at output stride 16; they are twice as large at 8.
        multi_grid: factors of the dilations in the last stage.
    """

    names = {
        **ASPP,
        **_pair("reduce", "reduce"),
        **_pair("fc2.conv1", "decoder.0"),
        **_pair("fc2.conv2", "decoder.2"),
        "fc2.conv3.": f"{HEAD}score.",
    }
    score = "fc2.conv3.weight"

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        fine = shape_of(state, "reduce.conv.weight")[0]
        return {"name": "deeplab_v3plus", **self.aspp(state), "fine_channels": fine, "align": "stretch"}


def fitting_rates(rates: Sequence[int], branches: int) -> list[int]:
    """``rates``, if there is one for each branch. Raises ``UserError`` that asks for others."""
    if len(rates) != branches:
        raise UserError(f"{branches} dilated branches: add --set rates=[...] with the dilation of each")
    return list(rates)


def fitting_grid(grid: Sequence[int], blocks: int) -> list[int]:
    """``grid``, if there is a factor for each block. Raises ``UserError`` that asks for others."""
    if len(grid) != blocks:
        raise UserError(f"the last stage has {blocks} blocks: add --set multi_grid=[...] with a factor for each")
    return list(grid)
