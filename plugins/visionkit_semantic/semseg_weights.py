"""PSPNet of hszhao/semseg (ResNet-50, deep stem) as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, rename
from visionkit_semantic.voc import VOC

BODY = "backbone.resnet.body."
HEAD = "heads.semantic."
STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}
BRANCH = {"0": "0.conv", "1": "0.norm", "4": "2"}


class PSPNet50(Importer):
    """``PSPNet(layers=50, classes=21, zoom_factor=8)``, for sides of 8 n + 1 pixels."""

    pipeline = """
backbone:
  {name: dilated_resnet, model: resnet50, output_stride: 8, options: {stem_width: 64, stem_type: deep}}
heads:
  semantic: {name: pspnet, align: corners}
train: {channels_last: false}
"""
    labels = {"semantic": VOC}
    names: Mapping[str, str] = {
        **{f"layer0.{theirs}.": f"{BODY}{ours}." for theirs, ours in STEM.items()},
        **{f"layer{i}.": f"{BODY}layer{i}." for i in range(1, 5)},
        **{f"ppm.features.{i}.1.": f"{HEAD}pool.branches.{i}.conv." for i in range(4)},
        **{f"ppm.features.{i}.2.": f"{HEAD}pool.branches.{i}.norm." for i in range(4)},
        **{f"cls.{theirs}.": f"{HEAD}branch.{ours}." for theirs, ours in BRANCH.items()},
        **{f"aux.{theirs}.": f"{HEAD}auxiliary.{ours}." for theirs, ours in BRANCH.items()},
    }

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Saved from a model in several processes, every name begins with "module.".
        return rename({name.removeprefix("module."): tensor for name, tensor in state.items()}, self.names)
