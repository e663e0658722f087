"""Drawn images of one shape: the same seed gives the same ones, and classes differ from one another."""

from __future__ import annotations

import pytest
import torch

from visionkit.data.class_shapes import CLASSES, ClassShapesSource
from visionkit.errors import UserError
from visionkit.types import ClassTarget


def test_a_seed_decides() -> None:
    one, same, other = (ClassShapesSource(images=12, seed=seed) for seed in (0, 0, 1))
    for i in range(12):
        assert torch.equal(one.load(i, ()).image, same.load(i, ()).image)
        assert not torch.equal(one.load(i, ()).image, other.load(i, ()).image)
    assert one.load(3, ()).targets == {}
    assert one.load(3, ()).info.id != other.load(3, ()).info.id


def test_classes_take_turns_and_differ_from_one_another() -> None:
    source = ClassShapesSource(images=600, size=24)
    images = torch.stack([source.load(i, ()).image[0] for i in range(600)]).flatten(1).float()
    targets = [source.load(i, ("class",)).targets["class"] for i in range(12)]
    assert [int(t.label) for t in targets if isinstance(t, ClassTarget)] == [*range(6), *range(6)]
    labels = torch.arange(600) % len(CLASSES)
    means = torch.stack([images[labels == label][:50].mean(0) for label in range(6)])
    rest = torch.arange(600) >= 300
    scaled = images / images.amax(1, keepdim=True) * means.max()
    found = torch.cdist(scaled[rest], means).argmin(1)
    assert float((found == labels[rest]).float().mean()) > 0.6  # by the nearest mean, without looking at shapes


def test_shapes_lie_inside_of_their_images() -> None:
    source = ClassShapesSource(images=300, size=32)
    for i in range(300):
        image = source.load(i, ()).image
        assert image.shape == (3, 32, 32)
        assert int(image[:, 0].max()) == int(image[:, -1].max()) == int(image[:, :, 0].max()) == 0
        assert int(image.max()) >= 150


def test_too_few_and_too_small_is_told() -> None:
    with pytest.raises(UserError, match="class_shapes: 0 images of 8 pixels; at least 1 of 16"):
        ClassShapesSource(images=0, size=8)
