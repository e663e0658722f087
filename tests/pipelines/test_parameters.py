"""Shipped pipelines have the parameters of the published models."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.model import MultiTaskModel
from visionkit.model.build import build_model, placeholder_labels
from visionkit.plugins import PluginManager

UNUSED_IN_DLA = 41_728
"""Two projections that the authors' DLA-34 has and never uses."""

COUNTS = {
    "faster_rcnn_r50_fpn_coco": 41_699_936,  # these three, and Panoptic FPN's, are detectron2's own counts
    "mask_rcnn_r50_fpn_coco": 44_343_216,
    "keypoint_rcnn_r50_fpn_coco": 59_133_158,
    "panoptic_fpn_r50_coco": 45_973_990,
    "upsnet_r50_coco": 46_076_784,
    "centernet_r18_coco": 15_820_372,
    "centernet_r101_coco": 53_435_476,
    "centernet_dla34_coco": 19_675_892 - UNUSED_IN_DLA,
    "centernet_hg104_coco": 191_284_008,
    "centernet_pose_dla34_coco": 20_112_346 - UNUSED_IN_DLA,
    "cornernet_hg104_coco": 201_035_212,
    "centernet_triplet_hg52_coco": 104_844_152,
    "centernet_triplet_hg104_coco": 210_062_960,
    "keypoint_heatmap_r50_coco": 33_999_697,
    "keypoint_heatmap_r101_coco": 52_991_825,
    "keypoint_heatmap_r152_coco": 68_635_473,
    "keypoint_regression_r50_coco": 23_701_148,  # 53,784 of them are the flow's
    "hourglass2_mpii": 6_570_400,
    "hourglass8_mpii": 25_434_112,
}
TRAINED = {  # bilinear kernels that stay as they are do not count
    "fcn32s_vgg16_voc": 134_346_581,
    "fcn16s_vgg16_voc": 134_357_354,
    "fcn8s_vgg16_voc": 134_362_751,
    "deeplab_largefov_vgg16_voc": 20_505_429,
    "dilatednet_vgg16_voc": 134_346_581 + 28_392,
    "deeplab_v3_r101_voc": 58_040_661,
    "deeplab_v3plus_r101_voc": 59_344_309,
    "pspnet_r50_voc": 49_081_578,
    "pspnet_r101_voc": 68_073_706,
    "unet_original": 31_030_658,
    "xception_unet_pets": 2_055_203,
}
VARIANTS = [
    ("centernet_r18_coco", ["neck.deformable=true", "neck.channels=[256, 128, 64]"], 14_437_349),  # the paper's
    ("keypoint_regression_r50_coco", ["heads.keypoints.loss=l1"], 23_577_698),
    ("hourglass2_mpii", ["backbone.stacks=1", "heads.keypoints.levels=[maps1]"], 3_426_448),
    ("hourglass2_mpii", ["backbone.stacks=4", "heads.keypoints.levels=[maps1, maps2, maps3, maps4]"], 12_858_304),
    ("deeplab_v2_r101_voc", ["backbone.frozen_bn=false"], 44_048_532),  # frozen statistics are no parameters
]


def model_of(name: str, changes: Sequence[str] = ()) -> MultiTaskModel:
    pipeline, plugins = load_pipeline(name, changes), PluginManager()
    with torch.device("meta"):
        return build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(name: str) -> None:
    assert sum(p.numel() for p in model_of(name).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", TRAINED)
def test_trained_parameters(name: str) -> None:
    assert sum(p.numel() for p in model_of(name).parameters() if p.requires_grad) == TRAINED[name]


@pytest.mark.parametrize(("name", "changes", "count"), VARIANTS)
def test_parameters_of_a_variant(name: str, changes: list[str], count: int) -> None:
    assert sum(p.numel() for p in model_of(name, changes).parameters()) == count


def test_the_semantic_branch_of_upsnet_has_its_own() -> None:
    heads = model_of("upsnet_r50_coco").heads
    assert sum(p.numel() for p in heads["semantic"].parameters()) == 1_204_667
    assert not list(heads["panoptic"].parameters())
