"""Pasted masks have torchvision's pixels."""

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from visionkit import rle
from visionkit.layers.paste import paste_masks


@pytest.mark.parametrize(("size", "height", "width"), [(28, 120, 90), (14, 33, 200), (1, 40, 40), (56, 64, 64)])
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_pixels_are_torchvisions(size, height, width, threshold):
    g = torch.Generator().manual_seed(size)
    masks = torch.rand(40, size, size, generator=g)
    corner = torch.rand(40, 2, generator=g) * torch.tensor([width, height])
    span = torch.rand(40, 2, generator=g) ** 3 * torch.tensor([width, height])  # many small ones, some of no size
    boxes = torch.cat((corner, corner + span), 1)
    boxes[:20] = boxes[:20].clamp(max=torch.tensor([width, height, width, height]))
    boxes[0] = torch.tensor([0.0, 0.0, width, height])
    boxes[1] = torch.tensor([-30.0, -20.0, width + 25.0, height + 7.0])
    boxes[2] = torch.tensor([width + 50.0, 5.0, width + 60.0, 20.0])  # outside
    expected = paste_masks_in_image(masks[:, None], boxes, (height, width))[:, 0]
    found = paste_masks(masks, boxes, height, width, threshold)
    assert [r["size"] for r in found] == [[height, width]] * 40
    pixels = np.stack([rle.decode(r) for r in found]).astype(bool)
    different = pixels != (expected > threshold).numpy()
    assert not different[((expected - threshold).abs() > 1e-5).numpy()].any()
    assert different.mean() < 1e-4


def test_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 30, 40) == []


def test_half_precision_and_gradients_do_not_matter():
    masks = torch.rand(3, 28, 28)
    boxes = torch.tensor([[2.0, 3.0, 20.0, 25.0]]).repeat(3, 1)
    half = paste_masks(masks.bfloat16().requires_grad_(), boxes.bfloat16(), 30, 40)
    assert half == paste_masks(masks.bfloat16().float(), boxes, 30, 40)
