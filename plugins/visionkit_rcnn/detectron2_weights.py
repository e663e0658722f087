"""detectron2's Faster, Mask and Keypoint R-CNN (ResNet, FPN) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_PANOPTIC, COCO_PERSONS, COCO_STUFF
from visionkit.model.detectron2 import (
    EVALUATE,
    backbone_names,
    backbone_section,
    background_first,
    convert_backbone,
    levels_of,
    neck_section,
    ratios_first,
    trained,
)
from visionkit.model.importing import Importer, anchor_keys, class_labels, numbers_in, rename, section, shape_of
from visionkit.numbers import AnchorSizes, Factors
from visionkit.types import LabelSet

ANCHORS = (((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0))
BOXES: Mapping[str, Any] = {
    "name": "rcnn",
    "exact_anchors": True,
    "aligned": True,
    "sampling_ratio": 0,
    "background": False,
    "rpn_beta": 0.0,
    "beta": 0.0,
    "rpn_after_nms_train": 1000,
}
POOL: Mapping[str, Any] = {"reads": {"regions": "boxes"}, "aligned": True, "sampling_ratio": 0}
SCORES, SHIFTS = "roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"

BOX_NAMES = {
    "proposal_generator.rpn_head.conv.": "heads.boxes.rpn.conv.0.",
    "proposal_generator.rpn_head.objectness_logits.": "heads.boxes.rpn.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "heads.boxes.rpn.deltas.",
    **{f"roi_heads.box_head.fc{i + 1}.": f"heads.boxes.branch.fc.{i}." for i in range(8)},
    **{f"roi_heads.box_head.conv{i + 1}.": f"heads.boxes.branch.conv.{i}.conv." for i in range(16)},
    "roi_heads.box_predictor.cls_score.": "heads.boxes.branch.classes.",
    "roi_heads.box_predictor.bbox_pred.": "heads.boxes.branch.deltas.",
}
MASK_NAMES = {
    **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"heads.masks.conv.{i}.conv." for i in range(16)},
    "roi_heads.mask_head.deconv.": "heads.masks.upsample.",
    "roi_heads.mask_head.predictor.": "heads.masks.logits.",
}
KEYPOINT_NAMES = {
    **{f"roi_heads.keypoint_head.conv_fcn{i + 1}.": f"heads.keypoints.conv.{i}.conv." for i in range(32)},
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


class FasterRCNN(Importer):
    """``faster_rcnn_R_50_FPN`` and deeper ones: boxes.

    Depth and width of the backbone, levels, layers of the branches and classes are read from the tensors.

    Args:
        anchor_sizes: of each level, where they are not those of the model zoo.
        anchor_ratios: height / width of the anchors, likewise.
    """

    key = SCORES
    names: ClassVar[Mapping[str, str]] = {}
    """Of further heads, beginnings of their names -> ours."""

    def __init__(self, *, anchor_sizes: AnchorSizes | None = None, anchor_ratios: Factors | None = None) -> None:
        self.anchor_sizes, self.anchor_ratios = anchor_sizes, anchor_ratios

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        heads = {"boxes": {**BOXES, **self.boxes(state)}} | self.further(state)
        text = section(backbone=backbone_section(state), neck=neck_section(state, "pool"), heads=heads, **EVALUATE)
        return text, self.labels_of(state, heads)

    def labels_of(self, state: Mapping[str, Tensor], heads: Mapping[str, Any]) -> Mapping[str, LabelSet]:
        """Labels of the heads."""
        return dict.fromkeys(heads, class_labels(self.classes(state), COCO_OBJECTS))

    def classes(self, state: Mapping[str, Tensor]) -> int:
        """How many there are; the last score is that of the background."""
        return shape_of(state, SCORES)[0] - 1

    def boxes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Keys of the boxes that differ between models."""
        numbers = levels_of(state)
        pool = [f"p{level}" for level in numbers]
        keys: dict[str, Any] = {"levels": [*pool, f"p{numbers[-1] + 1}"], "pool_levels": pool}
        keys |= anchor_keys(self._anchors(state), len(numbers) + 1, self.anchor_sizes, self.anchor_ratios, ANCHORS)
        if convs := _widths(state, "roi_heads.box_head.conv"):
            keys["convs"] = convs
        keys["fcs"] = _widths(state, "roi_heads.box_head.fc")
        if shape_of(state, SHIFTS)[0] == 4 and self.classes(state) > 1:
            keys["class_agnostic"] = True
        return keys

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Sections of further heads."""
        return {}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = rename(trained(state), {**backbone_names(), **BOX_NAMES, **self.names})
        classes = "heads.boxes.branch.classes."
        proposals = ("heads.boxes.rpn.objectness.", "heads.boxes.rpn.deltas.")
        ratios = len(self.anchor_ratios or ANCHORS[1])
        per_cell = self._anchors(state)
        new = {}
        for name, tensor in convert_backbone(ours).items():
            if name.startswith(classes):
                tensor = background_first(tensor)
            elif name.startswith(proposals) and per_cell % ratios == 0:
                tensor = ratios_first(tensor, per_cell // ratios, ratios)
            new[name] = tensor
        return new

    def _anchors(self, state: Mapping[str, Tensor]) -> int:
        return shape_of(state, "proposal_generator.rpn_head.objectness_logits.weight")[0]


class MaskRCNN(FasterRCNN):
    """``mask_rcnn_R_50_FPN`` and deeper ones: boxes and masks.

    Args:
        anchor_sizes: of each level, where they are not those of the model zoo.
        anchor_ratios: height / width of the anchors, likewise.
    """

    names = MASK_NAMES

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        keys = {"name": "roi_mask", **POOL, "background": False, "exact_paste": True, **_levels(state)}
        keys["convs"] = _widths(state, "roi_heads.mask_head.mask_fcn")
        keys["hidden"] = shape_of(state, "roi_heads.mask_head.deconv.weight")[1]
        if shape_of(state, "roi_heads.mask_head.predictor.weight")[0] == 1 and self.classes(state) > 1:
            keys["class_agnostic"] = True
        return {"masks": keys}


class KeypointRCNN(FasterRCNN):
    """``keypoint_rcnn_R_50_FPN`` and deeper ones: boxes and keypoints.

    Args:
        anchor_sizes: of each level, where they are not those of the model zoo.
        anchor_ratios: height / width of the anchors, likewise.
    """

    names = KEYPOINT_NAMES

    def labels_of(self, state: Mapping[str, Tensor], heads: Mapping[str, Any]) -> Mapping[str, LabelSet]:
        keypoints = shape_of(state, "roi_heads.keypoint_head.score_lowres.weight")[1]
        return dict.fromkeys(heads, class_labels(self.classes(state), COCO_PERSONS, keypoints=keypoints))

    def boxes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().boxes(state) | {"beta": 0.5, "rpn_after_nms_train": 1500}

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        convs = _widths(state, "roi_heads.keypoint_head.conv_fcn")
        return {"keypoints": {"name": "roi_keypoint", **POOL, **_levels(state), "convs": convs, "scores": "softmax"}}


class PanopticFPN(MaskRCNN):
    """``panoptic_fpn_R_50`` and deeper ones: boxes, masks, a semantic branch with one class for all things, and their
    merge.

    Args:
        anchor_sizes: of each level, where they are not those of the model zoo.
        anchor_ratios: height / width of the anchors, likewise.
    """

    names = {**MASK_NAMES, **SEMANTIC_NAMES}

    def labels_of(self, state: Mapping[str, Tensor], heads: Mapping[str, Any]) -> Mapping[str, LabelSet]:
        things = self.classes(state)
        stuff = shape_of(state, "sem_seg_head.predictor.weight")[0] - 1
        if (things, stuff) == (len(COCO_OBJECTS), len(COCO_STUFF) - 1):
            semantic, panoptic = COCO_STUFF, COCO_PANOPTIC
        else:
            names = tuple(f"class {i}" for i in range(things)), tuple(f"stuff {i}" for i in range(1, stuff + 1))
            semantic = LabelSet(("things", *names[1]), ids=tuple(range(stuff + 1)), things=(False,) * (stuff + 1))
            panoptic = LabelSet(names[0] + names[1], things=(True,) * things + (False,) * stuff)
        boxes = class_labels(things, COCO_OBJECTS)
        return {"boxes": boxes, "masks": boxes, "semantic": semantic, "panoptic": panoptic}

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        channels = shape_of(state, "sem_seg_head.predictor.weight")[1]
        semantic = {"name": "semantic_fpn", **_levels(state), "channels": channels}
        return super().further(state) | {"semantic": semantic, "panoptic": {"name": "panoptic_fusion"}}


def _levels(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"levels": [f"p{level}" for level in levels_of(state)]}


def _widths(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Widths of numbered layers."""
    return [shape_of(state, f"{prefix}{i}.weight")[0] for i in numbers_in(state, f"{prefix}#.")]
