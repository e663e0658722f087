"""torchvision's FCN and DeepLabv3 (ResNet-50 and -101 of stride 8) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, rename
from visionkit_semantic.voc import VOC

FCN = "fcn, levels: [c5], hidden: 512, enlarge: bilinear, auxiliary: c4"
DEEPLAB = "deeplab_v3, hidden: true, auxiliary: c4, auxiliary_weight: 0.5"
# Sums in torchvision's own order, and its size of images: what is found is then equal to the last bits.
PIPELINE = """
backbone: {{name: timm, model: {}, output_stride: 8}}
heads:
  semantic: {{name: {}}}
train: {{channels_last: false}}
evaluate:
  transforms: [{{name: resize, short: 520}}]
"""
HEAD = "heads.semantic."
SCORE = {"0.": "0.conv.", "1.": "0.norm.", "4.": "2."}
SHARED = {
    "backbone.": "backbone.body.",
    **{f"aux_classifier.{theirs}": f"{HEAD}auxiliary.{ours}" for theirs, ours in SCORE.items()},
}
ASPP = {
    **{f"classifier.0.convs.{i}.0.": f"{HEAD}aspp.branches.{i}.conv." for i in range(4)},
    **{f"classifier.0.convs.{i}.1.": f"{HEAD}aspp.branches.{i}.norm." for i in range(4)},
    "classifier.0.convs.4.1.": f"{HEAD}aspp.pool.conv.",
    "classifier.0.convs.4.2.": f"{HEAD}aspp.pool.norm.",
    "classifier.0.project.0.": f"{HEAD}aspp.project.conv.",
    "classifier.0.project.1.": f"{HEAD}aspp.project.norm.",
    "classifier.1.": f"{HEAD}hidden.conv.",
    "classifier.2.": f"{HEAD}hidden.norm.",
    "classifier.4.": f"{HEAD}score.",
}


class FCN50(Importer):
    """``fcn_resnet50``."""

    pipeline = PIPELINE.format("resnet50", FCN)
    labels = {"semantic": VOC}
    names: Mapping[str, str] = {
        **SHARED,
        **{f"classifier.{theirs}": f"{HEAD}score.0.{ours}" for theirs, ours in SCORE.items()},
    }

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, self.names)


class FCN101(FCN50):
    """``fcn_resnet101``."""

    pipeline = PIPELINE.format("resnet101", FCN)


class DeepLab50(FCN50):
    """``deeplabv3_resnet50``."""

    pipeline = PIPELINE.format("resnet50", DEEPLAB)
    names = {**SHARED, **ASPP}


class DeepLab101(DeepLab50):
    """``deeplabv3_resnet101``."""

    pipeline = PIPELINE.format("resnet101", DEEPLAB)
