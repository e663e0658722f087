"""DeepLabv3+ of jfzhang95/pytorch-deeplab-xception, with ResNet-101 and aligned Xception-65, as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, rename
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


def _xception() -> dict[str, str]:
    names = {
        "conv1.": "stem.0.conv.", "bn1.": "stem.0.norm.", "conv2.": "stem.1.conv.", "bn2.": "stem.1.norm.",
    }  # fmt: skip
    for block in range(20):
        names[f"block{block + 1}.skip."] = f"blocks.{block}.shortcut.conv."
        names[f"block{block + 1}.skipbn."] = f"blocks.{block}.shortcut.norm."
        for conv in range(3):
            at = 3 * conv + (block > 1)  # their first two blocks start without a ReLU
            names |= _separable(f"block{block + 1}.rep.{at}.", f"blocks.{block}.convs.{conv}.")
            names[f"block{block + 1}.rep.{at + 1}."] = f"blocks.{block}.convs.{conv}.norm."
    for conv in range(3):
        names |= _separable(f"conv{conv + 3}.", f"exit.{conv}.")
        names[f"bn{conv + 3}."] = f"exit.{conv}.norm."
    return names


def _separable(theirs: str, ours: str) -> dict[str, str]:
    parts = {"conv1.": "depthwise.", "bn.": "between.0.", "pointwise.": "pointwise."}
    return {theirs + a: ours + b for a, b in parts.items()}


PIPELINE = """
backbone: {{name: {}}}
heads:
  semantic: {{name: deeplab_v3plus, align: corners, dropout: [0.5, 0.3]}}
train: {{channels_last: false}}
"""


class ResNet101(Importer):
    """``DeepLab(backbone="resnet", output_stride=16)``."""

    pipeline = PIPELINE.format("dilated_resnet, model: resnet101, output_stride: 16, multi_grid: [1, 2, 4]")
    labels = {"semantic": VOC}
    names: Mapping[str, str] = {
        "backbone.": "backbone.resnet.body.",
        **{theirs: f"heads.semantic.{ours}" for theirs, ours in HEAD.items()},
    }

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, self.names)


class Xception65(ResNet101):
    """``DeepLab(backbone="xception", output_stride=16)``."""

    pipeline = PIPELINE.format("aligned_xception, fine: block1, activated_shortcut: true, exit_act: false")
    names = {
        **{f"backbone.{theirs}": f"backbone.{ours}" for theirs, ours in _xception().items()},
        **{theirs: f"heads.semantic.{ours}" for theirs, ours in HEAD.items()},
    }
