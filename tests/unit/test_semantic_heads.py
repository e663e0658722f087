"""Semantic heads and their backbones: geometry, traps and parameters of the papers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model import Backbone, Head
from visionkit.plugins import PluginManager
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Level, SemanticTarget
from visionkit_backbones.dilated_resnet import DilatedResNet
from visionkit_backbones.unet_encoder import UNetEncoder
from visionkit_backbones.xception import AlignedXception
from visionkit_backbones.xception_encoder import XceptionEncoder
from visionkit_semantic.deeplab_largefov import DeepLabLargeFOV, labels_at_cells
from visionkit_semantic.deeplab_v2 import DeepLabV2
from visionkit_semantic.deeplab_v3 import DeepLabV3
from visionkit_semantic.deeplab_v3plus import DeepLabV3Plus
from visionkit_semantic.dilated_context import ContextModule, DilatedContext
from visionkit_semantic.pspnet import PSPNet
from visionkit_semantic.unet import UNet
from visionkit_semantic.xception_unet import XceptionUNet

SPEC = FeatureSpec({f"c{i}": Level(8, 2**i) for i in range(1, 6)})
SPEC16 = FeatureSpec({"c2": Level(8, 4), "c4": Level(8, 16), "c5": Level(8, 16)})
UNET = ["c4", "c3", "c2", "c1", "c0"]


def labels(classes: int) -> LabelSet:
    return LabelSet(tuple(f"class {i}" for i in range(classes)))


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def view(images: Tensor, targets: tuple[SemanticTarget, ...] = ()) -> Batch:
    size = (int(images.shape[2]), int(images.shape[3]))
    info = tuple(ImageInfo(i, "", size, size, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) for i in range(len(images)))
    return Batch(images, info, targets)


def features(spec: FeatureSpec, height: int, width: int, images: int = 1) -> dict[str, Tensor]:
    return {n: torch.randn(images, v.channels, -(-height // v.stride), -(-width // v.stride)) for n, v in spec.items()}


R50D = {"model": "resnet50", "output_stride": 8, "options": {"stem_width": 64, "stem_type": "deep"}}
R50C = {"model": "resnet50", "output_stride": 8, "options": {"stem_width": 32, "stem_type": "deep"}}
R101 = {"model": "resnet101", "multi_grid": [1, 2, 4]}
PARAMETERS: list[tuple[str, dict[str, Any], str, dict[str, Any], int, int]] = [
    ("dilated_resnet", R50D, "pspnet", {}, 21, 49_081_578),
    ("dilated_resnet", R50D, "pspnet", {}, 150, 49_180_908),
    ("dilated_resnet", R50D, "pspnet", {}, 19, 49_080_038),
    ("dilated_resnet", R50C, "pspnet", {}, 19, 48_975_494),
    ("dilated_resnet", {"model": "resnet101", "output_stride": 8}, "deeplab_v2", {}, 21, 44_048_532),
    ("vgg16", {"form": "largefov"}, "deeplab_v2", {"hidden": 1024}, 21, 37_877_652),
    ("vgg16", {"form": "largefov"}, "deeplab_largefov", {"level": "fc7", "hidden": None}, 21, 20_505_429),
    ("vgg16", {"form": "largefov"}, "deeplab_largefov", {}, 21, 20_505_429),
    ("vgg16", {"form": "dilated"}, "dilated_context", {"level": "fc7", "context": "none"}, 21, 134_346_581),
    ("vgg16", {"form": "dilated"}, "dilated_context", {"level": "fc7"}, 21, 134_346_581 + 28_392),
    ("dilated_resnet", R101, "deeplab_v3", {}, 21, 58_040_661),
    ("timm", {"model": "resnet101", "output_stride": 8}, "deeplab_v3", {"hidden": True}, 21, 58_630_997),
    ("timm", {"model": "resnet50", "output_stride": 8}, "deeplab_v3", {"hidden": True}, 21, 39_638_869),
    (
        "timm",
        {"model": "resnet50", "output_stride": 8},
        "deeplab_v3",
        {"hidden": True, "auxiliary": "c4"},
        21,
        42_004_074,
    ),
    ("dilated_resnet", R101, "deeplab_v3plus", {}, 21, 59_344_309),
    ("aligned_xception", {"fine": "block1"}, "deeplab_v3plus", {}, 21, 54_705_317),
    (
        "aligned_xception",
        {},
        "deeplab_v3plus",
        {"separable": True, "between": True, "convs": 1},
        21,
        41_042_005,
    ),
    ("unet_encoder", {"gray": True}, "unet", {"levels": UNET}, 2, 31_030_658),
    ("unet_encoder", {}, "unet", {"levels": UNET}, 2, 31_031_810),
    ("unet_encoder", {"norm": "batch"}, "unet", {"levels": UNET, "norm": "batch"}, 2, 31_037_698),
    ("xception_encoder", {}, "xception_unet", {}, 3, 2_055_203),
    ("xception_encoder", {}, "xception_unet", {}, 2, 2_054_914),
    ("xception_encoder", {}, "xception_unet", {}, 21, 2_060_405),
]


@pytest.mark.parametrize(("backbone", "its", "head", "args", "classes", "parameters"), PARAMETERS)
def test_parameters(
    backbone: str, its: Mapping[str, Any], head: str, args: Mapping[str, Any], classes: int, parameters: int
) -> None:
    plugins = PluginManager()
    with torch.device("meta"):
        whole: Backbone = plugins.load("backbone", backbone)(**its)
        made: Head = plugins.load("head", head)(whole.spec, labels(classes), **args)
        read = plugins.load("backbone", backbone)(levels=made.levels, **its)
    assert count(read, made) == parameters


# -- traps


@pytest.mark.parametrize("cls", [DeepLabV3, DeepLabV3Plus, PSPNet])
def test_a_batch_of_one_trains(cls: type[Head]) -> None:
    truth = SemanticTarget(torch.randint(0, 3, (64, 64), dtype=torch.uint8))
    head = cls(SPEC, labels(3)).train()
    batch = view(torch.zeros(1, 3, 64, 64), (truth,))
    head.losses(head(features(SPEC, 64, 64), batch, {}), batch)["segmentation"].value().backward()  # type: ignore
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_rates_follow_the_stride() -> None:
    def rates(stride: int) -> list[int]:
        head = DeepLabV3(FeatureSpec({"c5": Level(8, stride)}), labels(3), channels=4)
        return [branch.conv.dilation[0] for branch in list(head.aspp.branches)[1:]]  # type: ignore[union-attr,misc]

    assert rates(16) == [6, 12, 18]
    assert rates(8) == [12, 24, 36]


def test_auxiliary_scores_count_as_they_are_weighed_and_cost_no_prediction() -> None:
    torch.manual_seed(0)
    truth = SemanticTarget(torch.randint(0, 3, (64, 64), dtype=torch.uint8))
    head = PSPNet(SPEC, labels(3), hidden=8, auxiliary_hidden=4, auxiliary_weight=0.4).eval()
    x, batch = features(SPEC, 64, 64), view(torch.zeros(1, 3, 64, 64), (truth,))
    calls: list[int] = []
    assert head.auxiliary is not None
    head.auxiliary.register_forward_hook(lambda *_: calls.append(1))
    output = head(x, batch, {})
    head.predict(output, batch)
    assert calls == []

    def entropy(logits: Tensor, stride: int) -> Tensor:
        large = F.interpolate(logits, scale_factor=stride, mode="bilinear")
        return F.cross_entropy(large, truth.labels[None].long())

    want = entropy(output.logits, 32) + 0.4 * entropy(head.auxiliary(x["c4"]), 16)
    torch.testing.assert_close(head.losses(output, batch)["segmentation"].value(), want)  # type: ignore[union-attr]


def test_deeplab_v3plus_puts_the_pyramid_beside_a_fine_level() -> None:
    head = DeepLabV3Plus(SPEC16, labels(3), channels=8, fine_channels=4).eval()
    x = features(SPEC16, 128, 160)
    up = F.interpolate(head.aspp(x["c5"]), scale_factor=4, mode="bilinear")
    want = head.score(head.decoder(torch.cat([up, head.reduce(x["c2"])], 1)))
    got = head(x, view(torch.zeros(1, 3, 128, 160)), {}).logits
    assert got.shape == (1, 3, 32, 40)
    torch.testing.assert_close(got, want)


def test_aligned_corners_need_sides_of_8n_plus_1_and_keep_the_corners() -> None:
    head = PSPNet(FeatureSpec({"c5": Level(8, 8)}), labels(3), auxiliary=None, align="corners").eval()
    x = {"c5": torch.randn(1, 8, 9, 11)}
    scores = head(x, view(torch.zeros(1, 3, 65, 81)), {}).logits
    assert scores.shape == (1, 3, 65, 81)
    torch.testing.assert_close(scores[..., ::8, ::8], head.branch(head.pool(x["c5"])))


# -- U-Net


def test_unet_makes_388_of_572() -> None:
    with torch.device("meta"):
        backbone = UNetEncoder(margins="paper")
        head = UNet(backbone.spec, labels(2), levels=UNET, margins="paper")
        found = backbone(torch.zeros(1, 3, 388, 388))
        assert {int(x.shape[2]) for x in found.values()} == {568, 280, 136, 64, 28}
        assert head(found, view(torch.zeros(1, 3, 388, 388)), {}).logits.shape == (1, 2, 388, 388)
        assert (
            len([m for m in [*backbone.modules(), *head.modules()] if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)])
            == 23
        )


@pytest.mark.parametrize("size", [(100, 77), (64, 96)])
def test_unpadded_unet_ends_on_the_pixels_of_any_image(size: tuple[int, int]) -> None:
    """Weights that hand a pixel through the finest level: the result is the image itself, where it was."""
    backbone = UNetEncoder(margins="paper", width=1, gray=True)
    head = UNet(backbone.spec, labels(1), levels=UNET, margins="paper")
    for module in (backbone, head):
        for name, parameter in module.named_parameters():
            nn.init.zeros_(parameter)
            if parameter.ndim == 4 and not name.startswith("up."):
                parameter.data[:, :1, parameter.shape[2] // 2, parameter.shape[3] // 2] = 1.0
    images = torch.rand(1, 1, *size).expand(1, 3, *size)
    scores = head(backbone.eval()(images), view(images), {}).logits
    torch.testing.assert_close(scores, images[:, :1])


def test_tiles_of_an_unpadded_unet_fit_together() -> None:
    """No result depends on where a tile ends: a part of an image with its surroundings gives a part of the result."""
    torch.manual_seed(0)
    backbone = UNetEncoder(width=2).eval()
    for block in backbone.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding = (0, 0)
    head = UNet(backbone.spec, labels(2), levels=UNET, margins="paper")
    whole = torch.randn(1, 3, 220, 220)  # 36 pixels, and 92 around them
    part = whole[..., 16:, 16:]
    one = head(backbone(whole), view(torch.zeros(1, 3, 36, 36)), {}).logits
    other = head(backbone(part), view(torch.zeros(1, 3, 20, 20)), {}).logits
    torch.testing.assert_close(one[..., 16:, 16:], other, rtol=1e-4, atol=1e-5)


def test_unet_concatenates_and_works_on_any_size() -> None:
    head = UNet(SPEC, labels(3), channels=[8, 8, 8, 8])
    assert [convs[0].conv.in_channels for convs in head.convs] == [16, 16, 16, 16]  # type: ignore[index,union-attr]
    batch = view(torch.zeros(1, 3, 101, 75))
    output = head(features(SPEC, 101, 75), batch, {})
    assert output.logits.shape == (1, 3, 51, 38)
    assert head.predict(output, batch)[0].labels.shape == (101, 75)


@pytest.mark.parametrize("how", ["transposed", "resize_conv", "pixel_shuffle", "bilinear"])
def test_unet_enlarges_in_any_way(how: str) -> None:
    head = UNet(SPEC, labels(3), channels=[8, 8, 8, 8], upsampling=how)  # type: ignore[arg-type]
    assert head(features(SPEC, 64, 96), view(torch.zeros(1, 3, 64, 96)), {}).logits.shape == (1, 3, 32, 48)


# -- DilatedNet and LargeFOV


def test_receptive_field_of_the_context_module_is_67() -> None:
    module = ContextModule(2)
    for conv in [*module.convs, module.last]:
        nn.init.constant_(conv.weight, 0.01)
        nn.init.ones_(conv.bias)  # type: ignore[arg-type]
    x = torch.zeros(1, 2, 101, 101, requires_grad=True)
    module(x)[0, 0, 50, 50].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)) > 0
    assert (int(seen.any(1).sum()), int(seen.any(0).sum())) == (67, 67)


@pytest.mark.parametrize("form", ["basic", "large"])
def test_the_context_module_starts_as_the_identity(form: str) -> None:
    x = torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(ContextModule(3, form, noise=0.0)(x), x)  # type: ignore[arg-type]
    assert (ContextModule(3, form)(x) - x).abs().mean() < 0.5  # type: ignore[arg-type]


def test_context_goes_on_for_cityscapes() -> None:
    with torch.device("meta"):
        head = DilatedContext(SPEC, labels(19), dilations=[1, 1, 2, 4, 8, 16, 32, 64, 1])
    assert head.context.margin == 129  # type: ignore[union-attr]


def test_largefov_learns_from_the_label_at_each_cell() -> None:
    truth = torch.randint(0, 3, (1, 20, 24))
    at = labels_at_cells(truth, 8)
    assert at.shape == (1, 3, 3)
    assert torch.equal(at[:, :2], truth[:, 4:20:8, 4::8])
    assert (at[:, 2] == 255).all()  # no pixel lies at the centre of the last row of cells
    spec = FeatureSpec({"c5": Level(8, 8)})
    head = DeepLabLargeFOV(spec, labels(3), hidden=4).eval()
    x, batch = features(spec, 24, 24), view(torch.zeros(1, 3, 24, 24), (SemanticTarget(truth[0].byte()),))
    output = head(x, batch, {})
    want = F.cross_entropy(output.logits, at, ignore_index=255)
    torch.testing.assert_close(head.losses(output, batch)["segmentation"].value(), want)  # type: ignore[union-attr]


# -- backbones


def test_dilations_of_the_resnets() -> None:
    with torch.device("meta"):
        body = DilatedResNet(model="resnet101", multi_grid=[1, 2, 4]).resnet.body
        eight = DilatedResNet(model="resnet50", output_stride=8).resnet.body
    assert [block.conv2.dilation[0] for block in body.layer4] == [2, 4, 8]  # type: ignore[union-attr]
    assert {block.conv2.dilation[0] for block in body.layer3} == {1}  # type: ignore[union-attr]
    assert {block.conv2.dilation[0] for block in eight.layer3} == {2}  # type: ignore[union-attr]
    assert {block.conv2.dilation[0] for block in eight.layer4} == {4}  # type: ignore[union-attr]


def test_dilation_replaces_strides_without_a_change_of_field() -> None:
    """At every second place a dilated stage says what the strided one says."""
    torch.manual_seed(0)
    strided = AlignedXception(output_stride=32, middle=1, levels=["c4"]).eval()
    dilated = AlignedXception(output_stride=8, middle=1, levels=["c4"]).eval()
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 129, 129)
    with torch.no_grad():
        one, two = strided(images)["c4"], dilated(images)["c4"]
    assert two.shape[-1] == 17
    torch.testing.assert_close(one, two[..., ::2, ::2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_xception_gives_the_features_of_timm(stride: int) -> None:
    """timm's model follows the authors: each stride that is left out multiplies the dilations of what comes after."""
    backbone = AlignedXception(output_stride=stride, levels=["c5"]).eval()
    with torch.no_grad():
        for norm in (module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_var.uniform_(0.5, 2.0)
            norm.weight.uniform_(0.5, 1.0)
    state = {}
    for name, value in backbone.state_dict().items():
        name = name.replace("exit.", "blocks.20.convs.").replace("stem.0.norm", "stem.0.bn")
        name = re.sub(r"convs\.(\d)", lambda match: f"stack.conv{int(match[1]) + 1}", name)
        name = name.replace("depthwise", "conv_dw").replace("between.0", "bn_dw").replace("pointwise", "conv_pw")
        state[re.sub(r"(?<=conv\d)\.norm", ".bn_pw", name).replace(".norm.", ".bn.")] = value
    reference = timm.create_model("xception65", output_stride=stride, num_classes=0, global_pool="").eval()
    reference.load_state_dict(state)
    for norm in (module for module in reference.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.eps = 1e-5  # not the 1e-3 of the authors
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(images)["c5"], reference(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("options", "dilations"),
    [
        ({"output_stride": 8}, [1, 1, 1, 2, 2, 2, 2, 2, 2, 4, 4, 4]),
        ({"output_stride": 8, "activated_shortcut": True}, [1, 1, 1, 2, 2, 2, 2, 2, 1, 4, 4, 4]),
        ({"output_stride": 16}, [1] * 9 + [2] * 3),
        ({"output_stride": 16, "activated_shortcut": True}, [1] * 9 + [2] * 3),
        ({"output_stride": 32}, [1] * 12),
    ],
)
def test_dilations_of_xception(options: dict[str, Any], dilations: list[int]) -> None:
    """From the third block on; the authors' and those of pytorch-deeplab-xception, which says 1 in one place."""
    with torch.device("meta"):
        backbone = AlignedXception(middle=1, **options)
    convs = [module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d) and module.groups > 1]
    assert [conv.dilation[0] for conv in convs[6:]] == dilations


@pytest.mark.parametrize("fine", ["block1", "block2"])
def test_fine_level_of_xception(fine: str) -> None:
    with torch.device("meta"):
        backbone = AlignedXception(fine=fine, middle=1)  # type: ignore[arg-type]
        alone = AlignedXception(fine=fine, middle=1, levels=["c2"])  # type: ignore[arg-type]
        made = backbone(torch.zeros(1, 3, 64, 96))
    assert made["c2"].shape == (1, 256 if fine == "block2" else 128, 16, 24)
    assert list(alone.spec) == ["c2"]
    assert count(alone) < count(backbone) / 10


def test_zeros_stand_where_tensorflow_puts_them() -> None:
    """For even sides at the right and bottom alone, so that the first window begins at the first pixel."""
    backbone = XceptionEncoder(levels=["c1"]).eval()
    images = torch.randn(1, 3, 8, 8)
    conv = backbone.entry[0]
    want = F.conv2d(F.pad(images, (0, 1, 0, 1)), conv.weight, conv.bias, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(backbone(images)["c1"], (want / math.sqrt(1.001)).relu())


def test_the_keras_net_reads_no_finer_level() -> None:
    with torch.device("meta"):
        backbone = XceptionEncoder()
        head = XceptionUNet(backbone.spec, labels(3))
        images = torch.zeros(1, 3, 160, 160)
        assert head.levels == ("c4",)
        assert head(backbone(images), view(images), {}).logits.shape == (1, 3, 160, 160)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="no feature level 'c9'"):
        DeepLabV3(SPEC, labels(3), level="c9")
    with pytest.raises(UserError, match="'c5' has stride 32, more than the 4"):
        DeepLabV3Plus(SPEC, labels(3), level="c2", fine="c5")
    with pytest.raises(UserError, match="9 averages cannot share"):
        PSPNet(SPEC, labels(3), bins=range(1, 10))
    with pytest.raises(UserError, match="each must be half"):
        UNet(SPEC, labels(3), levels=["c5", "c2"])
    with pytest.raises(UserError, match="1 widths for the 4 levels"):
        UNet(SPEC, labels(3), channels=[8])
    with pytest.raises(UserError, match="3 factors for the 2 blocks"):
        DilatedResNet(model="resnet18", multi_grid=[1, 2, 4])
    with pytest.raises(UserError, match="vgg16 is no ResNet"):
        DilatedResNet(model="vgg16", output_stride=32)
    with pytest.raises(UserError, match="4 is none of 8, 16, 32"):
        AlignedXception(output_stride=4)


# -- DeepLabv2 at several scales


@pytest.fixture
def scaled() -> tuple[Backbone, Head]:
    """A small DeepLabv2 on the image and on three quarters and half of it."""
    torch.manual_seed(0)
    plugins = PluginManager()
    arguments = {"model": "resnet18", "output_stride": 8, "scales": [0.75, 0.5], "options": {"channels": [8] * 4}}
    spec = plugins.load("backbone", "dilated_resnet")(**arguments).spec
    head = DeepLabV2(spec, labels(3), scales=[0.75, 0.5])
    return plugins.load("backbone", "dilated_resnet")(levels=head.levels, **arguments).eval(), head.eval()


@torch.no_grad()
def test_deeplab_v2_takes_the_largest_score_over_scales(scaled: tuple[Backbone, Head]) -> None:
    backbone, head = scaled
    images = torch.randn(2, 3, 64, 96)
    alone = DeepLabV2(FeatureSpec({"c5": Level(8, 8)}), labels(3))
    alone.load_state_dict(head.state_dict())

    def scores(scale: float) -> Tensor:
        copy = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        return alone({"c5": backbone(copy)["c5"]}, view(copy), {}).logits

    smaller = [F.interpolate(scores(s), size=(8, 12), mode="bilinear", align_corners=False) for s in (0.75, 0.5)]
    want = torch.maximum(torch.maximum(scores(1.0), smaller[0]), smaller[1])
    torch.testing.assert_close(head(backbone(images), view(images), {}).logits, want)


def test_every_scale_of_deeplab_v2_learns_by_itself_too(scaled: tuple[Backbone, Head]) -> None:
    backbone, head = scaled
    truth = SemanticTarget(torch.randint(0, 3, (64, 64), dtype=torch.uint8))
    images = torch.randn(1, 3, 64, 64)
    batch = view(images, (truth,))
    output = head(backbone(images), batch, {})

    def loss(logits: Tensor) -> Tensor:
        large = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)
        return F.cross_entropy(large, truth.labels[None].long())

    want = loss(output.logits) + sum(loss(one) for one in output.each)
    torch.testing.assert_close(head.losses(output, batch)["segmentation"].value(), want)
    assert len(output.each) == 3


def test_deeplab_v2_wants_a_backbone_that_looks_at_its_scales() -> None:
    with pytest.raises(UserError, match=r"no feature level 'c5@0\.5'"):
        DeepLabV2(FeatureSpec({"c5": Level(8, 8)}), labels(3), scales=[0.5])
    with pytest.raises(UserError, match=r"scales: 1\.5 is not between 0 and 1"):
        PluginManager().load("backbone", "dilated_resnet")(model="resnet18", scales=[1.5])


# -- U-Net's other forms


def test_unet_makes_one_more_step_with_nothing_beside_it() -> None:
    spec = FeatureSpec({"c1": Level(6, 2), "c2": Level(8, 4)})
    head = UNet(spec, labels(3), levels=("c2", "c1"), channels=(5,), last=4, kernel=3, narrow=False,
                upsampling="nearest")  # fmt: skip
    images = torch.zeros(1, 3, 31, 47)
    assert head(features(spec, 31, 47), view(images), {}).logits.shape == (1, 3, 31, 47)
    assert [tuple(m.weight.shape[:2]) for m in head.modules() if isinstance(m, torch.nn.Conv2d)] == [
        (5, 8 + 6), (5, 5), (4, 5), (4, 4), (3, 4),
    ]  # fmt: skip
    with pytest.raises(UserError, match="last: 'c0' has stride 1"):
        UNet(FeatureSpec({"c0": Level(4, 1), "c1": Level(6, 2)}), labels(3), levels=("c1", "c0"), last=4)
