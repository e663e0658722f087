"""Who may import whom, and what must stay light."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "cv2", "numpy", "pycocotools", "lightning_fabric", "visionkit.config"}


def modules_after(code: str) -> set[str]:
    """The modules that a fresh process has imported once ``code`` has run (and exited)."""
    program = f"""
import atexit, sys
atexit.register(lambda: print("\\n@@" + " ".join(sys.modules)))
{code}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("@@")[2].split())


def test_layers_plugins_and_descriptions_keep_apart(repository: Path) -> None:
    """The contracts of ``[tool.importlinter]`` in pyproject.toml."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(lint), "--no-cache"], cwd=repository, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_visionkit_costs_nothing() -> None:
    assert not modules_after("import visionkit") & (HEAVY | {"pydantic", "pluggy", "typer", "yaml"})


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["--version"], ["train", "--help"]])
def test_the_command_line_is_light_until_it_works(arguments: list[str]) -> None:
    modules = modules_after(f"from visionkit.cli import main\nmain({arguments})")
    assert "visionkit.cli" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("argument", ["--help", "plugins"])
def test_what_is_asked_for_most_imports_least(argument: str) -> None:
    modules = modules_after(f"from visionkit.cli import main\nmain(['{argument}'])")
    assert not modules & {"pydantic", "rich", "yaml"}
    assert any(m.startswith("visionkit_") for m in modules) == (argument == "plugins")


def test_listing_plugins_loads_no_component() -> None:
    modules = modules_after("from visionkit.plugins import PluginManager\nassert not PluginManager().problems")
    assert not modules & (HEAVY | {"pydantic", "yaml"})
    assert {"visionkit_backbones", "visionkit_semantic", "visionkit_rcnn"} <= modules
    assert not {m for m in modules if m.startswith("visionkit_") and "." in m}
