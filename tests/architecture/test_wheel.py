"""The wheel holds all that a user needs, and nothing else."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_it_ships_every_pipeline(wheel: zipfile.ZipFile, repository: Path) -> None:
    shipped = {name for name in wheel.namelist() if name.startswith("visionkit/pipelines/")}
    assert shipped == {f"visionkit/pipelines/{path.name}" for path in (repository / "pipelines").glob("*.yaml")}
    assert shipped


def test_it_ships_every_template_of_new_plugin(wheel: zipfile.ZipFile, repository: Path) -> None:
    templates = {str(path.relative_to(repository)) for path in (repository / "visionkit/templates").rglob("*.tmpl")}
    assert templates
    assert templates - set(wheel.namelist()) == set()


def test_it_ships_every_module(wheel: zipfile.ZipFile, repository: Path) -> None:
    names = set(wheel.namelist())
    for root, prefix in ((repository, "visionkit"), (repository / "plugins", "")):
        modules = {str(path.relative_to(root)) for path in (root / prefix).rglob("*.py")}
        assert modules - names == set()
    assert "visionkit/py.typed" in names


def test_it_ships_nothing_else(wheel: zipfile.ZipFile, repository: Path) -> None:
    plugins = {path.parent.name for path in (repository / "plugins").glob("*/__init__.py")}
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"visionkit"} | plugins


def test_every_plugin_and_the_command_are_entry_points(wheel: zipfile.ZipFile, repository: Path) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entry_points = configparser.ConfigParser()
    entry_points.read_string(wheel.read(name).decode())
    assert entry_points["console_scripts"]["visionkit"] == "visionkit.cli:main"
    plugins = {path.parent.name for path in (repository / "plugins").glob("*/__init__.py")}
    assert set(entry_points["visionkit"].values()) == plugins


def test_it_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert b"Apache License" in wheel.read(name)
