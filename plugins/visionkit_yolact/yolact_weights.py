"""The published YOLACT (ResNet-50 or ResNet-101, 550 pixels) as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.model.importing import Importer, rename

PIPELINE = """
backbone: {{name: timm, model: {model}}}
neck: {{name: fpn, inputs: [c3, c4, c5], extra: conv_p5, upsample: bilinear, relu: outputs}}
heads:
  objects: {{name: yolact}}
train: {{channels_last: false, size_divisor: 1}}
evaluate:
  transforms:
    - {{name: normalize, mean: [0.48502, 0.457961, 0.407608], std: [0.22902, 0.224, 0.22502]}}
    - {{name: resize, size: 550, exact: true}}
"""

NAMES = {
    "backbone.conv1.": "backbone.body.conv1.",
    "backbone.bn1.": "backbone.body.bn1.",
    **{f"backbone.layers.{i}.": f"backbone.body.layer{i + 1}." for i in range(4)},
    **{f"fpn.lat_layers.{i}.": f"neck.lateral.c{5 - i}." for i in range(3)},  # coarsest first
    **{f"fpn.pred_layers.{i}.": f"neck.output.p{5 - i}." for i in range(3)},
    **{f"fpn.downsample_layers.{i}.": f"neck.extras.p{6 + i}." for i in range(2)},
    **{f"proto_net.{2 * i}.": f"heads.objects.protonet.conv.{i}." for i in range(3)},
    "proto_net.8.": "heads.objects.protonet.refine.",
    "proto_net.10.": "heads.objects.protonet.prototypes.",
    "prediction_layers.0.upfeature.0.": "heads.objects.branch.conv.",
    "prediction_layers.0.bbox_layer.": "heads.objects.branch.deltas.",
    "prediction_layers.0.conf_layer.": "heads.objects.branch.classes.",
    "prediction_layers.0.mask_layer.": "heads.objects.branch.coefficients.",
    "semantic_seg_conv.": "heads.objects.semantic.",
}


class YOLACTResNet101(Importer):
    """``yolact_base``: masks of COCO's 80 classes.

    Its images are 550 x 550 without padding, as in the published code: any would shift the grids of the pyramid
    against each other by a part of a cell.
    """

    pipeline = PIPELINE.format(model="resnet101")
    labels = {"objects": COCO_OBJECTS}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = rename({name: tensor for name, tensor in state.items() if not _left_over(name)}, NAMES)
        for name in [name for name in ours if name.endswith(".running_mean")]:
            # Files of PyTorch before 0.4.1 have no counters of batches.
            ours.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
        return ours


class YOLACTResNet50(YOLACTResNet101):
    """``yolact_resnet50``: masks of COCO's 80 classes."""

    pipeline = PIPELINE.format(model="resnet50")


def _left_over(name: str) -> bool:
    """What some published files hold and no model of theirs uses: the backbone a second time, levels beyond P7."""
    parts = name.split(".")
    if name.startswith("fpn.downsample_layers.") and parts[2].isdigit():
        return int(parts[2]) > 1
    return parts[0] == "backbone" and parts[1].startswith("layer") and parts[1] != "layers"
