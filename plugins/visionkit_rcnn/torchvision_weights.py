"""torchvision's Faster, Mask and Keypoint R-CNN (ResNets, FPN) as runs of ours, in both versions that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS_90, COCO_PERSONS
from visionkit.errors import UserError
from visionkit.model.importing import (
    anchor_keys,
    class_labels,
    count_in,
    numbers_in,
    rename,
    section,
    shape_of,
)
from visionkit.model.torchvision import (
    EVALUATE,
    DetectorImporter,
    backbone_names,
    backbone_section,
    levels_of,
    neck_section,
    published_batch_norms,
    without_counters,
)
from visionkit.types import LabelSet

ANCHORS = (((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0))
BOXES, MASKS, KEYPOINTS = "heads.boxes.", "heads.masks.", "heads.keypoints."
BOX_NAMES = {
    "rpn.head.conv.": f"{BOXES}rpn.conv.0.",  # before version 0.13
    "rpn.head.conv.#.0.": f"{BOXES}rpn.conv.#.",
    "rpn.head.cls_logits.": f"{BOXES}rpn.objectness.",
    "rpn.head.bbox_pred.": f"{BOXES}rpn.deltas.",
    "roi_heads.box_head.fc6.": f"{BOXES}branch.fc.0.",
    "roi_heads.box_head.fc7.": f"{BOXES}branch.fc.1.",
    "roi_heads.box_head.#.0.": f"{BOXES}branch.conv.#.conv.",
    "roi_heads.box_head.#.1.": f"{BOXES}branch.conv.#.norm.",
    "roi_heads.box_predictor.cls_score.": f"{BOXES}branch.classes.",
    "roi_heads.box_predictor.bbox_pred.": f"{BOXES}branch.deltas.",
}
MASK_NAMES = {
    "roi_heads.mask_head.#.0.": f"{MASKS}conv.#.conv.",
    "roi_heads.mask_head.#.1.": f"{MASKS}conv.#.norm.",
    "roi_heads.mask_predictor.conv5_mask.": f"{MASKS}upsample.",
    "roi_heads.mask_predictor.mask_fcn_logits.": f"{MASKS}logits.",
}
SCORES = "roi_heads.box_predictor.cls_score.weight"


class FasterRCNN(DetectorImporter):
    """``fasterrcnn_resnet50_fpn`` and its second version: boxes.

    Depth and width of the backbone, the levels of the pyramid, convolutions and classes are read from the tensors.

    Args:
        anchor_sizes: of each level, where they are not torchvision's.
        anchor_ratios: height / width of the anchors, likewise.
        norm_eps: of frozen batch norms; 0 for a model that was fine-tuned from torchvision's weights ``COCO_V1``. The
            published files themselves are recognized.
    """

    key = SCORES

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        heads = {"boxes": self.boxes(state)} | self.further(state)
        text = section(backbone=backbone_section(state), neck=neck_section(state, "pool"), heads=heads, **EVALUATE)
        return text, dict.fromkeys(heads, self.classes(state))

    def classes(self, state: Mapping[str, Tensor]) -> LabelSet:
        """Labels of all heads. Number 0 is the background."""
        return class_labels(shape_of(state, SCORES)[0] - 1, COCO_OBJECTS_90, first=1)

    def boxes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Section of the boxes."""
        numbers = levels_of(state)
        pool = [f"p{level}" for level in numbers]
        per_cell = shape_of(state, "rpn.head.cls_logits.weight")[0]
        keys: dict[str, Any] = {"name": "rcnn", "levels": [*pool, f"p{numbers[-1] + 1}"], "pool_levels": pool}
        keys |= anchor_keys(per_cell, len(numbers) + 1, self.anchor_sizes, self.anchor_ratios, ANCHORS)
        keys["rpn_convs"] = max(1, count_in(state, "rpn.head.conv.#.0."))
        if convs := _convs(state, "roi_heads.box_head."):
            keys |= {"convs": convs, "norm": "batch"}
        return keys | {"fcs": [shape_of(state, f"{name}weight")[0] for name in _fully_connected(state)]}

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Sections of further heads."""
        return {}

    names: ClassVar[Mapping[str, str]] = {}
    """Of further heads, beginnings of their names -> ours."""

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        linear = {name: f"{BOXES}branch.fc.{i}." for i, name in enumerate(_fully_connected(state))}
        normed = "backbone.fpn.inner_blocks.0.1.weight" in state
        ours = rename(
            state if normed else without_counters(state),
            {**backbone_names(state), **BOX_NAMES, **linear, **self.names},
        )
        eps = 0.0 if "rpn.head.conv.weight" in state else self.norm_eps
        return ours if normed else published_batch_norms(ours, eps)


class MaskRCNN(FasterRCNN):
    """``maskrcnn_resnet50_fpn`` and its second version: boxes and masks.

    Args:
        anchor_sizes: of each level, where they are not torchvision's.
        anchor_ratios: height / width of the anchors, likewise.
        norm_eps: of frozen batch norms; 0 for a model that was fine-tuned from torchvision's weights ``COCO_V1``. The
            published files themselves are recognized.
    """

    names = {**MASK_NAMES, **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"{MASKS}conv.{i}.conv." for i in range(16)}}

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        before = [f"mask_fcn{i}." for i in numbers_in(state, "roi_heads.mask_head.mask_fcn#.")]
        convs = [shape_of(state, f"roi_heads.mask_head.{name}weight")[0] for name in before]
        keys: dict[str, Any] = {"name": "roi_mask", "reads": {"regions": "boxes"}, **_pool(state)}
        keys["convs"] = convs or _convs(state, "roi_heads.mask_head.")
        keys["hidden"] = shape_of(state, "roi_heads.mask_predictor.conv5_mask.weight")[1]
        if "roi_heads.mask_head.0.1.weight" in state:
            keys["norm"] = "batch"
        return {"masks": keys}


class KeypointRCNN(FasterRCNN):
    """``keypointrcnn_resnet50_fpn``: boxes and keypoints.

    Args:
        anchor_sizes: of each level, where they are not torchvision's.
        anchor_ratios: height / width of the anchors, likewise.
        norm_eps: of frozen batch norms; 0 for a model that was fine-tuned from torchvision's weights ``COCO_V1``. The
            published files themselves are recognized.
    """

    names = {
        # A ReLU stands behind each convolution.
        **{f"roi_heads.keypoint_head.{2 * i}.": f"{KEYPOINTS}conv.{i}.conv." for i in range(32)},
        "roi_heads.keypoint_predictor.kps_score_lowres.": f"{KEYPOINTS}upsample.",
    }

    def classes(self, state: Mapping[str, Tensor]) -> LabelSet:
        keypoints = shape_of(state, "roi_heads.keypoint_predictor.kps_score_lowres.weight")[1]
        return class_labels(shape_of(state, SCORES)[0] - 1, COCO_PERSONS, first=1, keypoints=keypoints)

    def further(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        places = numbers_in(state, "roi_heads.keypoint_head.#.")
        convs = [shape_of(state, f"roi_heads.keypoint_head.{i}.weight")[0] for i in places]
        keys = {"name": "roi_keypoint", "reads": {"regions": "boxes"}, **_pool(state), "convs": convs}
        return {"keypoints": keys}


def _pool(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"levels": [f"p{level}" for level in levels_of(state)]}


def _convs(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Widths of convolutions in a row of blocks."""
    return [shape_of(state, f"{prefix}{i}.0.weight")[0] for i in numbers_in(state, f"{prefix}#.0.")]


def _fully_connected(state: Mapping[str, Tensor]) -> list[str]:
    """Beginnings of the names of the fully connected layers of the box branch."""
    prefix = "roi_heads.box_head."
    names = ["fc6", "fc7", *map(str, numbers_in(state, f"{prefix}#.weight"))]
    found = [f"{prefix}{name}." for name in names if any(key.startswith(f"{prefix}{name}.") for key in state)]
    if not found:
        raise UserError(f"no tensor begins with '{prefix}': there is no box branch")
    return found
