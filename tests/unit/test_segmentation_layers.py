"""Pooling pyramids, separable convolution and upsampling, against closed forms."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visionkit.errors import UserError
from visionkit.layers.aspp import ASPP, SummedASPP, rates_at
from visionkit.layers.pyramid_pooling import PooledConv, PyramidPooling
from visionkit.layers.separable import SeparableConv
from visionkit.layers.upsampling import Upsampling, bilinear_deconv, bilinear_kernel, make_upsampling, resize


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_separable_is_a_convolution_of_rank_one() -> None:
    layer = SeparableConv(4, 6, dilation=2)
    whole = layer.pointwise.weight * layer.depthwise.weight.permute(1, 0, 2, 3)
    x = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(layer(x), F.conv2d(x, whole, layer.pointwise.bias, padding=2, dilation=2))
    assert count(layer) == 4 * 9 + 4 * 6 + 6


def test_pyramid_pooling_as_the_paper_has_it() -> None:
    layer = PyramidPooling(8).eval()
    x = torch.randn(2, 8, 13, 17)
    parts = [x]
    for bins, branch in zip((1, 2, 3, 6), layer.branches):
        y = F.batch_norm(F.conv2d(F.adaptive_avg_pool2d(x, bins), branch.conv.weight), torch.zeros(2), torch.ones(2))
        parts.append(F.interpolate(y.relu(), size=(13, 17), mode="bilinear", align_corners=True))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))
    assert layer.outputs == 16


def test_pyramid_pooling_has_as_many_parameters_as_pspnet() -> None:
    with torch.device("meta"):
        assert count(PyramidPooling(2048)) == 4_198_400


def test_a_batch_of_one_goes_through_pooled_branches_in_training() -> None:
    x = torch.randn(1, 8, 5, 5)
    for layer in (ASPP(8, 4, (1, 2, 3)), PyramidPooling(8)):
        layer.train()(x).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_a_batch_of_one_leaves_running_statistics_and_two_update_them() -> None:
    layer = PooledConv(4, 4).train()
    layer(torch.randn(1, 4, 5, 5))
    assert not layer.norm.running_mean.any()
    layer(torch.randn(2, 4, 5, 5))
    assert layer.norm.running_mean.any()


def test_rates_double_at_output_stride_8() -> None:
    assert rates_at(16, (6, 12, 18)) == (6, 12, 18)
    assert rates_at(8, (6, 12, 18)) == (12, 24, 36)
    assert rates_at(32, (1, 6)) == (1, 3)


def test_aspp_concatenates_and_sees_the_whole_map() -> None:
    torch.manual_seed(0)
    layer = ASPP(8, 16, (1, 2, 3)).eval()
    assert layer.project.conv.in_channels == 5 * 16
    x = torch.zeros(1, 8, 40, 40)
    y = x.clone()
    y[..., 39, 39] = 1000.0  # further away than any dilation reaches
    assert (layer(x) - layer(y))[..., 0, 0].abs().max() > 0.01
    pooled = layer.pool(y)
    assert pooled.shape == (1, 16, 1, 1)
    torch.testing.assert_close(pooled, (layer.pool.conv(y.mean((2, 3), keepdim=True)) / (1 + 1e-5) ** 0.5).relu())


def test_parameters_of_the_forms_of_aspp() -> None:
    with torch.device("meta"):
        assert count(ASPP(2048)) == 15_535_104
        assert count(SummedASPP(2048, 21)) == 1_548_372
        assert count(SummedASPP(512, 21, hidden=1024)) == 37_877_652 - 14_714_688  # VGG16 without its trunk


def test_summed_aspp_adds_its_branches() -> None:
    layer = SummedASPP(4, 3, (1, 2))
    x = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(layer(x), layer.branches[0](x) + layer.branches[1](x))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules())
    assert 0.005 < layer.branches[0].weight.std() < 0.02


@pytest.mark.parametrize(
    ("size", "row"), [(4, [0.25, 0.75, 0.75, 0.25]), (16, [0.0625, 0.1875, 0.3125]), (64, [0.015625])]
)
def test_bilinear_kernels(size: int, row: list[float]) -> None:
    kernel = bilinear_kernel(size)
    one = kernel.sum(0) / (size / 2)
    torch.testing.assert_close(one[: len(row)], torch.tensor(row))
    torch.testing.assert_close(kernel, torch.outer(one, one))
    torch.testing.assert_close(kernel.sum(), torch.tensor((size / 2) ** 2))


@pytest.mark.parametrize("factor", [2, 8])
def test_bilinear_deconvolution_interpolates(factor: int) -> None:
    layer, x = bilinear_deconv(3, factor), torch.randn(1, 3, 6, 7)
    got = layer(x)
    assert got.shape[-2:] == (7 * factor, 8 * factor)
    edge = factor // 2
    got = got[..., edge:-edge, edge:-edge]
    want = F.interpolate(x, scale_factor=factor, mode="bilinear")
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(got[inside], want[inside])


@pytest.mark.parametrize("name", get_args(Upsampling))
@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("outputs", [4, 6])
def test_no_checkerboard_from_a_constant_map(name: Upsampling, scale: int, outputs: int) -> None:
    layer = make_upsampling(name, 4, outputs, scale)
    got = layer(torch.randn(1, 4, 1, 1).expand(1, 4, 8, 9))
    assert got.shape == (1, outputs, 8 * scale, 9 * scale)
    inside = got[..., 2 * scale : -2 * scale, 2 * scale : -2 * scale]
    assert inside.flatten(2).std(2).max() < 1e-5
    assert got.abs().max() > 0


def test_a_kernel_that_its_stride_does_not_divide_leaves_one() -> None:
    """The trap that the layers avoid: overlaps alternate 1, 2 for kernel 3 and stride 2."""
    odd = F.conv_transpose1d(torch.ones(1, 1, 8), torch.ones(1, 1, 3), stride=2)[0, 0, 2:-2]
    even = F.conv_transpose1d(torch.ones(1, 1, 8), torch.ones(1, 1, 4), stride=2)[0, 0, 2:-2]
    assert odd.unique().tolist() == [1.0, 2.0]
    assert even.unique().tolist() == [2.0]


def test_alignments() -> None:
    x = torch.randn(1, 2, 5, 6)
    corners = resize(x, (33, 41), align="ends")
    torch.testing.assert_close(corners, F.interpolate(x, size=(33, 41), mode="bilinear", align_corners=True))
    torch.testing.assert_close(corners, resize(x, (33, 41), 8.0, "corners"))
    torch.testing.assert_close(corners[..., ::8, ::8], x)
    larger, smaller = (resize(x, size, 8.0, "corners") for size in ((40, 48), (31, 37)))
    torch.testing.assert_close(larger[..., :33, :41], corners)
    assert torch.equal(larger[..., 39, 47], x[..., -1, -1])
    torch.testing.assert_close(smaller, corners[..., :31, :37])
    torch.testing.assert_close(resize(x, (40, 48), 8.0), resize(x, (40, 48), align="stretch"))
    torch.testing.assert_close(resize(x, (39, 47), 8.0), resize(x, (40, 48), 8.0)[..., :39, :47])
    with pytest.raises(ValueError, match="corners can only be aligned where the scale is known"):
        resize(x, (33, 41), align="corners")


def test_mistakes() -> None:
    with pytest.raises(UserError, match="does not make a map larger"):
        make_upsampling("transposed", 4, 4, 1)
