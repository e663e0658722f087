"""Deformable convolution, against the ordinary one where it is known what it must give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visionkit.layers.deform import DeformConv


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
