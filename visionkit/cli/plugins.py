"""``visionkit plugins``: what there is to build pipelines from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, PluginFiles, plugin_manager, write_text


def command(
    load: Annotated[bool, typer.Option("--load", help="Import every component, to see which ones work.")] = False,
    json_file: JsonFile = None,
    plugin: PluginFiles = None,
) -> None:
    """List the components that plugins offer, and the plugins that failed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from visionkit.errors import PluginError

    plugins = plugin_manager(plugin)
    for listed in plugins.components() if load else ():
        try:
            plugins.load(listed.component.kind, listed.component.name)
        except PluginError:
            pass  # it is in the list, with its reason
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
    ] + [
        {"kind": "plugin", "name": p.plugin, "summary": "", "distribution": p.distribution, "load": "failed",
         "error": p.reason}
        for p in plugins.problems
    ]  # fmt: skip
    if json_file:
        write_text(json_file, json.dumps(rows, indent=2) + "\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("kind", "name", "load", "from", "summary"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("kind", "name"))
    for row in rows:
        cells = (row["kind"], row["name"], row["load"], row["distribution"], row["error"] or row["summary"])
        table.add_row(*(escape(cell) for cell in cells), style="red" if row["load"] == "failed" else None)
    Console().print(table)
