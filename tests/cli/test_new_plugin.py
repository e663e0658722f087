"""``visionkit new-plugin``: every kind of package passes its own tests, is found, and trains, from its first minute."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import pytest

from visionkit import cli
from visionkit.cli.new_plugin import EXAMPLES, Kind
from visionkit.config import check_arguments, load_pipeline
from visionkit.plugins import PluginManager
from visionkit.train import train

Run = Callable[..., tuple[int, str, str]]
KINDS = get_args(Kind)
NAMES = {kind: f"fresh_{kind}" for kind in KINDS}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Status, stdout and stderr of ``visionkit ARGUMENTS``, in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of every kind."""
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        with pytest.raises(SystemExit) as ended:
            cli.main(["new-plugin", name, "--kind", kind, "--out", str(folder / name)])
        assert ended.value.code == 0
    return folder


@pytest.fixture(scope="module")
def installed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from, that holds what the wheel of each package holds."""
    pytest.importorskip("hatchling")
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    build = "import os, sys, hatchling.build as h\nfor d in sys.argv[2:]: os.chdir(d); h.build_wheel(sys.argv[1])"
    folders = [str(written / name) for name in NAMES.values()]
    done = subprocess.run([sys.executable, "-c", build, str(wheels), *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture
def plugins(installed: Path, monkeypatch: pytest.MonkeyPatch) -> PluginManager:
    """All plugins, the new packages among them, as if they were installed."""
    monkeypatch.syspath_prepend(str(installed))
    return PluginManager()


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_is_found_and_its_pipeline_fits(kind: str, tmp_path: Path, run: Run) -> None:
    folder, name = tmp_path / "new", f"lone_{kind}"
    status, out, _ = run("new-plugin", name, "--kind", kind, "--file", "--out", str(folder))
    assert status == 0
    assert f"visionkit check {folder / name}.py" in out
    assert {path.name for path in folder.iterdir()} == {f"{name}.py", f"{name}.yaml"}
    plugins = PluginManager(files=[folder / f"{name}.py"])
    assert not plugins.problems
    check_arguments(load_pipeline(str(folder / f"{name}.yaml")), plugins)
    assert plugins.load(kind, name).__name__.startswith("Lone")
    pytest.importorskip("ruff")
    rules = ["-m", "ruff", "check", "--isolated", "--select", "I,F,E", "--line-length", "120"]
    linted = subprocess.run([sys.executable, *rules, str(folder)], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == set(KINDS)


def test_it_writes_a_complete_package(written: Path) -> None:
    for kind, name in NAMES.items():
        files = {str(path.relative_to(written / name)) for path in (written / name).rglob("*") if path.is_file()}
        assert files == {
            ".gitignore",
            "README.md",
            "pyproject.toml",
            f"src/{name}/__init__.py",
            f"src/{name}/{kind}.py",
            f"tests/test_{name}.py",
            f"pipelines/{name}.yaml",
        }
        assert not [path for path in (written / name).rglob("*") if path.is_file() and "${" in path.read_text()]


def test_what_it_writes_is_clean(written: Path) -> None:
    pytest.importorskip("ruff")
    own = ["--isolated", "--line-length", "120"]
    for command in (["check", *own, "--select", "E,F,W,UP,C4,SIM"], ["format", *own, "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, str(written)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_is_found_and_works(plugins: PluginManager) -> None:
    assert plugins.problems == []
    for kind, name in NAMES.items():
        assert plugins.load(kind, name).__module__ == f"{name}.{kind}"


def test_listing_a_package_imports_no_torch(written: Path) -> None:
    for name in NAMES.values():
        source = (written / name / "src" / name / "__init__.py").read_text()
        assert [line for line in source.splitlines() if line.startswith(("import", "from"))] == [
            "from visionkit import Component, hookimpl"
        ]


def test_every_package_passes_its_own_tests(
    written: Path, plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, as importing torch anew would take longer than all of them; but from a strange folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    tests = [str(written / name / "tests") for name in NAMES.values()]
    options = ["-q", "-c", "pytest.ini", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib"]
    junit = tmp_path / "found.xml"

    status = pytest.main([*options, f"--junit-xml={junit}", *tests])

    assert status == 0
    (suite,) = ElementTree.parse(junit).getroot()
    assert int(suite.attrib["tests"]) >= 3 * len(KINDS)
    assert suite.attrib["skipped"] == "0"


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_the_command_line_passes(
    kind: str, plugins: PluginManager, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run("check", NAMES[kind])
    assert status == 0, out + err
    assert "0 failed" in out


@pytest.mark.parametrize("kind", KINDS)
def test_its_pipeline_trains(
    kind: str, written: Path, plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = NAMES[kind]
    file = str(written / name / "pipelines" / f"{name}.yaml")
    check_arguments(load_pipeline(file), plugins)
    source = "drawn" if kind == "source" else "shapes"
    smaller = [f"sources.{source}.{split}.images={n}" for split, n in (("train", 4), ("val", 2))]
    settings = [*smaller, "train.steps=2", "train.warmup.steps=0", "train.batch_size=2", "train.workers=0"]

    metrics = train(load_pipeline(file, settings), plugins, tmp_path / "run", accelerator="cpu")

    assert f"{source}/semantic/mIoU" in metrics
    if kind == "head":
        assert metrics[f"shapes/{name}/MAE"] > 0
    if kind == "evaluator":
        assert 0 <= metrics["shapes/semantic/border_accuracy"] <= 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Head", "did you mean 'my_head'"),
        ("2fast", "begins with a letter"),
        ("lambda", "no word of Python's own"),
        ("torch", "Python module 'torch' already"),
        ("rcnn", "there is a head 'rcnn' already"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(
    name: str, says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = run("new-plugin", name)
    assert status == 2
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    status, _, err = run("new-plugin", "fresh", "--out", str(mine))
    assert status == 2
    assert "is there already" in err
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("new-plugin", "fresh", "--out", str(tmp_path / "empty"))[0] == 0
    assert (tmp_path / "empty/pyproject.toml").is_file()


def test_it_is_written_whole_or_not_at_all(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    status, _, err = run("new-plugin", "fresh", "--out", str(tmp_path / "fresh"))
    assert status == 2
    assert "No space left" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"), [("counting", "CountingHead"), ("my_head", "MyHead"), ("head", "HeadHead")]
)
def test_class_names_say_the_kind_once(name: str, expected: str, run: Run, tmp_path: Path) -> None:
    assert run("new-plugin", name, "--out", str(tmp_path / name))[0] == 0
    assert f"class {expected}(Head):" in (tmp_path / name / "src" / name / "head.py").read_text()
