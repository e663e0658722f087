"""DeepLabv2, v3 and v3+ (ResNet-101) of kazuto1011/deeplab-pytorch as runs of ours.

Their pixels are blue, green, red in 0 ... 255 less Caffe's mean; the first convolution is turned to red, green, blue.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, rename
from visionkit_semantic.voc import VOC

_BLOCKS = {"layer2": 3, "layer3": 4, "layer4": 23, "layer5": 3}
_CONVS = {
    "reduce": ("conv1", "bn1"),
    "conv3x3": ("conv2", "bn2"),
    "increase": ("conv3", "bn3"),
    "shortcut": ("downsample.0", "downsample.1"),
}


def _backbone() -> dict[str, str]:
    body = "backbone.resnet.body."
    names = {"layer1.conv1.conv.": f"{body}conv1.", "layer1.conv1.bn.": f"{body}bn1."}
    for i, (stage, blocks) in enumerate(_BLOCKS.items()):
        for block in range(blocks):
            for conv, parts in _CONVS.items():
                for theirs, ours in zip(("conv", "bn"), parts):
                    names[f"{stage}.block{block + 1}.{conv}.{theirs}."] = f"{body}layer{i + 1}.{block}.{ours}."
    return names


def _pair(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv.": f"heads.semantic.{ours}.conv.", f"{theirs}.bn.": f"heads.semantic.{ours}.norm."}


BACKBONE = _backbone()
ASPP = {
    **{k: v for i in range(4) for k, v in _pair(f"aspp.stages.c{i}", f"aspp.branches.{i}").items()},
    **_pair("aspp.stages.imagepool.conv", "aspp.pool"),
    **_pair("fc1", "aspp.project"),
}
RESNET = "backbone: {{name: dilated_resnet, model: resnet101, stride_in_1x1: true, pixels: caffe, {}}}\n"
EVALUATE = "train: {channels_last: false}\n"


class DeepLabV2(Importer):
    """``DeepLabV2_ResNet101_MSC`` without its scales: summed dilations on stride 8."""

    pipeline = RESNET.format("output_stride: 8") + "heads:\n  semantic: {name: deeplab_v2}\n" + EVALUATE
    labels = {"semantic": VOC}
    names: Mapping[str, str] = {
        **BACKBONE,
        **{f"aspp.c{i}.": f"heads.semantic.aspp.branches.{i}." for i in range(4)},
    }

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # With their multi-scale wrapper around it every name begins so.
        ours = rename({name.removeprefix("base."): tensor for name, tensor in state.items()}, self.names)
        stem = "backbone.resnet.body.conv1.weight"
        return {name: tensor.flip(1) if name == stem else tensor for name, tensor in ours.items()}


class DeepLabV3(DeepLabV2):
    """``DeepLabV3_ResNet101_MSC`` without its scales, at output stride 16."""

    pipeline = (
        RESNET.format("output_stride: 16, multi_grid: [1, 2, 4]")
        + "heads:\n  semantic: {name: deeplab_v3}\n"
        + EVALUATE
    )
    names = {**BACKBONE, **ASPP, "fc2.": "heads.semantic.score."}


class DeepLabV3Plus(DeepLabV2):
    """``DeepLabV3Plus_ResNet101_MSC`` without its scales, at output stride 16."""

    pipeline = (
        RESNET.format("output_stride: 16, multi_grid: [1, 2, 4]")
        + "heads:\n  semantic: {name: deeplab_v3plus, align: stretch}\n"
        + EVALUATE
    )
    names = {
        **BACKBONE,
        **ASPP,
        **_pair("reduce", "reduce"),
        **_pair("fc2.conv1", "decoder.0"),
        **_pair("fc2.conv2", "decoder.2"),
        "fc2.conv3.": "heads.semantic.score.",
    }
