"""Options that several commands share, and the manager of plugins they all make."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionkit.results.files import write_atomically

if TYPE_CHECKING:
    from visionkit.config import Pipeline
    from visionkit.plugins import PluginManager

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="A YAML file, or the name of a shipped one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH.TO.KEY=VALUE", help="Change a key of the pipeline; may be repeated."),
]
PluginFiles = Annotated[
    list[str] | None, typer.Option("--plugin", metavar="FILE.py", help="Load a plugin file; may be repeated.")
]
JsonFile = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")]


def plugin_manager(files: Sequence[str] | None) -> PluginManager:
    """Every plugin at hand; says on stderr, a line each, what is wrong with any of them."""
    from visionkit.plugins import PluginManager

    plugins = PluginManager(files=files or ())
    for problem in plugins.problems:
        print(f"warning: {problem}", file=sys.stderr)
    return plugins


def read_pipeline(
    name_or_path: str, overrides: Sequence[str] | None, files: Sequence[str] | None
) -> tuple[Pipeline, PluginManager]:
    """A pipeline and every plugin at hand. A misspelt component is told at once: to import torch takes seconds."""
    from visionkit.config import check_names, load_pipeline

    pipeline = load_pipeline(name_or_path, overrides or ())
    plugins = plugin_manager(files)
    check_names(pipeline, plugins)
    return pipeline, plugins


def write_text(path: str, text: str) -> None:
    """Write a file whole or not at all."""
    write_atomically(Path(path), text)
