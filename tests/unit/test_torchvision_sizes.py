"""torchvision's detectors in other sizes than the published ones: imported, they find the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tests.lively import spread
from visionkit.cli.import_weights import command
from visionkit.data.base import Sample
from visionkit.data.loader import collate
from visionkit.data.transforms import Normalize, Resize
from visionkit.errors import UserError
from visionkit.model.importing import build_importer
from visionkit.model.run import load_model
from visionkit.plugins import PluginManager
from visionkit.rle import decode
from visionkit.types import ImageInfo

SIZES = {"min_size": 96, "max_size": 160}
FEW = {**SIZES, "box_detections_per_img": 8, "rpn_post_nms_top_n_test": 30}


def backbone(
    block: Any, layers: list[int], stages: tuple[int, ...] = (1, 2, 3, 4), norm: Any = FrozenBatchNorm2d, **options: Any
) -> nn.Module:
    body = resnet.ResNet(block, layers, norm_layer=norm, **options.pop("resnet", {}))
    channels = [body.layer1[0].conv1.in_channels * block.expansion * 2 ** (i - 1) for i in stages]
    if block is resnet.Bottleneck:
        channels = [256 * 2 ** (i - 1) for i in stages]
    layers_of = {f"layer{i}": str(n) for n, i in enumerate(stages)}
    return BackboneWithFPN(body, layers_of, channels, options.pop("channels", 64), **options)


def boxes_of_two_levels() -> nn.Module:
    anchors = AnchorGenerator(((16, 32), (64, 90), (128, 200)), ((0.5, 2.0),) * 3)
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2)
    body = backbone(resnet.BasicBlock, [1, 2, 1, 1], (2, 3))
    return FasterRCNN(body, 4, rpn_anchor_generator=anchors, box_roi_pool=pool, **FEW)


def masks() -> nn.Module:
    return MaskRCNN(backbone(resnet.Bottleneck, [1, 1, 2, 1]), 6, **FEW)


def masks_v2() -> nn.Module:
    body = backbone(resnet.Bottleneck, [1, 1, 1, 1], norm=nn.BatchNorm2d, norm_layer=nn.BatchNorm2d)
    rpn = RPNHead(64, 3, conv_depth=3)
    box = FastRCNNConvFCHead((64, 7, 7), [64, 32], [48, 24], norm_layer=nn.BatchNorm2d)
    mask = MaskRCNNHeads(64, [64, 64, 32], 1, norm_layer=nn.BatchNorm2d)
    return MaskRCNN(
        body, rpn_head=rpn, box_head=box, box_predictor=FastRCNNPredictor(24, 3), mask_head=mask,
        mask_predictor=MaskRCNNPredictor(32, 16, 3), **FEW,
    )  # fmt: skip


def keypoints() -> nn.Module:
    groups = {"groups": 32, "width_per_group": 4}
    return KeypointRCNN(backbone(resnet.Bottleneck, [1, 1, 1, 1], resnet=groups), 3, num_keypoints=5, **FEW)


def dense() -> nn.Module:
    body = backbone(resnet.BasicBlock, [1, 1, 1, 1], (2, 3, 4), extra_blocks=LastLevelP6P7(512, 64))
    anchors = AnchorGenerator(tuple((size, size * 1.3) for size in (16, 32, 64, 128, 256)), ((0.5, 1.0, 2.0, 3.0),) * 5)
    return RetinaNet(body, 7, anchor_generator=anchors, **SIZES)


MODELS = {
    "fasterrcnn_resnet50_fpn": (
        boxes_of_two_levels,
        ["anchor_sizes=[[16, 32], [64, 90], [128, 200]]", "anchor_ratios=[0.5, 2.0]"],
    ),
    "maskrcnn_resnet50_fpn": (masks, []),
    "maskrcnn_resnet50_fpn_v2": (masks_v2, []),
    "keypointrcnn_resnet50_fpn": (keypoints, []),
    "retinanet_resnet50_fpn": (
        dense,
        [
            "anchor_sizes=[[16, 20.8], [32, 41.6], [64, 83.2], [128, 166.4], [256, 332.8]]",
            "anchor_ratios=[0.5, 1.0, 2.0, 3.0]",
        ],
    ),
}


@torch.no_grad()
def lively(model: Any, images: list[Tensor]) -> nn.Module:
    """With statistics and last layers of which something is found, in evaluation mode."""
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    batch = model.transform(images)[0]
    features = model.backbone(batch.tensors)
    if isinstance(model, RetinaNet):
        spread(model.head.classification_head.cls_logits, 1.0, lambda: model(images), mean=-2.0)
        spread(model.head.regression_head.bbox_reg, 0.3, lambda: model(images))
        return model
    for layer, std in ((model.rpn.head.cls_logits, 2.0), (model.rpn.head.bbox_pred, 0.3)):
        spread(layer, std, lambda: model.rpn(batch, features))
    heads = model.roi_heads
    proposals = model.rpn(batch, features)[0]
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
    for layer, std in ((heads.box_predictor.cls_score, 2.0), (heads.box_predictor.bbox_pred, 0.5)):
        spread(layer, std, lambda: heads.box_predictor(pooled))
    if heads.has_mask():
        pooled = heads.mask_head(heads.mask_roi_pool(features, proposals, batch.image_sizes))
        spread(heads.mask_predictor.mask_fcn_logits, 2.0, lambda: heads.mask_predictor(pooled))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_another_size_finds_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    make, settings = MODELS[name]
    pixels = [
        F.interpolate(torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8), size=size)[0]
        for size in ((141, 203), (97, 61))
    ]
    images = [image / 255 for image in pixels]
    theirs = lively(make(), images)
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    command(f"torchvision/{name}", tmp_path / "weights.pth", tmp_path / "run", settings)
    few = () if name.startswith("retinanet") else ("heads.boxes.detections=8", "heads.boxes.rpn_after_nms=30")
    run = load_model(tmp_path / "run", PluginManager(), few)

    samples = [
        Resize(short=96, long=160, exact=True)(
            Normalize()(Sample(image, ImageInfo(i, "", (h := image.shape[1], w := image.shape[2]), (h, w))))
        )
        for i, image in enumerate(pixels)
    ]
    batch = collate(samples).normalised(run.model.mean, run.model.std, channels_last=False)
    with torch.no_grad():
        expected, got = theirs(images), run.model.predict(batch)
    for row, want in enumerate(expected):
        compare({head: found[row] for head, found in got.items()}, want, run.labels["boxes"].ids)


def compare(got: Mapping[str, Any], want: Mapping[str, Tensor], ids: tuple[int | str, ...]) -> None:
    boxes = got["boxes"]
    full = (want["boxes"][:, 2:] > want["boxes"][:, :2]).all(1)
    wanted, scores, labels = want["boxes"][full], want["scores"][full], want["labels"][full]
    assert len(wanted) > 5
    count = len(wanted)
    torch.testing.assert_close(boxes.boxes[:count], wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(boxes.scores[:count], scores, atol=1e-5, rtol=0)
    assert torch.equal(torch.tensor(ids)[boxes.labels[:count]], labels)
    if "masks" in want:
        for rle, mask in zip(got["masks"].rles, want["masks"][full, 0] > 0.5):
            found = torch.from_numpy(decode(rle)).bool()
            assert (found & mask).sum() >= 0.99 * (found | mask).sum()
    if "keypoints" in want:
        torch.testing.assert_close(
            got["keypoints"].keypoints[:count, :, :2], want["keypoints"][full][..., :2], atol=1e-2, rtol=0
        )


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_anchors_that_the_weights_do_not_tell_are_asked_for(name: str) -> None:
    make, _ = MODELS[name]
    with pytest.raises(UserError, match=r"anchors at each cell of \d levels: add --set anchor_sizes="):
        build_importer(PluginManager(), f"torchvision/{name}").describe(make().state_dict())


def test_frozen_norms_of_a_fine_tuned_model_have_the_given_epsilon() -> None:
    state = masks().state_dict()
    name = "backbone.body.bn1.weight"
    plain = build_importer(PluginManager(), "torchvision/maskrcnn_resnet50_fpn").convert(state)
    assert torch.equal(plain[name], state[name])
    zero = build_importer(PluginManager(), "torchvision/maskrcnn_resnet50_fpn", ["norm_eps=0"]).convert(state)
    var = state["backbone.body.bn1.running_var"]
    torch.testing.assert_close(zero[name] / (var + 1e-5).sqrt(), state[name] / var.sqrt())
