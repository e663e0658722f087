"""The weight map of U-Net, against distances that are taken one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from visionkit.errors import UserError
from visionkit.layers.border_weights import border_weights
from visionkit.types import Batch, FeatureSpec, ImageInfo, LabelSet, Level, SemanticTarget
from visionkit_semantic.unet import UNet


def test_weights_follow_the_formula() -> None:
    labels = torch.zeros(24, 30, dtype=torch.uint8)
    labels[3:9, 2:8] = 1
    labels[3:9, 10:16] = 1
    labels[14:20, 5:25] = 2
    labels[0, 29] = 255
    parts = [labels == 2, (labels == 1) & (torch.arange(30) < 9), (labels == 1) & (torch.arange(30) > 9)]
    places = torch.stack(torch.meshgrid(torch.arange(24.0), torch.arange(30.0), indexing="ij"), -1).view(-1, 2)
    distances = torch.stack([torch.cdist(places, part.nonzero().float()).amin(1) for part in parts])
    near = distances.sort(0).values[:2].sum(0).view(24, 30)
    want = (10 * torch.exp(-near.square() / 50)).where(labels == 0, 0.0)
    torch.testing.assert_close(border_weights(labels), want, rtol=1e-4, atol=1e-4)


def test_narrow_gaps_weigh_most_and_one_object_has_none() -> None:
    labels = torch.zeros(20, 40, dtype=torch.uint8)
    labels[:, 5:10] = 1
    assert not border_weights(labels).any()
    labels[:, 12:20] = 1
    labels[:, 30:35] = 1
    weights = border_weights(labels, w0=4.0, sigma=3.0)
    assert weights[10, 10] > weights[10, 25] > 0
    assert weights.max() <= 4
    assert not weights[labels == 1].any()


def test_unet_learns_gaps_with_these_weights() -> None:
    truth = torch.zeros(32, 32, dtype=torch.uint8)
    truth[:, 5:12] = 1
    truth[:, 14:22] = 1
    truth[0] = 255
    spec = FeatureSpec({"c0": Level(4, 1), "c1": Level(4, 2)})
    head = UNet(spec, LabelSet(("background", "cell")), levels=["c1", "c0"], border=(10.0, 5.0))
    x = {"c0": torch.randn(1, 4, 32, 32), "c1": torch.randn(1, 4, 16, 16)}
    info = ImageInfo(0, "", (32, 32), (32, 32), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    batch = Batch(torch.zeros(1, 3, 32, 32), (info,), (SemanticTarget(truth),))
    output = head(x, batch, {})
    error = F.cross_entropy(output.logits, truth[None].long(), ignore_index=255, reduction="none")
    want = ((1 + border_weights(truth)) * error).sum() / (31 * 32)
    torch.testing.assert_close(head.losses(output, batch)["segmentation"].value(), want)
    with pytest.raises(UserError, match="go with cross_entropy, not with dice"):
        UNet(spec, LabelSet(("a",)), levels=["c1", "c0"], loss="dice", border=(10.0, 5.0))
