"""Necks that lead up to stride 4: deconvolutions, and the aggregation of a DLA."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionkit.errors import UserError
from visionkit.types import FeatureSpec, Level
from visionkit_backbones.deconv import DeconvNeck, fill_bilinear
from visionkit_backbones.dla_up import DLAUp

SPEC = FeatureSpec({f"c{i}": Level(8 * 2**i, 2**i) for i in range(2, 6)})


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_bilinear_kernels_upsample_bilinearly(stride: int, groups: int) -> None:
    grow = nn.ConvTranspose2d(3, 3, 2 * stride, stride=stride, padding=stride // 2, groups=groups, bias=False)
    fill_bilinear(grow)
    x = torch.randn(2, 3, 5, 6)
    expected = F.interpolate(x, scale_factor=stride, mode="bilinear")
    inside = (..., slice(stride, -stride), slice(stride, -stride))  # at the edge one knows nothing beyond it
    torch.testing.assert_close(grow(x)[inside], expected[inside])


@pytest.mark.parametrize("deformable", [False, True])
def test_deconvolutions_lead_from_the_coarsest_level_up(deformable: bool) -> None:
    neck = DeconvNeck(SPEC, channels=(24, 16, 8), deformable=deformable)
    assert neck.reads == ("c5",)
    assert dict(neck.spec) == {"p2": Level(8, 4), "p3": Level(16, 8), "p4": Level(24, 16)}
    made = neck({"c5": torch.randn(2, 256, 3, 4)})
    assert {name: tuple(x.shape[1:]) for name, x in made.items()} == {
        "p2": (8, 24, 32),
        "p3": (16, 12, 16),
        "p4": (24, 6, 8),
    }
    assert set(DeconvNeck(SPEC, levels=["p3"]).steps) == {"p4", "p3"}


def test_deformable_deconvolutions_start_as_bilinear_upsampling_of_a_convolution() -> None:
    step = DeconvNeck(SPEC, channels=(4,), deformable=True).steps["p4"].eval()
    x = torch.randn(1, 256, 4, 5)
    grown = step[:4](x)
    expected = F.interpolate(step[:3](x), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(grown[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("deformable", [False, True])
def test_an_aggregation_has_the_shape_of_its_finest_level(deformable: bool) -> None:
    neck = DLAUp(SPEC, deformable=deformable)
    assert dict(neck.spec) == {"p2": SPEC["c2"]}
    sizes = {"c2": 16, "c3": 8, "c4": 4, "c5": 2}
    made = neck({name: torch.randn(1, SPEC[name].channels, n, n) for name, n in sizes.items()})
    assert tuple(made["p2"].shape) == (1, SPEC["c2"].channels, 16, 16)


@pytest.mark.parametrize(
    ("neck", "arguments", "said"),
    [
        (DeconvNeck, {"source": "c6"}, "no level 'c6'"),
        (DeconvNeck, {"levels": ["p5"]}, "no level 'p5'"),
        (DeconvNeck, {"channels": (8,) * 6}, "1 to 5 deconvolutions, not 6"),
        (DeconvNeck, {"levels": []}, "no level of the deconvolutions"),
        (DLAUp, {"inputs": ("c2", "c9")}, "no level 'c9'"),
        (DLAUp, {"inputs": ("c2", "c4")}, r"twice the stride of the one before, not \[4, 16\]"),
        (DLAUp, {"levels": ["p3"]}, "no level 'p3'"),
    ],
)
def test_what_cannot_be_built_is_said(neck: type, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        neck(SPEC, **arguments)
