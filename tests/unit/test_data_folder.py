"""Folders of images and label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionkit.data.folder import FolderSource
from visionkit.errors import DataError
from visionkit.types import IGNORE

MAP = np.array([[0, 1, 2, 255], [2, 2, 0, 0]], np.uint8)


def make(folder: Path, masks: dict[str, Image.Image]) -> dict[str, str]:
    """Two images and these label maps."""
    for name in ("a.jpg", "sub/b.png"):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)
    for name, mask in masks.items():
        path = folder / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    return {"images": str(folder / "images"), "masks": str(folder / "masks")}


def both(mask: Image.Image) -> dict[str, Image.Image]:
    return {"a.png": mask, "sub/b.png": mask}


def palette_image() -> Image.Image:
    image = Image.fromarray(MAP, mode="P")
    image.putpalette([7] * 768)
    return image


@pytest.mark.parametrize(
    "mask", [Image.fromarray(MAP), Image.fromarray(MAP.astype(np.uint16)), palette_image()], ids=["8", "16", "palette"]
)
def test_label_maps(mask: Image.Image, tmp_path: Path) -> None:
    source = FolderSource(**make(tmp_path, both(mask)), classes=["x", "y", "z"])
    assert len(source) == 2
    assert source.labels["semantic"].names == ("x", "y", "z")
    sample = source.load(1, ["semantic"])
    assert sample.info.id == "sub/b.png"
    np.testing.assert_array_equal(sample.targets["semantic"].labels.numpy(), MAP)
    assert source.load(1, []).targets == {}


def test_another_value_may_be_ignored(tmp_path: Path) -> None:
    values = np.where(MAP == 255, 9, MAP).astype(np.uint16) * 1
    source = FolderSource(**make(tmp_path, both(Image.fromarray(values))), classes=["x", "y", "z"], ignore=9)
    np.testing.assert_array_equal(source.load(0, ["semantic"]).targets["semantic"].labels.numpy(), MAP)


def test_colours(tmp_path: Path) -> None:
    colors = np.zeros((2, 4, 3), np.uint8)
    colors[MAP == 0], colors[MAP == 1], colors[MAP == 2] = (255, 0, 0), (0, 0, 255), (1, 2, 3)
    palette = {"x": [255, 0, 0], "y": [0, 0, 255], "z": [1, 2, 3]}
    source = FolderSource(**make(tmp_path, both(Image.fromarray(colors))), palette=palette)
    labels = source.load(0, ["semantic"]).targets["semantic"].labels.numpy()
    np.testing.assert_array_equal(labels, np.where(MAP == 255, IGNORE, MAP))
    assert source.labels["semantic"].colors == ((255, 0, 0), (0, 0, 255), (1, 2, 3))


def test_images_alone(tmp_path: Path) -> None:
    source = FolderSource(images=make(tmp_path, {})["images"])
    assert len(source) == 2
    assert list(source.tasks) == []


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    mask = Image.fromarray(MAP)
    files = make(tmp_path, {"a.png": mask})
    with pytest.raises(DataError, match=r"b\.png: has no label map .*masks/sub/b\.png"):
        FolderSource(**files, classes=["x"])
    files = make(tmp_path, {"sub/b.png": mask, "c.png": mask})
    with pytest.raises(DataError, match=r"c\.png: a label map without an image"):
        FolderSource(**files, classes=["x"])
    (tmp_path / "masks" / "c.png").unlink()
    with pytest.raises(DataError, match="label maps need 'classes'"):
        FolderSource(**files)
    with pytest.raises(DataError, match=r"a\.png: 3 pixels of value 2; the 2 classes are 0 \.\.\. 1, and 255 is"):
        FolderSource(**files, classes=["x", "y"]).load(0, ["semantic"])
    make(tmp_path, {"a.png": Image.fromarray(MAP[:, :3])})
    with pytest.raises(DataError, match=r"a\.png: is 2x3 \(height x width\), but its image is 2x4"):
        FolderSource(**files, classes=["x", "y", "z"]).load(0, ["semantic"])
    make(tmp_path, {"a.png": Image.fromarray(np.zeros((2, 4, 3), np.uint8))})
    with pytest.raises(DataError, match=r"a\.png: is a colour image"):
        FolderSource(**files, classes=["x", "y", "z"]).load(0, ["semantic"])
    with pytest.raises(DataError, match="no such folder"):
        FolderSource(images=str(tmp_path / "none"))
