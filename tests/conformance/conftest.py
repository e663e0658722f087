"""One small data set for all checks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from visionkit.data.shapes import ShapesSource, write_shapes
from visionkit.plugins import PluginManager


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight drawn scenes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(str(folder), 8, size=(96, 96))
    write_layouts(folder, folder.parent / "layouts")
    return folder


def write_layouts(shapes: Path, out: Path) -> None:
    """The scenes as PASCAL VOC, Cityscapes, ADE20K and CamVid lay their files out, all in one folder."""
    names = [file.stem for file in sorted((shapes / "images").iterdir())]
    for name in names:
        image, labels = (shapes / "images" / f"{name}.jpg"), shapes / "semantic" / f"{name}.png"
        for source, target in (
            (image, f"JPEGImages/{name}.jpg"),
            (labels, f"SegmentationClass/{name}.png"),
            (image, f"leftImg8bit/train/city/{name}_leftImg8bit.png"),
            (labels, f"gtFine/train/city/{name}_gtFine_labelIds.png"),
            (image, f"images/training/{name}.jpg"),
            (labels, f"annotations/training/{name}.png"),
            (image, f"train/{name}.png"),
            (labels, f"trainannot/{name}.png"),
        ):
            (out / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, out / target)  # an image is read by what is in it, whatever its ending
    lists = out / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names))


@pytest.fixture(scope="session")
def classes(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four folders, with a scene in each."""
    folder = tmp_path_factory.mktemp("classes")
    for name, file in zip(("cat", "cow", "dog", "owl"), sorted((shapes / "images").iterdir())):
        (folder / name).mkdir()
        shutil.copy(file, folder / name)
    return folder


@pytest.fixture(scope="session")
def source(shapes: Path) -> ShapesSource:
    return ShapesSource(size=96, root=str(shapes))


@pytest.fixture(scope="session")
def plugins() -> PluginManager:
    return PluginManager()
