"""RetinaNet of torchvision and of detectron2 (ResNet, FPN) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_OBJECTS_90
from visionkit.model import detectron2, torchvision
from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet

# Each octave in whole pixels, cut off.
TORCHVISION = """
heads:
  boxes:
    name: retinanet
    anchor_sizes: [[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]]
    exact_anchors: false
    per_image: true
    detections: 300
"""
# Sigmoids have no background, yet the weights have a place for it, which nothing was ever learnt for.
COCO_OBJECTS_91 = LabelSet(("unused 0", *COCO_OBJECTS_90.names), ids=(0, *COCO_OBJECTS_90.ids))

TOWERS = {
    "head.classification_head.conv.": "heads.boxes.class_tower.conv.",
    "head.regression_head.conv.": "heads.boxes.box_tower.conv.",
}
LAST = {
    "head.classification_head.cls_logits.": "heads.boxes.classes.",
    "head.regression_head.bbox_reg.": "heads.boxes.deltas.",
}
BEFORE_0_13 = "head.classification_head.conv.6.weight"


def tower_names(convolution: str, step: int = 1, norm: str | None = None) -> dict[str, str]:
    """Names of four convolutions a tower, the first at 0 and each ``step`` after the one before."""
    names = {}
    for theirs, ours in TOWERS.items():
        for i in range(4):
            names[f"{theirs}{i * step}.{convolution}"] = f"{ours}{i}.conv."
            if norm is not None:
                names[f"{theirs}{i * step}.{norm}"] = f"{ours}{i}.norm."
    return names


class RetinaNetV1(Importer):
    """``retinanet_resnet50_fpn``: boxes of COCO's classes."""

    pipeline = """
backbone: {name: timm, model: resnet50, frozen_bn: true}
neck: {name: fpn, inputs: [c3, c4, c5], extra: conv_p5}
""" + TORCHVISION + torchvision.EVALUATE  # fmt: skip
    labels = {"boxes": COCO_OBJECTS_91}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        published = BEFORE_0_13 in state
        towers = tower_names("", step=2) if published else tower_names("0.")
        names = {**torchvision.backbone_names((3, 4, 5)), **towers, **LAST}
        ours = rename(torchvision.without_counters(state), names)
        return torchvision.published_batch_norms(ours) if published else ours


class RetinaNetV2(Importer):
    """``retinanet_resnet50_fpn_v2``: boxes of COCO's classes; group norm in the towers, P6 from C5."""

    pipeline = """
backbone: {name: timm, model: resnet50}
neck: {name: fpn, inputs: [c3, c4, c5], extra: conv_c5}
""" + TORCHVISION + "    norm: group\n    box_loss: giou\n" + torchvision.EVALUATE  # fmt: skip
    labels = {"boxes": COCO_OBJECTS_91}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, {**torchvision.backbone_names((3, 4, 5)), **tower_names("0.", norm="1."), **LAST})


class Detectron2RetinaNet(Importer):
    """``COCO-Detection/retinanet_R_50_FPN_3x`` (or ``1x``): boxes of the 80 classes of COCO."""

    depth = 50
    pipeline = detectron2.BACKBONE.format(depth=50) + """
neck: {name: fpn, inputs: [c3, c4, c5], extra: conv_c5}
heads:
  boxes: {name: retinanet, clip_first: false}
evaluate:
  transforms: [{name: resize, short: 800, long: 1333}]
"""  # fmt: skip
    labels = {"boxes": COCO_OBJECTS}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {**detectron2.backbone_names(self.depth, (3, 4, 5)), "backbone.top_block.": "neck.extras."}
        for tower, ours in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower")):
            names |= {f"head.{tower}.{2 * i}.": f"heads.boxes.{ours}.conv.{i}.conv." for i in range(4)}
        names |= {"head.cls_score.": "heads.boxes.classes.", "head.bbox_pred.": "heads.boxes.deltas."}
        new = detectron2.convert_backbone(rename(detectron2.trained(state), names))
        last = ("heads.boxes.classes.", "heads.boxes.deltas.")
        return {name: ratios_first(tensor) if name.startswith(last) else tensor for name, tensor in new.items()}


class Detectron2RetinaNet101(Detectron2RetinaNet):
    """``COCO-Detection/retinanet_R_101_FPN_3x``: the same on a deeper backbone."""

    depth = 101
    pipeline = Detectron2RetinaNet.pipeline.replace("resnet50", "resnet101")


def ratios_first(last: Tensor, sizes: int = 3, ratios: int = 3) -> Tensor:
    """Weights or biases of the last layer: theirs count the anchors of a cell size by size, ours ratio by ratio."""
    return last.unflatten(0, (sizes, ratios, -1)).transpose(0, 1).flatten(0, 2)
