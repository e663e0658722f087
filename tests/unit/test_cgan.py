"""The conditional GAN: its size, its noise, and that it makes what it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.data.class_folder import ClassFolderSource
from visionkit.errors import DataError
from visionkit.types import Batch, ClassPictures, ClassTarget, FeatureSpec, ImageInfo, LabelSet, Mean
from visionkit_translation.cgan import ConditionalGAN

NAMES = ("top", "left", "middle")


def head(**args: Any) -> ConditionalGAN:
    torch.manual_seed(0)
    return ConditionalGAN(FeatureSpec(), LabelSet(NAMES), **{"size": (8, 8), **args})


def drawn(labels: Tensor) -> Tensor:
    """(B, 3, 8, 8) in -1 ... 1: which part of a picture is bright, in shades of its own."""
    pictures = torch.zeros(len(labels), 8, 8)
    pictures[labels == 0, :3] = 1.0
    pictures[labels == 1, :, :3] = 1.0
    pictures[labels == 2, 2:6, 2:6] = 1.0
    pictures = pictures * (0.7 + 0.3 * torch.rand(len(labels), 1, 1)) + 0.1 * torch.rand(len(labels), 8, 8)
    return (pictures.clamp(0, 1) * 2 - 1)[:, None].expand(-1, 3, -1, -1)


def batch(labels: Tensor, ids: list[str] | None = None) -> Batch:
    ids = ids or [str(i) for i in range(len(labels))]
    info = tuple(ImageInfo(id=name, path="", original_size=(8, 8), size=(8, 8)) for name in ids)
    return Batch(drawn(labels.clamp(min=0)), info, tuple(ClassTarget(label) for label in labels))


def value(loss: Any) -> float:
    assert isinstance(loss, Mean)
    return float(loss.value().detach())


def test_both_networks_have_the_parameters_of_the_paper() -> None:
    digits = LabelSet(tuple("0123456789"))
    one = ConditionalGAN(FeatureSpec(), digits)
    assert sum(p.numel() for p in one.generator.parameters()) == 2_413_984
    assert sum(p.numel() for p in one.discriminator.parameters()) == 1_224_351


def test_noise_is_heard_from_the_beginning() -> None:
    generator = head(noise=50, loudness=2.0).generator
    with torch.no_grad():
        first = generator.noise(torch.rand(2000, 50))
    assert float(first.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(first.std()) == pytest.approx(2.0, rel=0.1)


def test_both_sides_pay_cross_entropy() -> None:
    one, data = head(dropout=0.0), batch(torch.tensor([0, 1, 2]))
    label = torch.eye(3)
    cross = torch.nn.functional.binary_cross_entropy_with_logits
    output = one({}, data, {})
    with torch.no_grad():
        real = one.discriminator((data.images.mean(1).flatten(1) + 1) / 2, label)
        torch.manual_seed(5)
        made = one.discriminator(one.generator(torch.rand(3, 100), label), label)
        torch.manual_seed(5)
        main = one.phase_losses("main", output, data)
        torch.manual_seed(5)
        other = one.phase_losses("discriminator", output, data)
    assert value(main["gan"]) == pytest.approx(float(cross(made, torch.ones(3))), rel=1e-4)
    assert value(other["fake"]) == pytest.approx(float(cross(made, torch.zeros(3))), rel=1e-4)
    assert value(other["real"]) == pytest.approx(float(cross(real, torch.ones(3))), rel=1e-4)


def test_an_image_of_no_class_is_left_out() -> None:
    one = head(dropout=0.0)
    output = one({}, batch(torch.tensor([0, -1])), {})
    torch.manual_seed(0)
    both = one.phase_losses("discriminator", output, batch(torch.tensor([0, -1])))
    assert int(both["real"].count) == 1
    nothing = one.losses(output, batch(torch.tensor([-1])))["gan"]
    assert value(nothing) == 0.0


@torch.no_grad()
def test_noise_belongs_to_the_image() -> None:
    one = head().eval()
    data = batch(torch.tensor([0, 1]), ["a", "b"])
    pair = one.predict(one({}, data, {}), data)
    alone = batch(torch.tensor([1]), ["b"])
    (again,) = one.predict(one({}, alone, {}), alone)
    torch.testing.assert_close(again.pictures, pair[1].pictures)
    assert not torch.equal(pair[0].pictures, pair[1].pictures)
    assert again.pictures.shape == (3, 3, 8, 8)
    assert set(again.files()) == {"_0_top", "_1_left", "_2_middle"}


def test_it_makes_what_it_is_asked_for() -> None:
    one = head(noise=8, loudness=1.0).train()
    main, other = (torch.optim.SGD(ps, lr=0.1, momentum=0.5) for ps in one.phases().values())
    for _ in range(400):
        data = batch(torch.randint(3, (32,)))
        output = one({}, data, {})
        for phase, optimizer in (("main", main), ("discriminator", other)):
            loss = torch.stack([cost.value() for cost in one.phase_losses(phase, output, data).values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    means = torch.stack([drawn(torch.full((64,), i))[:, 0].mean(0).flatten() for i in range(3)])
    with torch.no_grad():
        labels = torch.arange(3).repeat(50)
        made = one.eval()._made(torch.eye(3)[labels]) * 2 - 1
    found = torch.cdist(made, means).argmin(1)
    assert float((found == labels).float().mean()) >= 0.8
    # From one noise, another class is another picture: a generator that does not listen would fail here.
    data = batch(torch.tensor([0]))
    with torch.no_grad():
        (said,) = one.predict(one({}, data, {}), data)
    assert min(float((said.pictures[i] - said.pictures[j]).abs().mean()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1


# -- the source, and the types


def test_folders_are_classes(tmp_path: Path) -> None:
    for i, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.png"), np.full((4, 5, 3), i, np.uint8))
    source = ClassFolderSource(images=str(tmp_path))
    assert source.labels["class"].names == ("a", "b")
    samples = [source.load(i, ["class"]) for i in range(2)]
    assert [(s.info.id, int(s.targets["class"].label)) for s in samples] == [("a/1.png", 0), ("b/1.png", 1)]  # type: ignore[attr-defined]
    assert source.load(0, []).targets == {}
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"c: holds no files that end in"):
        ClassFolderSource(images=str(tmp_path))
    with pytest.raises(DataError, match=r"1.png: no such folder|holds no folders"):
        ClassFolderSource(images=str(tmp_path / "a" / "1.png"))


def test_a_class_can_be_mapped_or_left_out() -> None:
    table = torch.tensor([2, -1])
    assert [int(ClassTarget(torch.tensor(i)).relabel(table).label) for i in (0, 1, -1)] == [2, -1, -1]
    with pytest.raises(ValueError, match="one integer"):
        ClassTarget(torch.tensor([1]))


def test_pictures_of_classes_are_drawn_as_tiles() -> None:
    pictures = torch.zeros(3, 3, 4, 4)
    pictures[1] = 1.0
    made = ClassPictures(pictures, NAMES).draw(np.zeros((8, 8, 3), np.uint8), LabelSet(NAMES))
    expected = np.zeros((8, 8), np.uint8)
    expected[:4, 4:] = 255
    np.testing.assert_array_equal(made[..., 0], expected)


def test_pictures_have_their_own_size_whatever_the_image() -> None:
    one = ConditionalGAN(FeatureSpec(), LabelSet(NAMES), size=12)
    info = (ImageInfo(id=0, path="", original_size=(40, 60), size=(20, 30)),)
    data = Batch(torch.zeros(1, 3, 20, 30), info, ())
    with torch.no_grad():
        (said,) = one.predict(one({}, data, {}), data)
    assert said.pictures.shape == (3, 3, 12, 12)
    assert all(picture.shape == (12, 12, 3) for picture in said.files().values())
