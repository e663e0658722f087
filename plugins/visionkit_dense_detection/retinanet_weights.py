"""RetinaNet of torchvision and of detectron2 (ResNet, FPN) as runs of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_OBJECTS_90
from visionkit.model import detectron2, torchvision
from visionkit.model.importing import (
    Importer,
    anchor_keys,
    class_labels,
    count_in,
    numbers_in,
    rename,
    section,
    shape_of,
)
from visionkit.numbers import AnchorSizes, Factors
from visionkit.types import LabelSet
from visionkit_dense_detection.retinanet import SIZES

RATIOS = (0.5, 1.0, 2.0)
# Each octave in whole pixels, cut off.
WHOLE_SIZES = ((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812))
# Sigmoids have no background, yet the weights have a place for it, which nothing was ever learnt for.
COCO_OBJECTS_91 = LabelSet(("unused 0", *COCO_OBJECTS_90.names), ids=(0, *COCO_OBJECTS_90.ids))
HEAD = "heads.boxes."


class TorchvisionRetinaNet(torchvision.DetectorImporter):
    """``retinanet_resnet50_fpn`` and its second version, which has group norms and P6 from C5.

    Args:
        anchor_sizes: of each level, where they are not torchvision's.
        anchor_ratios: height / width of the anchors, likewise.
        norm_eps: of frozen batch norms; 0 for a model that was fine-tuned from torchvision's weights ``COCO_V1``. The
            published file itself is recognized.
    """

    key = "head.classification_head.cls_logits.weight"

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        levels = torchvision.levels_of(state)
        reads, channels = shape_of(state, "backbone.fpn.extra_blocks.p6.weight")[1::-1]
        per_cell = shape_of(state, "head.regression_head.bbox_reg.weight")[0] // 4
        head: dict[str, Any] = {"name": "retinanet", "levels": [f"p{i}" for i in range(levels[0], levels[-1] + 3)]}
        usual = (WHOLE_SIZES, RATIOS)
        head |= anchor_keys(per_cell, len(head["levels"]), self.anchor_sizes, self.anchor_ratios, usual)
        head |= {"exact_anchors": False, "per_image": True, "detections": 300, "convs": len(_tower(state))}
        head["channels"] = channels
        backbone = torchvision.backbone_section(state)
        if "head.classification_head.conv.0.1.weight" in state:
            head |= {"norm": "group", "box_loss": "giou"}
            del backbone["frozen_bn"]
        neck = torchvision.neck_section(state, "conv_p5" if reads == channels else "conv_c5")
        classes = shape_of(state, self.key)[0] // per_cell
        text = section(backbone=backbone, neck=neck, heads={"boxes": head}, **torchvision.EVALUATE)
        return text, {"boxes": class_labels(classes, COCO_OBJECTS_91)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {
            "head.classification_head.cls_logits.": f"{HEAD}classes.",
            "head.regression_head.bbox_reg.": f"{HEAD}deltas.",
        }
        for theirs, ours in (("classification", "class_tower"), ("regression", "box_tower")):
            tower = f"head.{theirs}_head.conv."
            names |= {f"{tower}#.0.": f"{HEAD}{ours}.conv.#.conv.", f"{tower}#.1.": f"{HEAD}{ours}.conv.#.norm."}
            if _published(state):  # a ReLU stands behind each convolution
                names |= {f"{tower}{2 * i}.": f"{HEAD}{ours}.conv.{i}.conv." for i in range(len(_tower(state)))}
        names |= torchvision.backbone_names(state)
        if "head.classification_head.conv.0.1.weight" in state:
            return rename(state, names)
        renamed = rename(torchvision.without_counters(state), names)
        return torchvision.published_batch_norms(renamed, 0.0 if _published(state) else self.norm_eps)


def _published(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of torchvision before version 0.13."""
    return "head.classification_head.conv.0.weight" in state


def _tower(state: Mapping[str, Tensor]) -> list[int]:
    """Places of the convolutions in a tower."""
    return numbers_in(state, "head.classification_head.conv.#.")


class Detectron2RetinaNet(Importer):
    """``COCO-Detection/retinanet_R_50_FPN_3x`` (or ``1x``) and deeper ones.

    Args:
        anchor_sizes: of each level, where they are not those of the model zoo.
        anchor_ratios: height / width of the anchors, likewise.
    """

    key = "head.cls_score.weight"

    def __init__(self, *, anchor_sizes: AnchorSizes | None = None, anchor_ratios: Factors | None = None) -> None:
        self.anchor_sizes, self.anchor_ratios = anchor_sizes, anchor_ratios

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        levels = detectron2.levels_of(state)
        reads, channels = shape_of(state, "backbone.top_block.p6.weight")[1::-1]
        per_cell = self._anchors(state)
        head: dict[str, Any] = {"name": "retinanet", "clip_first": False, "channels": channels}
        head["levels"] = [f"p{i}" for i in range(levels[0], levels[-1] + 3)]
        head["convs"] = count_in(state, "head.cls_subnet.#.")
        head |= anchor_keys(per_cell, len(head["levels"]), self.anchor_sizes, self.anchor_ratios, (SIZES, RATIOS))
        classes = shape_of(state, self.key)[0] // per_cell
        text = section(
            backbone=detectron2.backbone_section(state),
            neck=detectron2.neck_section(state, "conv_p5" if reads == channels else "conv_c5"),
            heads={"boxes": head},
            **detectron2.EVALUATE,
        )
        return text, {"boxes": class_labels(classes, COCO_OBJECTS)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {**detectron2.backbone_names(), "backbone.top_block.": "neck.extras."}
        for tower, ours in (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower")):
            names |= {f"head.{tower}.{2 * i}.": f"{HEAD}{ours}.conv.{i}.conv." for i in range(32)}
        names |= {"head.cls_score.": f"{HEAD}classes.", "head.bbox_pred.": f"{HEAD}deltas."}
        new = detectron2.convert_backbone(rename(detectron2.trained(state), names))
        ratios = len(self.anchor_ratios or RATIOS)
        sizes = self._anchors(state) // ratios
        return {
            name: detectron2.ratios_first(tensor, sizes, ratios)
            if name.startswith((f"{HEAD}classes.", f"{HEAD}deltas."))
            else tensor
            for name, tensor in new.items()
        }

    def _anchors(self, state: Mapping[str, Tensor]) -> int:
        return shape_of(state, "head.bbox_pred.weight")[0] // 4
