"""Fully convolutional networks and the VGG16 under them: geometry, sizes and parameters of the papers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Level
from visionkit_backbones.vgg import VGG16, fc_to_conv, mirrored
from visionkit_semantic.fcn import FCN, crop_offsets

VOC = LabelSet(tuple(f"class {i}" for i in range(21)))
FORMS = {"32s": ["fc7"], "16s": ["fc7", "c4"], "8s": ["fc7", "c4", "c3"]}


def count(*modules: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad or not trained)


def view(height: int, width: int) -> Batch:
    info = ImageInfo(0, "", (height, width), (height, width), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    return Batch(torch.zeros(1, 3, height, width), (info,), ())


@pytest.mark.parametrize(
    ("form", "trained", "whole"),
    [
        ("32s", 134_346_581, 136_152_917),
        ("16s", 134_357_354, 134_815_994),
        ("8s", 134_362_751, 134_489_759),
    ],
)
def test_parameters(form: str, trained: int, whole: int) -> None:
    with torch.device("meta"):
        backbone = VGG16(form="fcn", margins="paper", levels=FORMS[form])
        head = FCN(backbone.spec, VOC, levels=FORMS[form], margins="paper")
    assert count(backbone, head, trained=True) == trained
    assert count(backbone, head) == whole


@pytest.mark.parametrize(("form", "offsets"), [("32s", [-19]), ("16s", [5, -27]), ("8s", [5, 9, -31])])
def test_crop_offsets_are_those_of_the_published_models(form: str, offsets: list[int]) -> None:
    assert crop_offsets([32, 16, 8][: len(FORMS[form])], "paper") == offsets


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(500, 375), (64, 96), (97, 33)])
def test_scores_have_the_size_of_any_image(form: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = VGG16(form="fcn", margins="paper", levels=FORMS[form])
        head = FCN(backbone.spec, VOC, levels=FORMS[form], margins="paper")
        scores = head(backbone(torch.zeros(1, 3, *size)), view(*size), {}).logits
    assert scores.shape == (1, 21, *size)


def spot(strides: list[int], margins: str, at: int, finest: int) -> int:
    """The row where the scores are largest, if the cells of one level near row ``at`` alone have seen something."""
    spec = FeatureSpec({f"l{s}": Level(1, s) for s in strides})
    head = FCN(spec, LabelSet(("a",)), levels=list(spec), margins=margins)  # type: ignore[arg-type]
    starts = {s: (s - 1) / 2 - (99 if margins == "paper" else 0) for s in strides}
    starts[strides[0]] += 96 if margins == "paper" else 0
    features = {}
    for stride in strides:
        cells = -(-(256 - int(starts[stride])) // stride)
        rows = torch.arange(cells) * stride + starts[stride]  # where their centres lie in the image
        seen = (1 - (rows - at).abs() / stride).clamp(min=0) if stride == finest else torch.zeros(cells)
        features[f"l{stride}"] = seen[:, None].expand(cells, cells)[None, None].clone()
    for layer in head.score:
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    rows = head(features, view(256, 256), {}).logits[0, 0, :, 128].detach().double()
    return round(float((rows * torch.arange(256)).sum() / rows.sum()))


@pytest.mark.parametrize("margins", ["paper", "same"])
@pytest.mark.parametrize("level", [32, 16, 8])
def test_every_level_lies_where_it_was_seen(margins: str, level: int) -> None:
    """A spot on any level comes out at its own place, whatever was cropped."""
    assert abs(spot([32, 16, 8], margins, 120, level) - 120) <= 1


def test_bilinear_enlarging_is_what_the_transposed_convolutions_start_as() -> None:
    torch.manual_seed(0)
    spec = FeatureSpec({"c3": Level(4, 8), "c4": Level(4, 16), "c5": Level(4, 32)})
    learnt, plain = (FCN(spec, VOC, enlarge=how) for how in ("transposed", "bilinear"))  # type: ignore[arg-type]
    plain.score.load_state_dict(learnt.score.state_dict())
    features = {n: torch.randn(1, 4, 256 // v.stride, 256 // v.stride) for n, v in spec.items()}
    one, two = (head(features, view(256, 256), {}).logits for head in (learnt, plain))
    assert two.shape == (1, 21, 32, 32)
    two = F.interpolate(two, scale_factor=8, mode="bilinear")
    inside = (..., slice(64, -64), slice(64, -64))
    torch.testing.assert_close(one[inside], two[inside])


def test_skips_are_added_and_scaled() -> None:
    spec = FeatureSpec({"c4": Level(4, 16), "c5": Level(4, 32)})
    head = FCN(spec, VOC, levels=["c5", "c4"], scales=[1.0, 0.01], enlarge="bilinear")
    features = {"c5": torch.zeros(1, 4, 2, 2), "c4": torch.randn(1, 4, 4, 4)}
    want = head.score[1](0.01 * features["c4"]) + head.score[0].bias[:, None, None]
    torch.testing.assert_close(head(features, view(64, 64), {}).logits, want)


def test_kernels_are_fixed_unless_asked_for_and_the_last_one_always() -> None:
    spec = FeatureSpec({"c4": Level(4, 16), "c5": Level(4, 32)})
    trained = [
        [k.weight.requires_grad for k in FCN(spec, VOC, levels=["c5", "c4"], learn_kernels=learn).kernels]
        for learn in (False, True)
    ]
    assert trained == [[False, False], [True, False]]


# -- VGG16


def test_vgg_is_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None, num_classes=2).features.eval()
    torch.save({f"features.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "vgg.pth")
    mine = VGG16(pretrained=str(tmp_path / "vgg.pth")).eval()
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(mine(images)["c5"], theirs(images))
    assert count(mine) == 14_714_688
    with pytest.raises(UserError, match="not the weights of torchvision's VGG16"):
        VGG16(form="fcn", pretrained=str(tmp_path / "vgg.pth"))


def fully_connected() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"0.weight": (4096, 25088), "0.bias": (4096,), "3.weight": (4096, 4096), "3.bias": (4096,)}
    return {f"classifier.{name}": torch.randn(shape) * 0.01 for name, shape in shapes.items()}


def test_fully_connected_layers_become_convolutions() -> None:
    state, x = fully_connected(), torch.randn(1, 512, 7, 7)
    layers = fc_to_conv(state, "fcn")
    got = F.conv2d(F.conv2d(x, layers["0.weight"], layers["0.bias"]).relu(), layers["3.weight"], layers["3.bias"])
    want = F.linear(x.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"]).relu()
    want = F.linear(want, state["classifier.3.weight"], state["classifier.3.bias"])
    torch.testing.assert_close(got.flatten(1), want, rtol=1e-3, atol=1e-3)
    assert fc_to_conv(state, "largefov")["0.weight"].shape == (1024, 512, 3, 3)
    assert fc_to_conv(state, "largefov")["3.weight"].shape == (1024, 1024, 1, 1)


def test_parameters_of_the_other_forms() -> None:
    with torch.device("meta"):
        assert count(VGG16(form="largefov")) + 1025 * 21 == 20_505_429
        assert count(VGG16(form="dilated")) + 4097 * 21 == 134_346_581


@pytest.mark.parametrize("margins", ["same", "paper"])
@pytest.mark.parametrize("size", [(500, 375), (64, 96), (9, 17)])
def test_dilated_form_has_stride_8_on_any_size(margins: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        backbone = VGG16(form="dilated", margins=margins, levels=["fc7"])  # type: ignore[arg-type]
        assert backbone(torch.zeros(1, 3, *size))["fc7"].shape == (1, 4096, -(-size[0] // 8), -(-size[1] // 8))


def test_mirroring_goes_on_beyond_one_image() -> None:
    x = torch.randn(1, 2, 9, 12)
    torch.testing.assert_close(mirrored(x, 5), F.pad(x, (5, 5, 5, 5), mode="reflect"))
    twice = mirrored(x, 40, 8)
    assert twice.shape == (1, 2, 16 + 80, 16 + 80)
    assert torch.equal(twice[..., 40:49, 40:52], x)
    assert torch.equal(twice[..., 40 + 16, 40:52], x[..., 0, :])  # 16 rows on, the first row is seen again


def test_mistakes() -> None:
    spec = FeatureSpec({"c4": Level(4, 16), "c5": Level(4, 32)})
    with pytest.raises(UserError, match="3 factors for 2 levels"):
        FCN(spec, VOC, levels=["c5", "c4"], scales=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match="do not get finer"):
        FCN(spec, VOC, levels=["c4", "c5"])
    with pytest.raises(UserError, match="only transposed convolutions"):
        FCN(spec, VOC, levels=["c5"], margins="paper", enlarge="bilinear")
    with pytest.raises(UserError, match="no feature level 'c2'"):
        FCN(spec, VOC, levels=["c2"])
    with pytest.raises(UserError, match="none of its own"):
        VGG16(form="largefov", margins="paper")
    with pytest.raises(UserError, match="no level 'fc7'"):
        VGG16(levels=["fc7"])
