"""timm backbones: levels, freezing and weights, against timm and torchvision themselves."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from visionkit.errors import UserError
from visionkit.layers.norm import FrozenBatchNorm2d, freeze_batch_norms, make_norm
from visionkit.testing.compare import assert_close
from visionkit_backbones.timm_backbone import TimmBackbone


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shake(module: nn.Module) -> nn.Module:
    """Statistics and affine maps that a wrong formula cannot hide behind."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low in ((m.running_mean, -0.5), (m.running_var, 0.5), (m.weight, 0.5), (m.bias, -0.5)):
                nn.init.uniform_(tensor, low, low + 1.0)
    return module


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("resnet18", 1),
        ("convnext_atto", 2),
        ("efficientnet_b0", 1),
        ("mobilenetv3_small_050", 1),
        ("regnety_002", 1),
        ("swin_tiny_patch4_window7_224", 2),
        ("vit_tiny_patch16_224", 4),
    ],
)
def test_every_family_keeps_its_spec(model: str, first: int) -> None:
    backbone = TimmBackbone(model=model)
    features = backbone(torch.rand(1, 3, 64, 96))
    assert list(features) == list(backbone.spec) == [f"c{i}" for i in range(first, 5 if first == 4 else 6)]
    for name, level in backbone.spec.items():
        assert level.stride == 2 ** int(name[1:])
        assert features[name].shape == (1, level.channels, 64 // level.stride, 96 // level.stride)
    sum(x.mean() for x in features.values()).backward()
    assert not [name for name, p in backbone.named_parameters() if p.grad is None]  # nothing is built in vain


def test_stride_in_the_first_convolution_reads_every_second_pixel() -> None:
    torch.manual_seed(0)
    plain = shake(TimmBackbone(model="resnet50", levels=("c2", "c3"))).eval()
    early = TimmBackbone(model="resnet50", levels=("c2", "c3"), stride_in_1x1=True).eval()
    early.load_state_dict(plain.state_dict())
    block = early.body.layer2[0]
    with torch.no_grad():
        found = early(torch.rand(1, 3, 64, 64))
        x = found["c2"][:, :, ::2, ::2]  # all that a convolution of 1 x 1 with stride 2 sees
        main = block.act1(block.bn1(nn.functional.conv2d(x, block.conv1.weight)))
        main = block.bn3(block.conv3(block.act2(block.bn2(block.conv2(main)))))
        side = block.downsample[1](nn.functional.conv2d(x, block.downsample[0].weight))
        want = (main + side).relu()
        for later in early.body.layer2[1:]:
            want = later(want)
    assert_close(found["c3"], want)
    with pytest.raises(UserError, match="resnet18 has no bottlenecks"):
        TimmBackbone(model="resnet18", stride_in_1x1=True)


def test_same_features_as_torchvision() -> None:
    theirs = shake(torchvision.models.resnet18(weights=None)).eval()
    ours = TimmBackbone(model="resnet18").eval()
    ours.body.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.rand(1, 3, 65, 97)
    want = x
    for name, child in list(theirs.named_children())[:-2]:
        want = child(want)
        if name.startswith("layer"):
            assert_close(ours(x)[f"c{int(name[-1]) + 1}"], want)


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert count(TimmBackbone(model="resnet50")) == 23_508_032
        assert count(TimmBackbone(model="resnet50", frozen_bn=True)) == 23_454_912
        assert count(TimmBackbone(model="resnet101", frozen_bn=True)) == 42_394_816
        assert count(TimmBackbone(model="xception65")) == 37_867_312


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b0", "convnext_atto"])
def test_only_the_levels_that_are_read_are_built(model: str) -> None:
    with torch.device("meta"):
        whole, part = TimmBackbone(model=model), TimmBackbone(model=model, levels=["c3", "c2"])
    assert list(part.spec) == ["c2", "c3"]
    assert part.spec["c3"] == whole.spec["c3"]
    assert count(part) < count(whole) / 5


def test_output_stride_keeps_names_and_dilates() -> None:
    backbone = TimmBackbone(model="resnet18", output_stride=8)
    assert {name: level.stride for name, level in backbone.spec.items()} == {
        "c1": 2,
        "c2": 4,
        "c3": 8,
        "c4": 8,
        "c5": 8,
    }
    assert backbone(torch.rand(1, 3, 64, 64))["c5"].shape == (1, 512, 8, 8)


def test_meta_device_costs_nothing_and_reads_no_weights() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(model="resnet50", pretrained="no/such/file.pth", frozen_bn=True, frozen_stages=2)
    assert all(t.is_meta for t in backbone.state_dict().values())
    assert backbone.spec["c5"].channels == 2048


def test_normalisation_is_the_models_own() -> None:
    with torch.device("meta"):
        assert TimmBackbone(model="resnet18").mean == pytest.approx((0.485, 0.456, 0.406))
        assert TimmBackbone(model="vit_tiny_patch16_224.augreg_in21k").mean == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("model", "act"), [("resnet18", False), ("efficientnet_b0", True)])
def test_frozen_batch_norm_equals_evaluation_mode(model: str, act: bool) -> None:
    plain = shake(TimmBackbone(model=model, levels=["c2"])).eval()
    frozen = freeze_batch_norms(copy.deepcopy(plain)).train()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(frozen(x)["c2"], plain(x)["c2"], rtol=0, atol=0)
    norms = [m for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(norms) == len([m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)])
    assert any(m.act is not None for m in norms) == act
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    assert "body.bn1.weight" in frozen.state_dict()
    frozen.load_state_dict(plain.state_dict())  # the names are those of batch norm


def test_frozen_batch_norm_equals_torchvisions() -> None:
    norm = shake(nn.Sequential(nn.BatchNorm2d(5, eps=1e-3)))[0]
    theirs = torchvision.ops.FrozenBatchNorm2d(5, eps=1e-3)
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(FrozenBatchNorm2d.like(norm)(x), theirs(x))


@pytest.mark.parametrize(
    ("model", "trained"),
    [("resnet18", "body.layer2."), ("convnext_atto", "body.stages_1."), ("mobilenetv3_small_050", "body.blocks.1.")],
)
def test_frozen_stages_stay_as_they_are(model: str, trained: str) -> None:
    backbone = TimmBackbone(model=model, frozen_stages=1)
    free = [name for name, p in backbone.named_parameters() if p.requires_grad]
    assert free[0].startswith(trained)
    assert [n for n, _ in backbone.named_parameters()][-len(free) :] == free
    before = copy.deepcopy(backbone.state_dict())
    backbone.train()
    backbone(torch.rand(2, 3, 64, 64))
    moved = [name for name, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[name])]
    order = list(before)
    first = order.index(next(name for name in order if name.startswith(trained)))
    assert all(order.index(name) > first for name in moved)  # no statistic of a frozen stage
    assert bool(moved) == any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


def test_nothing_is_frozen_unless_asked_for() -> None:
    backbone = TimmBackbone(model="resnet18").train()
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(m.training for m in backbone.modules())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("model", ["resnet18", "convnext_atto"])
def test_local_weights(tmp_path, model: str, suffix: str) -> None:
    source = timm.create_model(model).eval()
    path = tmp_path / f"weights{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    backbone = TimmBackbone(model=model, levels=["c2", "c3"], pretrained=str(path)).eval()
    x = torch.rand(1, 3, 64, 64)
    for name, want in zip(("c2", "c3"), source.forward_intermediates(x, intermediates_only=True)[-4:]):
        torch.testing.assert_close(backbone(x)[name], want)


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(UserError, match=r"weights.pth: not the weights of resnet18: layer1.2.conv1.weight is too many"):
        TimmBackbone(model="resnet18", pretrained=str(path))
    state = timm.create_model("resnet18").state_dict()
    del state["conv1.weight"]
    state["bn1.bias"] = torch.zeros(7)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"conv1.weight is missing; bn1.bias has shape \(7,\), not \(64,\)"):
        TimmBackbone(model="resnet18", pretrained=str(path))


def test_weights_file_that_is_none(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no file 'nowhere\.pth'"):
        TimmBackbone(model="resnet18", pretrained="nowhere.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(UserError, match=f"{name}: cannot be read as weights"):
            TimmBackbone(model="resnet18", pretrained=str(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "resnet51"}, "timm has no model 'resnet51'; nearest: .*resnet50"),
        ({"model": "vgg11", "output_stride": 8}, "timm cannot build 'vgg11' for feature maps with output_stride=8"),
        ({"model": "resnet18", "levels": ["c7"]}, "no level 'c7' .it has: c1, c2, c3, c4, c5."),
        ({"model": "resnet18", "frozen_stages": 5}, "resnet18 has 4 stages, so 0 to 4, not 5"),
        ({"model": "resnet18", "options": {"speed": 9}}, "speed=9"),
    ],
)
def test_mistakes(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TimmBackbone(**arguments)


def test_group_norm_has_two_channels_a_group_or_more() -> None:
    assert [make_norm("group", c).num_groups for c in (256, 128, 64, 32, 16, 2, 1, 21)] == [32, 32, 32, 16, 8, 1, 1, 7]
