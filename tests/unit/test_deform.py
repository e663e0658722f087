"""Deformable convolution, against the ordinary one where it is known what it must give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from visionkit.layers.deform import DeformConv, deformed_conv


def offset_of(layer: DeformConv) -> nn.Parameter:
    """The bias of the offset branch: (dy, dx) of every tap in turn."""
    assert layer.offset.bias is not None
    return layer.offset.bias


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_new_layer_is_an_ordinary_convolution(stride: int, dilation: int) -> None:
    layer, x = DeformConv(3, 5, stride=stride, dilation=dilation), torch.randn(2, 3, 9, 11)
    plain = F.conv2d(x, layer.weight, layer.bias, stride, dilation, dilation)
    torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)


def test_modulation_starts_at_one_half() -> None:
    layer, x = DeformConv(3, 5, modulated=True, bias=False), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(layer(x), 0.5 * F.conv2d(x, layer.weight, padding=1), rtol=1e-5, atol=1e-5)
    assert layer.offset.out_channels == 27


def test_an_offset_of_whole_pixels_shifts_the_taps() -> None:
    layer, x = DeformConv(2, 3), torch.randn(1, 2, 8, 10)
    with torch.no_grad():
        offset_of(layer)[1::2] = 1.0  # every tap one column to the right
    right = F.pad(x, (0, 2, 1, 1))
    torch.testing.assert_close(layer(x), F.conv2d(right, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_the_offsets_learn() -> None:
    layer, x = DeformConv(2, 3), torch.randn(1, 2, 8, 10)
    layer(x).square().sum().backward()
    assert layer.offset.weight.grad is not None
    assert layer.offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "modulated"), [(1, 1, 1, False), (2, 1, 2, True), (1, 2, 1, True)]
)
def test_the_way_for_cpus_equals_torchvisions_kernel(stride: int, dilation: int, groups: int, modulated: bool) -> None:
    """Offsets of many pixels, beyond every edge of the image; values and all gradients."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 7, 9, dtype=torch.float64), torch.randn(5, 4, 3, 3, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64)
    size = [(side + 2 * dilation - 2 * dilation - 1) // stride + 1 for side in (7, 9)]
    offsets = torch.randn(2, 18 * groups, *size, dtype=torch.float64) * 4
    mask = torch.rand(2, 9 * groups, *size, dtype=torch.float64)
    given = [x, offsets, weight, bias, *([mask] if modulated else [])]
    results = []
    for conv in (deform_conv2d, deformed_conv):
        x, offsets, weight, bias, *rest = (t.clone().requires_grad_() for t in given)
        out = conv(x, offsets, weight, bias, stride, dilation, dilation, *rest)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, offsets, weight, bias, *rest])])
    torch.testing.assert_close(results[0], results[1])
