"""Convolutions that multiply less, against the usual ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionkit.layers.fast_conv import FastConv2d, keep_kernels, suits, use_fast_convs


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(found: Tensor, want: Tensor, tolerance: float = 5e-6) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def pair(
    inputs: int, outputs: int, *, bias: bool = True, dilation: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, FastConv2d]:
    """The same convolution in the usual way and in the fast one."""
    usual = nn.Conv2d(inputs, outputs, 3, 1, dilation, dilation, groups, bias).to(memory_format=torch.channels_last)
    fast = copy.deepcopy(usual)
    use_fast_convs(nn.Sequential(fast))
    assert type(fast) is FastConv2d
    return usual, fast


def image(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def is_fast(conv: nn.Conv2d, x: Tensor) -> bool:
    return type(conv(x).grad_fn).__name__ != "ConvolutionBackward0"


def assert_alike(usual: nn.Conv2d, fast: FastConv2d, x: Tensor) -> None:
    """Results, in the format of ``x``, and all gradients."""
    y = x.clone().requires_grad_()
    x.requires_grad_()
    found, want = fast(x), usual(y)
    assert found.is_contiguous(memory_format=torch.channels_last)
    close(found, want)
    above = torch.randn_like(want)
    found.backward(above)
    want.backward(above)
    close(x.grad, y.grad)
    for mine, theirs in zip(fast.parameters(), usual.parameters(), strict=True):
        close(mine.grad, theirs.grad)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 96, 16, 20), (1, 128, 21, 25), (3, 96, 30, 17), (40, 96, 3, 4), (1, 96, 1, 999)])
def test_results_and_gradients_are_those_of_a_convolution(shape, bias):
    """Even and odd sides, one image or many, maps that are worked on in one piece, in groups or row by row."""
    usual, fast = pair(shape[1], 104, bias=bias)
    assert is_fast(fast, image(*shape))
    assert_alike(usual, fast, image(*shape))


@pytest.mark.parametrize("size", [(24, 36), (45, 53)])
@pytest.mark.parametrize("step", [2, 3])
def test_dilated_ones(step, size):
    usual, fast = pair(96, 104, dilation=step)
    assert is_fast(fast, image(2, 96, *size))
    assert_alike(usual, fast, image(2, 96, *size))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(24, 30), (21, 7), (5, 13), (1, 1)])
@pytest.mark.parametrize("step", [2, 5, 12])
def test_dilated_ones_of_every_channel_by_itself(step, size, bias):
    """Also where the dilation reaches beyond the map."""
    usual, fast = pair(12, 12, dilation=step, groups=12, bias=bias)
    assert_alike(usual, fast, image(2, 12, *size))
    with torch.no_grad():
        x = image(2, 12, *size)
        close(fast(x), usual(x))
        assert fast(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("inputs", "outputs", "step"), [(32, 48, 1), (96, 40, 1), (64, 64, 2)])
def test_narrow_ones_are_only_learnt_in_another_way(inputs, outputs, step):
    usual, fast = pair(inputs, outputs, dilation=step)
    x = image(2, inputs, 20, 22)
    assert is_fast(fast, x)
    assert_alike(usual, fast, x)
    with torch.no_grad():
        assert torch.equal(fast(x), usual(x))
    fast.weight.requires_grad_(False)
    assert not is_fast(fast, x)
    keep_kernels(fast)
    assert fast.kernel is None


def test_a_map_of_many_chunks():
    usual, fast = pair(128, 512)
    x = image(2, 128, 50, 70)
    close(fast(x), usual(x))
    fast(x).square().sum().backward()
    usual(x).square().sum().backward()
    close(fast.weight.grad, usual.weight.grad)


def test_results_may_be_changed_in_place():
    usual, fast = pair(96, 96)
    x = image(1, 96, 20, 20)
    F.relu(fast(x), inplace=True).square().sum().backward()
    F.relu(usual(x)).square().sum().backward()
    close(fast.weight.grad, usual.weight.grad)


def test_it_is_as_exact_as_the_usual_way():
    usual, fast = pair(256, 256)
    x = image(1, 256, 24, 24)
    want = F.conv2d(x.double(), usual.weight.double(), usual.bias.double(), padding=1)
    worst = (usual(x) - want).abs().max()
    assert (fast(x) - want).abs().max() <= 2 * worst


def test_gradients_of_gradients():
    usual, fast = pair(96, 96)
    results = []
    for conv in (usual, fast):
        x = image(1, 96, 20, 20).copy_(torch.arange(400.0).view(20, 20) / 400).requires_grad_()
        (slope,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        results.append((x.grad, conv.weight.grad))
    for want, found in zip(*results):
        close(found, want)


def test_only_the_gradients_that_are_wanted():
    _, fast = pair(96, 96)
    fast.weight.requires_grad_(False)
    x = image(1, 96, 20, 20).requires_grad_()
    fast(x).sum().backward()
    assert x.grad is not None
    assert fast.weight.grad is None
    fast.weight.requires_grad_(True)
    fast(image(1, 96, 20, 20)).sum().backward()
    assert fast.weight.grad is not None


def test_which_convolutions_gain():
    assert suits(nn.Conv2d(96, 128, 3, padding=1))
    assert suits(nn.Conv2d(96, 128, 3, padding=2, dilation=2))
    for other in (
        nn.Conv2d(96, 128, 3), nn.Conv2d(96, 128, 3, padding=1, stride=2), nn.Conv2d(96, 128, 1),
        nn.Conv2d(96, 128, 3, padding=1, dilation=2), nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(96, 128, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=128),
    ):  # fmt: skip
        assert not suits(other)
        use_fast_convs(other)
        assert type(other) is nn.Conv2d


def test_small_maps_other_formats_and_half_precision_go_the_usual_way():
    _, fast = pair(96, 96)
    assert is_fast(fast, image(1, 96, 20, 20))
    assert not is_fast(fast, image(1, 96, 5, 5))
    assert not is_fast(pair(96, 96, dilation=12)[1], image(1, 96, 20, 20))  # phases of 2 x 2 would be mostly edges
    assert not is_fast(fast, image(1, 96, 20, 20).contiguous())
    assert not is_fast(fast, image(0, 96, 20, 20))
    assert not is_fast(fast.double(), image(1, 96, 20, 20).double())
    fast.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(image(1, 96, 20, 20)).dtype == torch.bfloat16


def test_whoever_watches_operators_sees_a_convolution():
    _, fast = pair(96, 96)
    with FlopCounterMode(display=False) as counted:
        fast(image(1, 96, 20, 20))
    assert counted.get_total_flops() == 2 * 400 * 96 * 96 * 9


def test_kernels_that_are_kept():
    usual, fast = pair(96, 96)
    keep_kernels(fast)
    for side in (9, 20):
        x = image(1, 96, side, side)
        assert is_fast(fast, x)
        close(fast(x), usual(x))
    assert fast.state_dict().keys() == usual.state_dict().keys()
