"""detectron2's Faster, Mask and Keypoint R-CNN (ResNet, FPN) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_PANOPTIC, COCO_PERSONS, COCO_STUFF
from visionkit.model.detectron2 import BACKBONE, backbone_names, background_first, convert_backbone, trained
from visionkit.model.importing import Importer, rename

NECK = "neck: {name: fpn, channels: 256, extra: pool}\n"
BOXES = """heads:
  boxes:
    name: rcnn
    exact_anchors: true
    aligned: true
    sampling_ratio: 0
    background: false
    rpn_beta: 0.0
    beta: 0.0
    rpn_after_nms_train: 1000
"""
PERSON_BOXES = BOXES.replace("    beta: 0.0", "    beta: 0.5").replace("1000", "1500")
MASKS = """  masks:
    name: roi_mask
    reads: {regions: boxes}
    aligned: true
    sampling_ratio: 0
    background: false
    exact_paste: true
"""
KEYPOINTS = """  keypoints:
    name: roi_keypoint
    reads: {regions: boxes}
    aligned: true
    sampling_ratio: 0
    scores: softmax
"""
SEMANTIC = """  semantic: {name: semantic_fpn}
  panoptic: {name: panoptic_fusion}
"""
EVALUATE = """evaluate:
  transforms: [{name: resize, short: 800, long: 1333}]
"""

BOX_NAMES = {
    "proposal_generator.rpn_head.conv.": "heads.boxes.rpn.conv.0.",
    "proposal_generator.rpn_head.objectness_logits.": "heads.boxes.rpn.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "heads.boxes.rpn.deltas.",
    "roi_heads.box_head.fc1.": "heads.boxes.branch.fc.0.",
    "roi_heads.box_head.fc2.": "heads.boxes.branch.fc.1.",
    "roi_heads.box_predictor.cls_score.": "heads.boxes.branch.classes.",
    "roi_heads.box_predictor.bbox_pred.": "heads.boxes.branch.deltas.",
}
MASK_NAMES = {
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"heads.masks.conv.{i}.conv." for i in range(4)},
    "roi_heads.mask_head.deconv.": "heads.masks.upsample.",
    "roi_heads.mask_head.predictor.": "heads.masks.logits.",
}
KEYPOINT_NAMES = {
    **{f"roi_heads.keypoint_head.conv_fcn{i + 1}.": f"heads.keypoints.conv.{i}.conv." for i in range(8)},
    "roi_heads.keypoint_head.score_lowres.": "heads.keypoints.upsample.",
}
# Between their convolutions of one level stand upsamplings without weights, at the odd places.
SEMANTIC_NAMES = {
    **{
        f"sem_seg_head.p{level}.{2 * i}.{theirs}": f"heads.semantic.branches.p{level}.{i}.{ours}"
        for level in range(2, 6)
        for i in range(max(1, level - 2))
        for theirs, ours in (("", "conv."), ("norm.", "norm."))
    },
    "sem_seg_head.predictor.": "heads.semantic.score.",
}


def convert_rcnn(state: Mapping[str, Tensor], depth: int, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A model of theirs under our names: ResNet, pyramid, proposals and boxes, and whatever else ``names`` renames.

    Args:
        state: as it was read.
        depth: of the ResNet, 50 or 101.
        names: of further parts, beginnings of their names -> ours.
    """
    ours = rename(trained(state), {**backbone_names(depth), **BOX_NAMES, **names})
    classes = "heads.boxes.branch.classes."
    return {k: background_first(v) if k.startswith(classes) else v for k, v in convert_backbone(ours).items()}


class FasterRCNN(Importer):
    """``faster_rcnn_R_50_FPN``: boxes of the 80 classes of COCO."""

    depth = 50
    pipeline = BACKBONE.format(depth=50) + NECK + BOXES + EVALUATE
    labels = {"boxes": COCO_OBJECTS}
    names: Mapping[str, str] = {}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return convert_rcnn(state, self.depth, self.names)


class FasterRCNN101(FasterRCNN):
    """``faster_rcnn_R_101_FPN``."""

    depth = 101
    pipeline = BACKBONE.format(depth=101) + NECK + BOXES + EVALUATE


class MaskRCNN(FasterRCNN):
    """``mask_rcnn_R_50_FPN``: boxes and masks of the 80 classes of COCO."""

    pipeline = BACKBONE.format(depth=50) + NECK + BOXES + MASKS + EVALUATE
    labels = {"boxes": COCO_OBJECTS, "masks": COCO_OBJECTS}
    names = MASK_NAMES


class MaskRCNN101(FasterRCNN):
    """``mask_rcnn_R_101_FPN``."""

    depth = 101
    pipeline = BACKBONE.format(depth=101) + NECK + BOXES + MASKS + EVALUATE
    labels = {"boxes": COCO_OBJECTS, "masks": COCO_OBJECTS}
    names = MASK_NAMES


class KeypointRCNN(FasterRCNN):
    """``keypoint_rcnn_R_50_FPN``: boxes and 17 keypoints of persons."""

    pipeline = BACKBONE.format(depth=50) + NECK + PERSON_BOXES + KEYPOINTS + EVALUATE
    labels = {"boxes": COCO_PERSONS, "keypoints": COCO_PERSONS}
    names = KEYPOINT_NAMES


class KeypointRCNN101(FasterRCNN):
    """``keypoint_rcnn_R_101_FPN``."""

    depth = 101
    pipeline = BACKBONE.format(depth=101) + NECK + PERSON_BOXES + KEYPOINTS + EVALUATE
    labels = {"boxes": COCO_PERSONS, "keypoints": COCO_PERSONS}
    names = KEYPOINT_NAMES


class PanopticFPN(FasterRCNN):
    """``panoptic_fpn_R_50``: boxes, masks, a semantic branch with one class for all things, and their merge."""

    pipeline = BACKBONE.format(depth=50) + NECK + BOXES + MASKS + SEMANTIC + EVALUATE
    labels = {"boxes": COCO_OBJECTS, "masks": COCO_OBJECTS, "semantic": COCO_STUFF, "panoptic": COCO_PANOPTIC}
    names = {**MASK_NAMES, **SEMANTIC_NAMES}


class PanopticFPN101(PanopticFPN):
    """``panoptic_fpn_R_101``."""

    depth = 101
    pipeline = BACKBONE.format(depth=101) + NECK + BOXES + MASKS + SEMANTIC + EVALUATE
