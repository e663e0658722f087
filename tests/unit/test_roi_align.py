"""RoIAlign of features in channels_last is torchvision's, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor

from visionkit.layers.roi import RegionPool, roi_align
from visionkit.types import FeatureSpec, Level

SCALE = 0.25
PAIRED = {"atol": 1e-5, "rtol": 1e-5}


def features(channels: int = 5, height: int = 9, width: int = 13) -> Tensor:
    return torch.randn(3, channels, height, width).to(memory_format=torch.channels_last)


def regions(count: int) -> Tensor:
    """Boxes of every kind on images of 36 x 52 pixels: inside, over an edge, outside, empty and turned round."""
    centre = torch.rand(count, 2) * torch.tensor([100.0, 80.0]) - 25
    side = torch.rand(count, 2) * 60 - 5
    image = torch.randint(0, 3, (count, 1)).float()
    whole = torch.tensor([[1, 0, 0, 52, 36], [0, -4, -4, 0, 0], [2, 52, 36, 60, 44], [0, -900, -900, 900, 900]])
    return torch.cat((torch.cat((image, centre - side / 2, centre + side / 2), 1), whole.float()))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "points"), [(7, 2), (14, 2), (3, 1), (1, 4)])
def test_same_as_torchvision(size: int, points: int, aligned: bool) -> None:
    torch.manual_seed(size)
    x, rois = features(), regions(300)
    want = torchvision.ops.roi_align(x, rois, size, SCALE, points, aligned)
    got = roi_align(x, rois, size, SCALE, points, aligned)
    torch.testing.assert_close(got, want, **PAIRED)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("aligned", [False, True])
def test_same_gradient_as_torchvision(aligned: bool) -> None:
    torch.manual_seed(0)
    x, rois = features(), regions(100)
    factor, gradients = torch.randn(len(rois), 5, 7, 7), []
    for pool in (roi_align, torchvision.ops.roi_align):
        own = x.clone().requires_grad_()
        (pool(own, rois, 7, SCALE, 2, aligned) * factor).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


def test_rows_and_columns_at_the_edges() -> None:
    """A region over the whole of a map of one cell, and over its last row and column alone."""
    for height, width in ((1, 1), (1, 6), (6, 1)):
        x = features(4, height, width)
        rois = torch.tensor(
            [[0.0, 0, 0, width * 4, height * 4], [2, width * 4 - 4, height * 4 - 4, width * 4, height * 4]]
        )
        want = torchvision.ops.roi_align(x, rois, 2, SCALE, 2, False)
        torch.testing.assert_close(roi_align(x, rois, 2, SCALE, 2, False), want, **PAIRED)


def test_what_is_not_finite_is_outside() -> None:
    rois = torch.tensor([[0.0, float("nan"), 0, 8, 8], [0, 0, 0, float("inf"), 8]])
    assert roi_align(features(), rois, 2, SCALE, 2, False).isfinite().all()


def test_no_regions() -> None:
    x = features().requires_grad_()
    out = roi_align(x, torch.zeros(0, 5), 7, SCALE, 2, False)
    assert out.shape == (0, 5, 7, 7)
    out.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("points", [0, 2])
def test_pool_is_the_same_in_both_memory_formats(points: int) -> None:
    torch.manual_seed(0)
    spec = FeatureSpec({f"p{k}": Level(6, 2**k) for k in (2, 3, 4)})
    pool = RegionPool(spec, tuple(spec), 7, sampling_ratio=points, canonical_size=40)
    maps = {name: torch.randn(2, 6, 128 // level.stride, 96 // level.stride) for name, level in spec.items()}
    boxes = [torch.rand(count, 4) * 60 + torch.tensor([0.0, 0, 30, 30]) for count in (40, 0)]
    want = pool(maps, boxes)
    got = pool({name: x.to(memory_format=torch.channels_last) for name, x in maps.items()}, boxes)
    assert len(pool.level_of(boxes[0]).unique()) > 1
    torch.testing.assert_close(got, want, **PAIRED)


def test_pool_learns_alike_in_both_memory_formats() -> None:
    torch.manual_seed(0)
    spec = FeatureSpec({f"p{k}": Level(6, 2**k) for k in (2, 3)})
    pool = RegionPool(spec, tuple(spec), 7, canonical_size=40)
    boxes, gradients = [torch.rand(30, 4) * 60 + torch.tensor([0.0, 0, 30, 30])], []
    maps = {name: torch.randn(1, 6, 128 // level.stride, 96 // level.stride) for name, level in spec.items()}
    factor = torch.randn(30, 6, 7, 7)
    for order in (torch.contiguous_format, torch.channels_last):
        own = {name: x.clone(memory_format=order).requires_grad_() for name, x in maps.items()}
        (pool(own, boxes) * factor).sum().backward()
        gradients.append([x.grad for x in own.values()])
    for want, got in zip(*gradients):
        torch.testing.assert_close(got, want, **PAIRED)
