"""``visionkit plugins``: what there is to build pipelines from."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, PluginFiles, plugin_manager, write_text
from visionkit.errors import PluginError, UserError
from visionkit.plugins import PluginManager, did_you_mean


def command(
    name: Annotated[str | None, typer.Argument(help="A component: print what it is and its arguments.")] = None,
    load: Annotated[bool, typer.Option("--load", help="Import every component, to see which ones work.")] = False,
    json_file: JsonFile = None,
    plugin: PluginFiles = None,
) -> None:
    """List the components that plugins offer, and the plugins that failed; or say all of one of them."""
    plugins = plugin_manager(plugin)
    if name is not None:
        _say_all(plugins, name)
        return
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


def _say_all(plugins: PluginManager, name: str) -> None:
    """What the components of this name are, of whatever kinds, and the arguments that a pipeline can give them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    from visionkit.config.describe import describe

    console = Console(highlight=False)
    found = [one.component for one in plugins.components() if one.component.name == name]
    if not found:
        known = [one.component.name for one in plugins.components()]
        raise UserError(f"no component '{name}'{did_you_mean(name, known)} (visionkit plugins lists them all)")
    for component in found:
        prose, arguments = describe(component.kind, plugins.load(component.kind, name))
        console.print(f"[bold]{component.kind} {escape(name)}[/bold]")
        for paragraph in (prose or component.summary).split("\n\n"):
            console.print(Padding(escape(" ".join(paragraph.split())), (0, 0, 1, 0)))
        for one in arguments:
            default = f" = {one.default}" if one.default else ""
            console.print(f"[bold]{escape(one.name)}[/bold]: {escape(one.type)}{escape(default)}")
            if one.meaning:
                console.print(Padding(escape(one.meaning), (0, 0, 0, 4)))
        console.print()
