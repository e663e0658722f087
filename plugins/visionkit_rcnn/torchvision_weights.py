"""torchvision's Faster, Mask and Keypoint R-CNN (ResNet-50, FPN) as runs of ours, in both versions that it has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS_90, COCO_PERSONS
from visionkit.model.importing import Importer, rename
from visionkit.model.torchvision import EVALUATE, backbone_names, published_batch_norms, without_counters

PIPELINE = """
backbone: {name: timm, model: resnet50, frozen_bn: true}
neck: {name: fpn, channels: 256, extra: pool}
heads:
  boxes: {name: rcnn}
"""
MASKS = "  masks: {name: roi_mask, reads: {regions: boxes}}\n"
KEYPOINTS = "  keypoints: {name: roi_keypoint, reads: {regions: boxes}}\n"
# The second version has a normalisation after every convolution of pyramid and branches.
PIPELINE_V2 = """
backbone: {name: timm, model: resnet50}
neck: {name: fpn, channels: 256, extra: pool, norm: batch}
heads:
  boxes: {name: rcnn, rpn_convs: 2, convs: [256, 256, 256, 256], norm: batch, fcs: [1024]}
"""
MASKS_V2 = "  masks: {name: roi_mask, norm: batch, reads: {regions: boxes}}\n"

LAST = {
    "rpn.head.cls_logits.": "heads.boxes.rpn.objectness.",
    "rpn.head.bbox_pred.": "heads.boxes.rpn.deltas.",
    "roi_heads.box_predictor.cls_score.": "heads.boxes.branch.classes.",
    "roi_heads.box_predictor.bbox_pred.": "heads.boxes.branch.deltas.",
}
LAST_OF_MASKS = {
    "roi_heads.mask_predictor.conv5_mask.": "heads.masks.upsample.",
    "roi_heads.mask_predictor.mask_fcn_logits.": "heads.masks.logits.",
}
# Published files still have the names of torchvision before 0.13, which is the second one where there are two.
BOXES = {
    **backbone_names(),
    "rpn.head.conv.0.0.": "heads.boxes.rpn.conv.0.",
    "rpn.head.conv.": "heads.boxes.rpn.conv.0.",
    "roi_heads.box_head.fc6.": "heads.boxes.branch.fc.0.",
    "roi_heads.box_head.fc7.": "heads.boxes.branch.fc.1.",
    **LAST,
}


def blocks(names: Mapping[str, str]) -> dict[str, str]:
    """Names of the convolution and of the normalisation inside each of these blocks."""
    parts = {"0.": "conv.", "1.": "norm."}
    return {theirs + a: ours + b for theirs, ours in names.items() for a, b in parts.items()}


BOXES_V2 = {
    "backbone.body.": "backbone.body.",
    **blocks({f"backbone.fpn.inner_blocks.{i}.": f"neck.lateral.c{i + 2}." for i in range(4)}),
    **blocks({f"backbone.fpn.layer_blocks.{i}.": f"neck.output.p{i + 2}." for i in range(4)}),
    **{f"rpn.head.conv.{i}.0.": f"heads.boxes.rpn.conv.{i}." for i in range(2)},
    **blocks({f"roi_heads.box_head.{i}.": f"heads.boxes.branch.conv.{i}." for i in range(4)}),
    "roi_heads.box_head.5.": "heads.boxes.branch.fc.0.",
    **LAST,
}


class FasterRCNN(Importer):
    """``fasterrcnn_resnet50_fpn``: boxes of COCO's classes."""

    pipeline = PIPELINE + EVALUATE
    labels = {"boxes": COCO_OBJECTS_90}
    names: Mapping[str, str] = BOXES

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = rename(without_counters(state), self.names)
        return published_batch_norms(ours) if "rpn.head.conv.weight" in state else ours


class MaskRCNN(FasterRCNN):
    """``maskrcnn_resnet50_fpn``: boxes and masks of COCO's classes."""

    pipeline = PIPELINE + MASKS + EVALUATE
    labels = {"boxes": COCO_OBJECTS_90, "masks": COCO_OBJECTS_90}
    names = {
        **BOXES,
        **{f"roi_heads.mask_head.{i}.0.": f"heads.masks.conv.{i}.conv." for i in range(4)},
        **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"heads.masks.conv.{i}.conv." for i in range(4)},
        **LAST_OF_MASKS,
    }


class KeypointRCNN(FasterRCNN):
    """``keypointrcnn_resnet50_fpn``: boxes and 17 keypoints of persons."""

    pipeline = PIPELINE + KEYPOINTS + EVALUATE
    labels = {"boxes": COCO_PERSONS, "keypoints": COCO_PERSONS}
    names = {
        **BOXES,
        **{f"roi_heads.keypoint_head.{2 * i}.": f"heads.keypoints.conv.{i}.conv." for i in range(8)},
        "roi_heads.keypoint_predictor.kps_score_lowres.": "heads.keypoints.upsample.",
    }


class FasterRCNNV2(Importer):
    """``fasterrcnn_resnet50_fpn_v2``: boxes of COCO's classes, with batch norms that can be trained on."""

    pipeline = PIPELINE_V2 + EVALUATE
    labels = {"boxes": COCO_OBJECTS_90}
    names: Mapping[str, str] = BOXES_V2

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, self.names)


class MaskRCNNV2(FasterRCNNV2):
    """``maskrcnn_resnet50_fpn_v2``: boxes and masks of COCO's classes."""

    pipeline = PIPELINE_V2 + MASKS_V2 + EVALUATE
    labels = {"boxes": COCO_OBJECTS_90, "masks": COCO_OBJECTS_90}
    names = {
        **BOXES_V2,
        **blocks({f"roi_heads.mask_head.{i}.": f"heads.masks.conv.{i}." for i in range(4)}),
        **LAST_OF_MASKS,
    }
