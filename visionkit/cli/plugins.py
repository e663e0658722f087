"""``visionkit plugins``: what there is to build pipelines from."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, PluginFiles, plugin_manager, write_text
from visionkit.errors import PluginError


def command(
    load: Annotated[bool, typer.Option("--load", help="Import every component, to see which ones work.")] = False,
    json_file: JsonFile = None,
    plugin: PluginFiles = None,
) -> None:
    """List the components that plugins offer, and the plugins that failed."""
    plugins = plugin_manager(plugin)
    for listed in plugins.components() if load else ():
        with contextlib.suppress(PluginError):  # it is in the list, with its reason
            plugins.load(listed.component.kind, listed.component.name)
    rows = [
        {
            "kind": listed.component.kind,
            "name": listed.component.name,
            "summary": listed.component.summary,
            "distribution": listed.distribution,
            "load": listed.load,
            "error": listed.error,
        }
        for listed in plugins.components()
    ]
    rows += [
        {
            "kind": "plugin",
            "name": problem.plugin,
            "summary": "",
            "distribution": problem.distribution,
            "load": "failed",
            "error": problem.reason,
        }
        for problem in plugins.problems
        if problem.plugin not in {listed.plugin for listed in plugins.components()}  # a contested name is listed above
    ]
    if json_file:
        write_text(json_file, json.dumps(rows, indent=2) + "\n")
    columns = ("kind", "name", "distribution", "load")
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    typer.secho("  ".join(column.ljust(widths[column]) for column in columns) + "  summary", bold=True)
    for row in rows:
        cells = [row[column].ljust(widths[column]) for column in columns]
        typer.secho("  ".join([*cells, row["error"] or row["summary"]]), fg="red" if row["load"] == "failed" else None)
