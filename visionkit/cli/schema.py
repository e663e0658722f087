"""``visionkit schema``: JSON Schema of pipelines, for editors."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from visionkit.cli.options import PluginFiles, plugin_manager, write_text


def command(
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Write there, not to the screen.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Print the JSON Schema of pipeline files, by which editors complete and check them."""
    from visionkit.config import json_schema

    text = json.dumps(json_schema(plugin_manager(plugin)), indent=2) + "\n"
    if out:
        write_text(out, text)
    else:
        print(text, end="")
