"""DeepLabv3+ of jfzhang95/pytorch-deeplab-xception, with a ResNet or aligned Xception, as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from visionkit.model.importing import Importer, class_labels, count_in, given, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet
from visionkit_semantic.deeplab_pytorch_weights import fitting_grid
from visionkit_semantic.voc import VOC

HEAD = {
    **{f"aspp.aspp{i + 1}.atrous_conv.": f"aspp.branches.{i}.conv." for i in range(4)},
    **{f"aspp.aspp{i + 1}.bn.": f"aspp.branches.{i}.norm." for i in range(4)},
    "aspp.global_avg_pool.1.": "aspp.pool.conv.",
    "aspp.global_avg_pool.2.": "aspp.pool.norm.",
    "aspp.conv1.": "aspp.project.conv.",
    "aspp.bn1.": "aspp.project.norm.",
    "decoder.conv1.": "reduce.conv.",
    "decoder.bn1.": "reduce.norm.",
    "decoder.last_conv.0.": "decoder.0.conv.",
    "decoder.last_conv.1.": "decoder.0.norm.",
    "decoder.last_conv.4.": "decoder.2.conv.",
    "decoder.last_conv.5.": "decoder.2.norm.",
    "decoder.last_conv.8.": "score.",
}
HEAD = {theirs: f"heads.semantic.{ours}" for theirs, ours in HEAD.items()}


def _xception(blocks: int) -> dict[str, str]:
    names = {
        "conv1.": "stem.0.conv.", "bn1.": "stem.0.norm.", "conv2.": "stem.1.conv.", "bn2.": "stem.1.norm.",
    }  # fmt: skip
    for block in range(blocks):
        names[f"block{block + 1}.skip."] = f"blocks.{block}.shortcut.conv."
        names[f"block{block + 1}.skipbn."] = f"blocks.{block}.shortcut.norm."
        for conv in range(3):
            at = 3 * conv + (block > 1)  # their first two blocks start without a ReLU
            names |= _separable(f"block{block + 1}.rep.{at}.", f"blocks.{block}.convs.{conv}.")
            names[f"block{block + 1}.rep.{at + 1}."] = f"blocks.{block}.convs.{conv}.norm."
    for conv in range(3):
        names |= _separable(f"conv{conv + 3}.", f"exit.{conv}.")
        names[f"bn{conv + 3}."] = f"exit.{conv}.norm."
    return {f"backbone.{theirs}": f"backbone.{ours}" for theirs, ours in names.items()}


def _separable(theirs: str, ours: str) -> dict[str, str]:
    parts = {"conv1.": "depthwise.", "bn.": "between.0.", "pointwise.": "pointwise."}
    return {theirs + a: ours + b for a, b in parts.items()}


class ResNet(Importer):
    """``DeepLab(backbone="resnet")``.

    Args:
        output_stride: 8 or 16; it cannot be determined from the weights.
    """

    key = "decoder.last_conv.8.weight"

    def __init__(self, *, output_stride: Literal[8, 16] | None = None) -> None:
        self.output_stride = output_stride

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        stride = given(self.output_stride, "output_stride", "8 or 16")
        channels, fine = shape_of(state, "aspp.conv1.weight")[0], shape_of(state, "decoder.conv1.weight")[0]
        text = section(
            backbone={**self.backbone(state), "output_stride": stride},
            heads={
                "semantic": {
                    "name": "deeplab_v3plus",
                    "channels": channels,
                    "fine_channels": fine,
                    "align": "corners",
                    "dropout": [0.5, 0.3],
                }
            },
            train={"channels_last": False},
        )
        return text, {"semantic": class_labels(shape_of(state, self.key)[0], VOC)}

    def backbone(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Its section without the output stride."""
        resnet = resnet_section(state, [f"backbone.layer{i}." for i in range(1, 5)])
        grid = fitting_grid((1, 2, 4), count_in(state, "backbone.layer4.#."))
        return {"name": "dilated_resnet", **resnet, "multi_grid": grid}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, {"backbone.": "backbone.resnet.body.", **HEAD})


class Xception(ResNet):
    """``DeepLab(backbone="xception")``, of any number of blocks in the middle.

    Args:
        output_stride: 8 or 16; it cannot be determined from the weights.
    """

    def backbone(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        middle = count_in(state, "backbone.block#.") - 4
        options = {"fine": "block1", "activated_shortcut": True, "exit_act": False}
        return {"name": "aligned_xception", "middle": middle, **options}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, {**_xception(count_in(state, "backbone.block#.")), **HEAD})
