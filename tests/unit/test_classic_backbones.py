"""The backbones of the textbooks: sizes as published, features as timm's, deformable convolutions in any ResNet."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from visionkit.errors import UserError
from visionkit.layers.deform import DeformConv
from visionkit.types import LabelSet
from visionkit_backbones.classification import Classification
from visionkit_backbones.dilated_resnet import DilatedResNet
from visionkit_backbones.timm_backbone import TimmBackbone

# With a linear layer for 1000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "seresnet50": 28_088_024,
    "legacy_seresnet101": 49_326_872,
    "legacy_senet154": 115_088_984,
    "legacy_xception": 22_855_952,
    "xception65": 39_916_312,
}


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_with_a_classifier(model: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(model=model, levels=["c5"])
        head = Classification(backbone.spec, LabelSet(tuple(map(str, range(1000)))))
    assert sum(p.numel() for module in (backbone, head) for p in module.parameters()) == PARAMETERS[model]


@pytest.mark.parametrize(("model", "count"), [("efficientnet_b0", 5_288_548), ("efficientnet_b7", 66_347_960)])
def test_efficientnets_are_compounded_as_published(model: str, count: int) -> None:
    """Their extractors leave out the last 1x1 convolution with its norm, which the classifier reads."""
    with torch.device("meta"):
        backbone = TimmBackbone(model=model, levels=["c5"])
    last = backbone.spec["c5"].channels
    rest = last * 4 * last + 2 * 4 * last + 4 * last * 1000 + 1000
    assert sum(p.numel() for p in backbone.parameters()) + rest == count


@pytest.mark.parametrize(
    ("model", "stride"),
    [("densenet121", None), ("seresnet18", None), ("seresnet18", 16), ("efficientnet_b0", 16),
     ("legacy_xception", None), ("xception41", 16), ("inception_v3", None)],
)  # fmt: skip
@torch.no_grad()
def test_features_are_timms(model: str, stride: int | None) -> None:
    options = {} if stride is None else {"output_stride": stride}
    theirs = timm.create_model(model, features_only=True, **options).eval()
    mine = TimmBackbone(model=model, output_stride=stride).eval()
    mine.body.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 80, 80)
    wanted = dict(zip(theirs.feature_info.out_indices, theirs(images)))
    found = mine(images)
    assert set(found) == set(mine.spec)
    for name, x in found.items():
        sizes = [80 / mine.spec[name].stride] * 2  # those without padding are brought to this size
        assert any(
            torch.equal(x, z)
            for y in wanted.values()
            for z in (y, F.interpolate(y, [math.ceil(size) for size in sizes], mode="bilinear"))
            if x.shape == z.shape
        )


@pytest.mark.parametrize(
    "model", ["densenet121", "legacy_seresnet50", "legacy_xception", "inception_v3", "inception_v4"]
)
def test_a_family_that_cannot_be_dilated_says_so(model: str) -> None:
    with pytest.raises(
        UserError, match=f"'{model}' .* output_stride=16: timm does not dilate the stages of this family"
    ):
        TimmBackbone(model=model, output_stride=16)


# -- versions of ResNet


def strides(module: nn.Module) -> list[tuple[int, int]]:
    """Of the 1x1 and the 3x3 convolution that begin the second stage."""
    block = module.layer2[0]  # type: ignore[index, union-attr]
    return [block.conv1.stride[0], block.conv2.stride[0]]


def test_a_resnet_strides_in_the_3x3_or_as_in_the_paper_in_the_1x1() -> None:
    with torch.device("meta"):
        assert strides(TimmBackbone(model="resnet50").body) == [1, 2]
        assert strides(TimmBackbone(model="resnet50", stride_in_1x1=True).body) == [2, 1]
        assert strides(DilatedResNet(model="resnet50", stride_in_1x1=True).resnet.body) == [2, 1]


def test_a_deep_stem_is_one_of_three_3x3_convolutions() -> None:
    with torch.device("meta"):
        deep = DilatedResNet(model="resnet50", options={"stem_width": 64, "stem_type": "deep"})
    convs = [m for m in deep.resnet.body.conv1.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convs] == [(64, 3, 2), (64, 3, 1), (128, 3, 1)]


def test_a_multi_grid_multiplies_the_dilations_of_the_last_stage() -> None:
    with torch.device("meta"):
        blocks = DilatedResNet(model="resnet50", output_stride=8, multi_grid=[1, 2, 4]).resnet.body.layer4
    assert [block.conv2.dilation[0] for block in blocks] == [4, 8, 16]


# -- deformable stages

NARROW = {"channels": [16, 24, 32, 48]}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TimmBackbone, {"model": "resnet26", "options": NARROW}),
        (TimmBackbone, {"model": "resnet18", "options": NARROW, "stride_in_1x1": False, "output_stride": 16}),
        (TimmBackbone, {"model": "resnet26", "options": NARROW, "stride_in_1x1": True, "frozen_bn": True}),
        (DilatedResNet, {"model": "resnet26", "options": NARROW, "output_stride": 8, "multi_grid": [1, 2]}),
    ],
)
@torch.no_grad()
def test_deformable_stages_without_offsets_are_the_ordinary_ones(kind, options) -> None:  # type: ignore[no-untyped-def]
    """Strides, dilations and the multi-grid are kept."""
    plain = kind(**options).eval()
    deformed = kind(**options, deformable_stages=["c3", "c4", "c5"]).eval()
    layers = [name for name, module in deformed.named_modules() if isinstance(module, DeformConv)]
    assert [name.split(".")[-3] for name in layers] == ["layer2"] * 2 + ["layer3"] * 2 + ["layer4"] * 2
    missing, surplus = deformed.load_state_dict(plain.state_dict(), strict=False)
    assert not surplus
    assert all(".offset." in name for name in missing)
    images = torch.randn(2, 3, 64, 96)
    for name, x in deformed(images).items():
        torch.testing.assert_close(x, plain(images)[name], rtol=1e-4, atol=1e-4)


def test_offsets_of_a_backbone_learn_and_those_of_frozen_stages_do_not() -> None:
    backbone = TimmBackbone(
        model="resnet10t", options={**NARROW, "zero_init_last": False}, deformable_stages=["c2", "c5"], frozen_stages=1
    )
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    frozen, learning = backbone.body.layer1[0].conv2, backbone.body.layer4[0].conv2
    assert frozen.offset.weight.grad is None
    assert learning.offset.weight.grad.abs().sum() > 0


def test_modulated_layers_have_weights_of_their_own_and_keep_pretrained_ones(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), file)
    options = {"model": "resnet10t", "pretrained": str(file)}
    plain = TimmBackbone(**options)  # type: ignore[arg-type]
    layer = TimmBackbone(**options, deformable_stages=["c5"], modulated=True).body.layer4[0].conv2  # type: ignore[arg-type]
    assert layer.offset.out_channels == 27
    assert torch.equal(layer.weight, plain.body.layer4[0].conv2.weight)


def test_errors_of_deformable_stages() -> None:
    with torch.device("meta"):
        with pytest.raises(UserError, match=r"no stage 'p5' \(there is: c2, c3, c4, c5\)"):
            TimmBackbone(model="resnet18", deformable_stages=["p5"])
        with pytest.raises(UserError, match="densenet121 is no ResNet"):
            TimmBackbone(model="densenet121", deformable_stages=["c5"])
        with pytest.raises(UserError, match="resnext50_32x4d has convolutions in 32 groups"):
            TimmBackbone(model="resnext50_32x4d", deformable_stages=["c5"])
