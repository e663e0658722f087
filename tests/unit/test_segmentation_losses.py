"""Losses of a class for every pixel, against closed forms and torchvision."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from visionkit.errors import UserError
from visionkit.layers.segmentation_losses import SegmentationLoss

NAMES = ("cross_entropy", "ohem", "focal", "dice", "lovasz")
WEIGHTS = [1.0, 0.2, 3.0]


def case(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    labels = torch.randint(0, 3, (2, 6, 7))
    labels[0, :2] = 255
    return torch.randn(2, 3, 6, 7), labels


@pytest.mark.parametrize("lying", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("options", [{}, {"class_weights": WEIGHTS}, {"smoothing": 0.1}])
def test_cross_entropy_is_that_of_torch(options: dict[str, Any], lying: torch.memory_format) -> None:
    logits, labels = case()
    weight = torch.tensor(options["class_weights"]) if "class_weights" in options else None
    want = F.cross_entropy(logits, labels, weight, ignore_index=255, label_smoothing=options.get("smoothing", 0.0))
    logits = logits.contiguous(memory_format=lying)
    got = SegmentationLoss(3, {"name": "cross_entropy", **options})(logits, labels).value()
    torch.testing.assert_close(got, want)


def test_focal_of_two_classes_is_the_sigmoid_one() -> None:
    logits, labels = case()
    labels = labels.where((labels != 2), 0)
    known = labels != 255
    two = logits[:, :2]
    want = sigmoid_focal_loss(two[:, 1] - two[:, 0], labels.where(known, 0).float(), alpha=-1, gamma=2.0)[known]
    torch.testing.assert_close(SegmentationLoss(2, "focal")(two, labels).value(), want.mean())
    plain = SegmentationLoss(3, {"name": "focal", "gamma": 0.0})(logits, labels).value()
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels, ignore_index=255))


def test_ohem_counts_hard_pixels_alone() -> None:
    logits, labels = case()
    error = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    hard = (labels != 255) & (error.neg().exp() < 0.3)
    loss = SegmentationLoss(3, {"name": "ohem", "threshold": 0.3, "keep": 0.0})(logits, labels)
    torch.testing.assert_close(loss.value(), error[hard].mean())
    assert int(loss.count) == int(hard.sum())


def test_ohem_keeps_a_share_of_an_easy_image() -> None:
    logits, labels = case()
    easy = 100 * F.one_hot(labels[1:], 3).permute(0, 3, 1, 2).float() + logits[1:]
    loss = SegmentationLoss(3, {"name": "ohem", "keep": 0.25})(easy, labels[1:])
    assert int(loss.count) == -(-labels[1].numel() // 4)


def test_dice_of_certain_answers_is_that_of_sets() -> None:
    _, labels = case()
    answer = torch.randint(0, 3, labels.shape)
    logits = 1000.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2).float()
    images = []
    for found, truth in zip(answer, labels):
        found, truth = found[truth != 255], truth[truth != 255]
        pairs = [((found == c), (truth == c)) for c in truth.unique()]
        images.append(sum(1 - 2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs) / len(pairs))
    torch.testing.assert_close(SegmentationLoss(3, "dice")(logits, labels).value(), sum(images) / 2)


def test_lovasz_of_certain_answers_is_one_minus_iou() -> None:
    """On the corners of the cube the extension is the set function itself."""
    _, labels = case(3)
    answer = torch.randint(0, 3, labels.shape)
    logits = 1000.0 * F.one_hot(answer, 3).permute(0, 3, 1, 2).float()
    images = []
    for found, truth in zip(answer, labels):
        found, truth = found[truth != 255], truth[truth != 255]
        pairs = [((found == c), (truth == c)) for c in truth.unique()]
        images.append(sum(1 - (a & b).sum() / (a | b).sum() for a, b in pairs) / len(pairs))
    torch.testing.assert_close(SegmentationLoss(3, "lovasz")(logits, labels).value(), sum(images) / 2)


def test_lovasz_is_the_extension_by_definition() -> None:
    """The largest, over all orders of the pixels, of the errors times the growth of the set function along them."""
    logits, labels = torch.randn(1, 2, 1, 5), torch.tensor([[[0, 1, 1, 0, 1]]])
    p = logits[0].softmax(0).flatten(1)
    classes = []
    for c in range(2):
        truth = labels.flatten() == c
        error = (truth.float() - p[c]).abs()

        def lost(wrong: set[int], truth: Tensor = truth) -> float:
            flipped = torch.tensor([i in wrong for i in range(5)])
            found = truth ^ flipped
            return 1 - float((found & truth).sum() / (found | truth).sum())

        def along(order: tuple[int, ...], error: Tensor = error) -> float:
            return sum(
                float(error[i]) * (lost(set(order[: k + 1])) - lost(set(order[:k]))) for k, i in enumerate(order)
            )

        classes.append(max(along(order) for order in itertools.permutations(range(5))))
    torch.testing.assert_close(float(SegmentationLoss(2, "lovasz")(logits, labels).value()), sum(classes) / 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_every_loss(name: str, weights: list[float] | None) -> None:
    """It falls as the answer gets better, ignores what nobody knows, and nothing labelled is zero with a graph."""
    logits, labels = case()
    loss = SegmentationLoss(3, {"name": name, **({"class_weights": weights} if weights else {})})  # type: ignore
    truth = F.one_hot(labels.where(labels != 255, 0), 3).permute(0, 3, 1, 2).float()
    values = [float(loss(logits + k * truth, labels).value()) for k in (0, 1, 4)]
    assert values[0] > values[1] > values[2] >= 0

    other = logits.clone()
    other[0, :, :2] = 50 * torch.randn(3, 2, 7)
    torch.testing.assert_close(loss(other, labels).value(), loss(logits, labels).value())

    logits.requires_grad_()
    nothing = loss(logits, torch.full_like(labels, 255)).value()
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_images_do_not_disturb_each_other(name: str) -> None:
    logits, labels = case()
    loss = SegmentationLoss(3, name)  # type: ignore[arg-type]
    both, one, two = loss(logits, labels), loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(both.total, one.total + two.total)
    assert both.count == one.count + two.count


def test_mistakes() -> None:
    with pytest.raises(UserError, match="there is no 'hinge'"):
        SegmentationLoss(3, "hinge")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="dice has no 'gamma'"):
        SegmentationLoss(3, {"name": "dice", "gamma": 2.0})
    with pytest.raises(UserError, match="2 weights for 3 classes"):
        SegmentationLoss(3, {"class_weights": [1.0, 2.0]})
