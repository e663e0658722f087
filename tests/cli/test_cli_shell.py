"""The command line as a whole: listing, versions, exit statuses, broken plugins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import visionkit
from visionkit import cli
from visionkit.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Status, stdout and stderr of ``visionkit ARGUMENTS``, in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_help_lists_every_command_in_whole_lines(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(run: Run, name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0
    assert f"visionkit {name} " in out
    assert "--help" in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"visionkit {visionkit.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["plugns"], ["plugins", "--jsn", "x"], ["validate"], ["plugins", "a", "b"]])
def test_misuse_ends_with_status_2(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert "Error: " in err
    assert "Traceback" not in err
    assert out == ""


def test_a_misspelt_command_suggests_the_nearest(run: Run) -> None:
    assert "plugins" in run("plugns")[2]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("the file a.yaml: is wrong"), 2, "error: the file a.yaml: is wrong\n"),
        (UserError("a\nb.jpg: is wrong"), 2, "error: a\\nb.jpg: is wrong\n"),
        (OSError(28, "No space left on device", "x"), 2, "error: x: cannot be written: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError("out of order"), 1, "ValueError: out of order\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_exit_status(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str) -> None:
    def fail(files: object) -> None:
        raise error

    monkeypatch.setattr("visionkit.cli.plugins.plugin_manager", fail)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # typer mutes both after a broken pipe
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    ended, _, err = run("plugins")
    assert ended == status
    assert err.endswith(said)
    assert ("Traceback" in err) == (status == 1 and bool(said))


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m visionkit plugins | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kind")
    assert done.stderr == ""


def test_a_component_says_all_of_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run("plugins", "pix2pix")
    assert status == 0
    assert "Task: picture. Losses: gan, l1; real, fake in the phase discriminator." in out
    assert "\ndowns: int = 8\n    steps down of the U-Net" in out
    assert "\nspec" not in out
    status, _, err = run("plugins", "pix2pxi")
    assert status == 2
    assert "no component 'pix2pxi'; did you mean 'pix2pix'?" in err


def test_plugins_as_json(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "plugins.json"
    status, out, _ = run("plugins", "--json", str(file))
    assert status == 0
    rows = json.loads(file.read_text())
    assert all(list(row) == ["kind", "name", "summary", "distribution", "load", "error"] for row in rows)
    assert {"kind": "source", "name": "coco", "distribution": "visionkit", "load": "lazy"}.items() <= next(
        row for row in rows if row["name"] == "coco"
    ).items()
    assert all(row["name"] in out for row in rows)
    assert os.listdir(file.parent) == ["plugins.json"]


def test_a_broken_plugin_is_reported_and_stops_nobody(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "my_head.py"
    broken.write_text("import torch\n\ndef visionkit_components(:\n")
    status, out, err = run("plugins", "--plugin", str(broken), "--json", str(tmp_path / "out.json"))
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith(f"warning: plugin {broken}: {broken}:3: SyntaxError: ")
    assert "coco_bbox" in out
    (row,) = [row for row in json.loads((tmp_path / "out.json").read_text()) if row["kind"] == "plugin"]
    assert row["load"] == "failed"
    assert "SyntaxError" in row["error"]

    (tmp_path / "a.yaml").write_text("backbone: {name: timm, model: resnet18}\nheads: {mine: my_head}\n")
    status, out, _ = run("validate", str(tmp_path / "a.yaml"), "--plugin", str(broken))
    assert status == 2
    assert "no head 'my_head'" in out
    assert f"{broken}:3: SyntaxError" in out.split("no head 'my_head'")[1]


def test_components_that_cannot_be_loaded_are_shown(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from visionkit import Component, hookimpl\n\n@hookimpl\ndef visionkit_components():\n"
        "    return [Component('head', 'mine', ':Mine', 'not there')]\n"
    )
    arguments = ("plugins", "--plugin", str(tmp_path / "mine.py"), "--json", str(tmp_path / "out.json"))
    for more, load in (((), "lazy"), (("--load",), "failed")):
        assert run(*arguments, *more)[0] == 0
        rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())}
        assert rows["mine"]["load"] == load
    assert "has no 'Mine'" in rows["mine"]["error"]
    assert rows["coco"]["load"] == "ok"


def test_schema(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("schema")
    assert status == 0
    assert json.loads(out)["title"] == "visionkit pipeline"
    assert run("schema", "--out", str(tmp_path / "pipeline.json"))[:2] == (0, "")
    assert (tmp_path / "pipeline.json").read_text() == out
    (tmp_path / "file").write_text("")
    status, _, err = run("schema", "--out", str(tmp_path / "file" / "x.json"))
    assert status == 2
    assert "cannot be written" in err
