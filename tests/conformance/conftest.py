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
    return folder


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
