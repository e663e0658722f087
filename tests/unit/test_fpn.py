"""The feature pyramid against torchvision's."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from visionkit.errors import UserError
from visionkit.types import FeatureSpec, Level
from visionkit_backbones.fpn import FPN

SPEC = FeatureSpec({f"c{i}": Level(2 ** (i + 1), 2**i) for i in range(1, 6)})


def features(height: int = 101, width: int = 75) -> dict[str, Tensor]:
    """Odd sizes: no level is exactly half of the one below."""
    return {n: torch.randn(2, v.channels, -(-height // v.stride), -(-width // v.stride)) for n, v in SPEC.items()}


def copy_weights(ours: FPN, theirs: FeaturePyramidNetwork) -> None:
    for i, name in enumerate(ours.lateral):
        theirs.inner_blocks[i][0].load_state_dict(ours.lateral[name].state_dict())
    for i, name in enumerate(ours.output):
        theirs.layer_blocks[i][0].load_state_dict(ours.output[name].state_dict())
    for name, conv in ours.extras.items():
        getattr(theirs.extra_blocks, name).load_state_dict(conv.state_dict())


@pytest.mark.parametrize(
    ("extra", "block", "names"),
    [
        ("none", None, ["p2", "p3", "p4", "p5"]),
        ("pool", LastLevelMaxPool(), ["p2", "p3", "p4", "p5", "p6"]),
        ("conv_c5", LastLevelP6P7(64, 16), ["p2", "p3", "p4", "p5", "p6", "p7"]),
        ("conv_p5", LastLevelP6P7(16, 16), ["p2", "p3", "p4", "p5", "p6", "p7"]),
    ],
)
def test_equals_torchvision(extra, block, names) -> None:
    ours = FPN(SPEC, channels=16, extra=extra)
    theirs = FeaturePyramidNetwork([8, 16, 32, 64], 16, extra_blocks=block)
    copy_weights(ours, theirs)
    x = features()
    want = theirs(OrderedDict((name, x[name]) for name in ours.reads))
    got = ours(x)
    assert list(got) == list(ours.spec) == names
    for name, y in zip(names, want.values()):
        torch.testing.assert_close(got[name], y)
        assert ours.spec[name] == Level(16, 2 ** int(name[1:]))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_count_on_resnet50() -> None:
    spec = FeatureSpec({f"c{i}": Level(64 * 2**i, 2**i) for i in range(2, 6)})
    with torch.device("meta"):
        assert sum(p.numel() for p in FPN(spec).parameters()) == 3_344_384


@pytest.mark.parametrize(
    ("levels", "extra", "reads", "lateral", "output", "extras"),
    [
        (["p3"], "pool", ("c3", "c4", "c5"), "c3 c4 c5", "p3", ""),
        (["p6"], "pool", ("c5",), "c5", "p5", ""),
        (["p7"], "conv_c5", ("c5",), "", "", "p6 p7"),
        (["p6"], "conv_p5", ("c5",), "c5", "p5", "p6"),
        (["p5", "p4"], "conv_c5", ("c4", "c5"), "c4 c5", "p4 p5", ""),
    ],
)
def test_builds_only_what_is_read(levels, extra, reads, lateral, output, extras) -> None:
    whole, part = FPN(SPEC, channels=16, extra=extra), FPN(SPEC, channels=16, extra=extra, levels=levels)
    assert part.reads == reads
    assert " ".join(part.lateral) == lateral
    assert " ".join(part.output) == output
    assert " ".join(part.extras) == extras
    part.load_state_dict({n: t for n, t in whole.state_dict().items() if n in part.state_dict()})
    x = features()
    got = part({name: x[name] for name in reads})
    assert list(got) == sorted(levels)
    for name, y in got.items():
        torch.testing.assert_close(y, whole(x)[name])
    sum(y.sum() for y in got.values()).backward()
    assert not [name for name, p in part.named_parameters() if p.grad is None]


def test_dilated_backbone_and_norm() -> None:
    spec = FeatureSpec({"c3": Level(8, 8), "c4": Level(16, 16), "c5": Level(32, 16)})
    neck = FPN(spec, inputs=("c3", "c4", "c5"), channels=16, norm="group")
    got = neck({"c3": torch.rand(1, 8, 8, 8), "c4": torch.rand(1, 16, 4, 4), "c5": torch.rand(1, 32, 4, 4)})
    assert {name: (neck.spec[name].stride, y.shape[-1]) for name, y in got.items()} == {
        "p3": (8, 8), "p4": (16, 4), "p5": (16, 4), "p6": (32, 2)
    }  # fmt: skip
    assert sum(isinstance(m, nn.GroupNorm) for m in neck.modules()) == 6
    assert neck.lateral["c3"].conv.bias is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": ("c2", "c9")}, "no level 'c9' .it has: c1, c2, c3, c4, c5."),
        ({"inputs": ("c3", "c2")}, "finest first"),
        ({"inputs": ()}, "one backbone level or more"),
        ({"levels": ["p9"]}, "no level 'p9' .it has: p2, p3, p4, p5, p6."),
    ],
)
def test_mistakes(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        FPN(SPEC, **arguments)


def test_bilinear_growth_and_relu_after_the_outputs() -> None:
    """As YOLACT has it: no ReLU between P6 and P7, and P6 is made from the level after its ReLU."""
    neck = FPN(SPEC, inputs=("c4", "c5"), channels=16, extra="conv_p5", upsample="bilinear", relu="outputs")
    x = features()
    top = neck.lateral["c5"](x["c5"])
    grown = nn.functional.interpolate(top, size=x["c4"].shape[-2:], mode="bilinear", align_corners=False)
    p4 = neck.output["p4"](neck.lateral["c4"](x["c4"]) + grown).relu()
    p5 = neck.output["p5"](top).relu()
    p6 = neck.extras["p6"](p5)
    want = {"p4": p4, "p5": p5, "p6": p6, "p7": neck.extras["p7"](p6)}
    for name, y in neck(x).items():
        torch.testing.assert_close(y, want[name])
    assert (p6 < 0).any()
