"""Focal loss as dense detectors need it: sums over anchors, without targets written out."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from visionkit.layers.boxes import IGNORED
from visionkit.layers.focal import focal_background, focal_object, focal_sums
from visionkit.types import (
    FeatureSpec,
    LabelSet,
    Level,
)

WIDTH = 8
SPEC = FeatureSpec({f"p{k}": Level(WIDTH, 2**k) for k in range(3, 8)})
LABELS = LabelSet(tuple("abcd"), keypoints=("corner", "centre"))
SIZE = (96, 128)


def test_focal_loss_at_a_logit_of_0() -> None:
    zero = torch.zeros(1)
    assert focal_object(zero).item() == pytest.approx(0.0433217, abs=1e-7)
    assert focal_background(zero).item() == pytest.approx(0.1299651, abs=1e-7)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.5), (0.5, 0.0)])
def test_focal_sums_are_those_of_torchvision_with_targets_written_out(alpha: float, gamma: float) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(3, 200, 5) * 4).requires_grad_()
    matched = torch.randint(-2, 4, (3, 200))
    matched[2].clamp_(max=-1)
    labels = torch.randint(0, 5, (int((matched >= 0).sum()),))
    truth = torch.zeros_like(logits)
    image, anchor = (matched >= 0).nonzero(as_tuple=True)
    truth[image, anchor, labels] = 1
    each = sigmoid_focal_loss(logits, truth, alpha, gamma) * (matched != IGNORED)[..., None]
    own = focal_sums(logits, matched, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(own, each.sum((1, 2)), rtol=1e-4, atol=1e-4)
    weights = torch.tensor([1.0, 2.0, 3.0])
    (gradient,) = torch.autograd.grad((own * weights).sum(), logits)
    (expected,) = torch.autograd.grad((each.sum((1, 2)) * weights).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_focal_loss_of_sure_errors_and_sure_successes_is_finite() -> None:
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    for loss, wrong in ((focal_object(logits), 0), (focal_background(logits), 1)):
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert loss[wrong] > 40
        assert loss[1 - wrong] == 0


def test_the_slope_of_focal_sums_is_that_of_their_values() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 5, 3, dtype=torch.float64) * 5).requires_grad_()
    matched = torch.tensor([[0, -1, -2, -1, 3], [-1, -1, -1, -2, -1]])
    assert torch.autograd.gradcheck(lambda x: focal_sums(x, matched, torch.tensor([2, 0])), logits)
