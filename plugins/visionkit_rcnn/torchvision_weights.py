"""torchvision's Faster, Mask and Keypoint R-CNN (ResNet-50, FPN) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet

PIPELINE = """
backbone: {name: timm, model: resnet50, frozen_bn: true}
neck: {name: fpn, channels: 256, extra: pool}
heads:
  boxes: {name: rcnn}
"""
MASKS = "  masks: {name: roi_mask, reads: {regions: boxes}}\n"
KEYPOINTS = "  keypoints: {name: roi_keypoint, reads: {regions: boxes}}\n"
# Pixels and sums in torchvision's own order: what is found is then equal to the last bits.
EVALUATE = """
train: {channels_last: false}
evaluate:
  transforms: [normalize, {name: resize, short: 800, long: 1333, exact: true}]
"""

# COCO's classes in the order of their ids, 1 ... 90; ten ids were never used, yet the weights have a place for them.
COCO = (
    "person/bicycle/car/motorcycle/airplane/bus/train/truck/boat/traffic light/fire hydrant//stop sign/parking meter/"
    "bench/bird/cat/dog/horse/sheep/cow/elephant/bear/zebra/giraffe//backpack/umbrella///handbag/tie/suitcase/"
    "frisbee/skis/snowboard/sports ball/kite/baseball bat/baseball glove/skateboard/surfboard/tennis racket/bottle//"
    "wine glass/cup/fork/knife/spoon/bowl/banana/apple/sandwich/orange/broccoli/carrot/hot dog/pizza/donut/cake/"
    "chair/couch/potted plant/bed//dining table///toilet//tv/laptop/mouse/remote/keyboard/cell phone/microwave/oven/"
    "toaster/sink/refrigerator//book/clock/vase/scissors/teddy bear/hair drier/toothbrush"
)
OBJECTS = LabelSet(tuple(name or f"unused {i}" for i, name in enumerate(COCO.split("/"), start=1)))

SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
PERSONS = LabelSet(
    ("person",),
    keypoints=("nose", *(f"{side}_{part}" for part in SIDED for side in ("left", "right"))),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    swaps=tuple((i, i + 1) for i in range(1, 17, 2)),
)  # fmt: skip

# Published files still have the names of torchvision before 0.13, which is the second one where there are two.
BOXES = {
    "backbone.body.": "backbone.body.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"neck.lateral.c{i + 2}." for i in range(4)},
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.lateral.c{i + 2}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"neck.output.p{i + 2}." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.output.p{i + 2}." for i in range(4)},
    "rpn.head.conv.0.0.": "heads.boxes.rpn.conv.0.",
    "rpn.head.conv.": "heads.boxes.rpn.conv.0.",
    "rpn.head.cls_logits.": "heads.boxes.rpn.objectness.",
    "rpn.head.bbox_pred.": "heads.boxes.rpn.deltas.",
    "roi_heads.box_head.fc6.": "heads.boxes.branch.fc.0.",
    "roi_heads.box_head.fc7.": "heads.boxes.branch.fc.1.",
    "roi_heads.box_predictor.cls_score.": "heads.boxes.branch.classes.",
    "roi_heads.box_predictor.bbox_pred.": "heads.boxes.branch.deltas.",
}


def published_batch_norms(state: dict[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Batch norms that were trained with an epsilon of 0, as equal ones with ``eps``: the scale makes up for it."""
    new = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var"):
            scale = name.replace("running_var", "weight")
            wide = variance.double()
            new[scale] = (state[scale].double() * ((wide + eps) / wide).sqrt()).to(state[scale].dtype)
    return new


class FasterRCNN(Importer):
    """``fasterrcnn_resnet50_fpn``: boxes of COCO's classes."""

    pipeline = PIPELINE + EVALUATE
    labels = {"boxes": OBJECTS}
    names: Mapping[str, str] = BOXES

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        counters = ".num_batches_tracked"
        ours = rename({name: tensor for name, tensor in state.items() if not name.endswith(counters)}, self.names)
        # torchvision sets epsilon to 0 when it loads its published files, and only then.
        return published_batch_norms(ours) if "rpn.head.conv.weight" in state else ours


class MaskRCNN(FasterRCNN):
    """``maskrcnn_resnet50_fpn``: boxes and masks of COCO's classes."""

    pipeline = PIPELINE + MASKS + EVALUATE
    labels = {"boxes": OBJECTS, "masks": OBJECTS}
    names = {
        **BOXES,
        **{f"roi_heads.mask_head.{i}.0.": f"heads.masks.conv.{i}." for i in range(4)},
        **{f"roi_heads.mask_head.mask_fcn{i + 1}.": f"heads.masks.conv.{i}." for i in range(4)},
        "roi_heads.mask_predictor.conv5_mask.": "heads.masks.upsample.",
        "roi_heads.mask_predictor.mask_fcn_logits.": "heads.masks.logits.",
    }


class KeypointRCNN(FasterRCNN):
    """``keypointrcnn_resnet50_fpn``: boxes and 17 keypoints of persons."""

    pipeline = PIPELINE + KEYPOINTS + EVALUATE
    labels = {"boxes": PERSONS, "keypoints": PERSONS}
    names = {
        **BOXES,
        **{f"roi_heads.keypoint_head.{2 * i}.": f"heads.keypoints.conv.{i}." for i in range(8)},
        "roi_heads.keypoint_predictor.kps_score_lowres.": "heads.keypoints.upsample.",
    }
