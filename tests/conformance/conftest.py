"""One small data set for all checks."""

from __future__ import annotations

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
def source(shapes: Path) -> ShapesSource:
    return ShapesSource(size=96, root=str(shapes))


@pytest.fixture(scope="session")
def plugins() -> PluginManager:
    return PluginManager()
