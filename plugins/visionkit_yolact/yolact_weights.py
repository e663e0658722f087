"""The published YOLACT (ResNet-50 or ResNet-101, 550 pixels) as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit.data.coco_classes import COCO_OBJECTS
from visionkit.model.importing import Importer, anchor_keys, class_labels, given, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.numbers import AnchorSizes, Factors, Positive
from visionkit.types import LabelSet

PUBLISHED_SIZE, PUBLISHED_ANCHORS = 550, (24, 48, 96, 192, 384)
RATIOS = (1.0, 0.5, 2.0)
NORMALIZE = {"mean": [0.48502, 0.457961, 0.407608], "std": [0.22902, 0.224, 0.22502]}
BRANCH = "prediction_layers.0."
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


class YOLACT(Importer):
    """``yolact_base``, ``yolact_resnet50``, ``yolact_im400``, ``yolact_im700`` and others on a ResNet: masks.

    Its images are squares without padding, as in the published code: any would shift the grids of the pyramid against
    each other by a part of a cell.

    Args:
        image_size: side of the images in pixels (``max_size`` of the configuration); it cannot be determined from the
            weights.
        anchor_sizes: of each level; by default those of 550 pixels in proportion to the size, in whole pixels, as in
            the published configurations.
        anchor_ratios: width / height of the priors.
    """

    key = f"{BRANCH}mask_layer.weight"

    def __init__(
        self,
        *,
        image_size: Positive | None = None,
        anchor_sizes: AnchorSizes | None = None,
        anchor_ratios: Factors | None = None,
    ) -> None:
        self.image_size, self.anchor_sizes, self.anchor_ratios = image_size, anchor_sizes, anchor_ratios

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        size = given(self.image_size, "image_size", "550 (max_size of its configuration)")
        resnet = resnet_section(state, [f"backbone.layers.{i}." for i in range(4)])
        priors = shape_of(state, f"{BRANCH}bbox_layer.weight")[0] // 4
        usual = [[x if size == PUBLISHED_SIZE else int(x / PUBLISHED_SIZE * size)] for x in PUBLISHED_ANCHORS]
        head: dict[str, Any] = {"name": "yolact", "hidden": shape_of(state, f"{BRANCH}upfeature.0.weight")[0]}
        head |= anchor_keys(priors, 5, self.anchor_sizes, self.anchor_ratios, (usual, RATIOS))
        head["prototypes"] = shape_of(state, self.key)[0] // priors
        text = section(
            backbone={"name": "timm", **resnet},
            neck={
                "name": "fpn",
                "channels": shape_of(state, "fpn.lat_layers.0.weight")[0],
                "inputs": ["c3", "c4", "c5"],
                "extra": "conv_p5",
                "upsample": "bilinear",
                "relu": "outputs",
            },
            heads={"objects": head},
            train={"channels_last": False, "size_divisor": 1},
            evaluate={
                "transforms": [{"name": "normalize", **NORMALIZE}, {"name": "resize", "size": size, "exact": True}]
            },
        )
        classes = shape_of(state, f"{BRANCH}conf_layer.weight")[0] // priors - 1
        return text, {"objects": class_labels(classes, COCO_OBJECTS)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename({name: tensor for name, tensor in state.items() if not _left_over(name)}, NAMES)


def _left_over(name: str) -> bool:
    """What some published files hold and no model of theirs uses: the backbone a second time, levels beyond P7."""
    parts = name.split(".")
    if name.startswith("fpn.downsample_layers.") and parts[2].isdigit():
        return int(parts[2]) > 1
    return parts[0] == "backbone" and parts[1].startswith("layer") and parts[1] != "layers"
