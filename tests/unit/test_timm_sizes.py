"""Models of timm that do not accept images of any size: they work, or say which sizes they accept."""

from __future__ import annotations

import re

import pytest
import torch

from visionkit.errors import UserError
from visionkit_backbones.timm_backbone import TimmBackbone, size_refusal


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet", "swin_s3_tiny_224"])
def test_any_multiple_of_32_is_accepted(model: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(model=model)
        features = backbone(torch.zeros(1, 3, 96, 160))
    for name, level in backbone.spec.items():
        assert features[name].shape == (1, level.channels, 96 // level.stride, 160 // level.stride)


@pytest.mark.parametrize(
    "model", ["eva02_tiny_patch14_224", "hiera_tiny_224", "test_coatnet", "test_maxvit", "gcvit_xxtiny"]
)
def test_a_size_that_is_refused_is_followed_by_sizes_that_are_accepted(model: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(model=model)
        with pytest.raises(UserError) as error:
            backbone(torch.zeros(1, 3, 96, 104))
    said = str(error.value)
    assert said.startswith(f"{model} does not accept images of 96x104 pixels, only ")
    if divisor := re.search(r"size_divisor: (\d+)", said):
        side = 4 * int(divisor[1])
        assert size_refusal(model, {"dynamic_img_size": True}, (side, 2 * side)) is None
    else:
        height, width = map(int, re.findall(r"only of (\d+)x(\d+)", said)[0])
        assert size_refusal(model, {}, (height, width)) is None


def test_the_size_of_the_images_can_be_an_option() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(model="hiera_tiny_224", options={"img_size": [96, 96]})
        assert backbone(torch.zeros(1, 3, 96, 96))["c5"].shape[2:] == (3, 3)


def test_maps_of_a_model_that_crops_lie_on_the_image() -> None:
    backbone = TimmBackbone(model="inception_v3", levels=["c4"]).eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 96, 128))["c4"].shape[2:] == (6, 8)


@pytest.mark.parametrize("key", ["in_chans", "out_indices", "features_only", "output_stride", "num_classes"])
def test_options_that_the_backbone_sets_itself_are_refused(key: str) -> None:
    with pytest.raises(UserError, match=f"options: '{key}' cannot be given here"):
        TimmBackbone(model="resnet18", options={key: 1})


def test_strided_pointwise_convolutions_are_the_same() -> None:
    backbone = TimmBackbone(model="mobileone_s0", levels=["c2"])
    (stem,) = [m for m in backbone.body.modules() if type(m).__name__ == "_StridedPointwise"]
    x = torch.rand(2, 3, 9, 12)
    torch.testing.assert_close(stem(x), torch.nn.functional.conv2d(x, stem.weight, None, 2))
