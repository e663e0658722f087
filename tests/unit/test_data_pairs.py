"""Sources of pictures: pairs, two heaps, and paintings of label maps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from visionkit.data.pairs import PaintedSource, PairsSource, UnpairedSource, colors_of, edges
from visionkit.data.shapes import ShapesSource
from visionkit.data.transforms import HorizontalFlip, Resize, ScaleJitterCrop
from visionkit.errors import DataError, UserError
from visionkit.types import LabelSet, PictureTarget


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels[..., ::-1])


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture_of(sample, task: str = "picture") -> np.ndarray:  # type: ignore[no-untyped-def]
    target = sample.targets[task]
    assert isinstance(target, PictureTarget)
    return target.picture.permute(1, 2, 0).numpy()


def image_of(sample) -> np.ndarray:  # type: ignore[no-untyped-def]
    return sample.image.permute(1, 2, 0).numpy()


# -- pairs


def test_both_halves_of_a_file_are_a_pair(tmp_path: Path) -> None:
    left, right = noise(20, 30, 1), noise(20, 30, 2)
    write(tmp_path / "a.png", np.concatenate((left, right), 1))
    for reverse, image, picture in ((False, left, right), (True, right, left)):
        source = PairsSource(images=str(tmp_path), reverse=reverse)
        sample = source.load(0, source.tasks)
        np.testing.assert_array_equal(image_of(sample), image)
        np.testing.assert_array_equal(picture_of(sample), picture)
        np.testing.assert_array_equal(picture_of(sample, "unpaired"), picture)
        assert sample.info.original_size == (20, 30)


def test_two_folders_are_paired_by_name(tmp_path: Path) -> None:
    for i, name in enumerate(("b", "a")):
        write(tmp_path / "x" / f"{name}.png", noise(8, 9, i))
        write(tmp_path / "y" / f"{name}.jpg", noise(8, 9, 10 + i))
    source = PairsSource(images=str(tmp_path / "x"), pictures=str(tmp_path / "y"))
    assert [source.load(i, []).info.id for i in range(2)] == ["a.png", "b.png"]
    expected = cv2.imread(str(tmp_path / "y" / "b.jpg"))[..., ::-1]
    np.testing.assert_array_equal(picture_of(source.load(1, ["picture"])), expected)
    assert set(source.load(0, ["picture"]).targets) == {"picture"}
    turned = PairsSource(images=str(tmp_path / "x"), pictures=str(tmp_path / "y"), reverse=True)
    np.testing.assert_array_equal(image_of(turned.load(1, [])), expected)


def test_what_is_no_pair_is_told(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.png", noise(8, 9))
    write(tmp_path / "y" / "a.png", noise(9, 9))
    folders = {"images": str(tmp_path / "x"), "pictures": str(tmp_path / "y")}
    with pytest.raises(DataError, match=r"y/a.png: is 9x9 .*x/a.png is 8x9"):
        PairsSource(**folders).load(0, ["picture"])
    with pytest.raises(DataError, match=r"a.png: is 8x9 .* even width"):
        PairsSource(images=folders["images"]).load(0, [])
    write(tmp_path / "y" / "b.png", noise(8, 9))
    with pytest.raises(DataError, match=r"y/b.png: has no image of the same name"):
        PairsSource(**folders)
    write(tmp_path / "x" / "c.png", noise(8, 9))
    with pytest.raises(DataError, match=r"x/c.png: has no picture of the same name"):
        PairsSource(**folders)


@pytest.mark.parametrize(
    "transform", [HorizontalFlip(probability=1.0), ScaleJitterCrop(size=24, scale=(0.7, 1.5)), Resize(size=[18, 50])]
)
def test_a_pair_stays_together(transform, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    same = cv2.GaussianBlur(noise(32, 40), (7, 7), 2.0)
    write(tmp_path / "x" / "a.png", same)
    write(tmp_path / "y" / "a.png", same)
    source = PairsSource(images=str(tmp_path / "x"), pictures=str(tmp_path / "y"))
    for seed in range(5):
        torch.manual_seed(seed)
        sample = transform(source.load(0, ["picture"]))
        assert image_of(sample).shape == picture_of(sample).shape
        assert np.abs(image_of(sample).astype(int) - picture_of(sample)).mean() < 4.0


# -- two heaps


def test_every_picture_of_both_heaps_is_seen(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / "A" / f"{i}.png", np.full((12, 16, 3), i, np.uint8))
    for i in range(7):
        write(tmp_path / "B" / f"{i}.png", np.full((12, 16, 3), 100 + i, np.uint8))
    heaps = {"images": str(tmp_path / "A"), "pictures": str(tmp_path / "B")}
    source = UnpairedSource(**heaps)
    samples = [source.load(i, source.tasks) for i in range(len(source))]
    assert {int(image_of(s)[0, 0, 0]) for s in samples} == {0, 1, 2}
    assert sorted(int(picture_of(s, "unpaired")[0, 0, 0]) for s in samples) == list(range(100, 107))
    assert len({s.info.id for s in samples}) == 7
    assert list(source.tasks) == ["unpaired"]
    turned = UnpairedSource(**heaps, reverse=True)
    assert len(turned) == 7
    assert int(image_of(turned.load(6, []))[0, 0, 0]) == 106


def test_a_picture_of_another_shape_is_cut_in_the_middle(tmp_path: Path) -> None:
    picture = np.zeros((30, 90, 3), np.uint8)
    picture[:, 30:60] = 200
    write(tmp_path / "A" / "a.png", noise(12, 12))
    write(tmp_path / "B" / "b.png", picture)
    source = UnpairedSource(images=str(tmp_path / "A"), pictures=str(tmp_path / "B"))
    found = picture_of(source.load(0, ["unpaired"]), "unpaired")
    assert found.shape == (12, 12, 3)
    assert int(found.min()) == 200


# -- paintings


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    root = str(tmp_path_factory.mktemp("scenes"))
    return {"name": "shapes", "images": 2, "size": 64, "root": root}


def test_label_maps_are_painted_in_the_colours_of_their_classes(scenes: dict[str, object]) -> None:
    plain = ShapesSource(**{key: value for key, value in scenes.items() if key != "name"})  # type: ignore[arg-type]
    source = PaintedSource(source=scenes)
    sample = source.load(1, ["picture", "semantic", "boxes"])
    labels = plain.load(1, ["semantic"]).targets["semantic"].labels.numpy()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(picture_of(sample), colors_of(plain.labels["semantic"])[labels])
    assert set(sample.targets) == {"picture", "semantic", "boxes"}
    turned = PaintedSource(source=scenes, reverse=True)
    assert set(turned.tasks) == {"picture", "unpaired"}
    back = turned.load(1, ["picture"])
    np.testing.assert_array_equal(image_of(back), picture_of(sample))
    np.testing.assert_array_equal(picture_of(back), image_of(sample))


def test_classes_have_colours_of_their_own() -> None:
    colors = colors_of(LabelSet(tuple(f"class {i}" for i in range(20))))
    assert len({tuple(c) for c in colors[:20].tolist()}) == 20
    assert not colors[255].any()


def test_edges_lie_on_both_sides_of_a_border() -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 3
    expected = np.zeros((6, 8), np.uint8)
    expected[:, 3:5] = 255
    np.testing.assert_array_equal(edges(labels), np.stack((expected,) * 3, -1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"images": 2}, "must say which one"),
        ({"name": "shapez"}, "shapes"),
        ({"name": "shapes", "sise": 3}, "sise"),
        ({"name": "shapes", "tasks": ["boxes"]}, "has no label maps"),
    ],
)
def test_a_source_that_cannot_be_painted_is_told(config: dict[str, object], message: str, tmp_path: Path) -> None:
    given = {**config, "root": str(tmp_path / "scenes"), "images": 1} if config.get("name") == "shapes" else config
    with pytest.raises(UserError, match=message):
        PaintedSource(source=given)
