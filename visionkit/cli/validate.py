"""``visionkit validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    pipeline: Annotated[str, typer.Argument(help="A pipeline file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE.py", help="Load a plugin from a file.")] = None,
    all_images: Annotated[bool, typer.Option("--all-images", help="Decode every image, not one batch a source.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the checks here.")] = None,
) -> None:
    """Build everything, run one batch of each source through every head, and say what would fail."""
    import dataclasses
    import json

    from rich.console import Console
    from rich.markup import escape

    from visionkit.config import load_pipeline
    from visionkit.model.run import write_atomically
    from visionkit.plugins import PluginManager
    from visionkit.train.validate import validate

    description = load_pipeline(pipeline, overrides or [])
    console = Console(soft_wrap=True)
    checks = []
    for check in validate(description, PluginManager(files=plugin or []), all_images=all_images):
        mark = "[green]ok  [/green]" if check.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {escape(check.what)}: {escape(check.detail)}", highlight=False)
        checks.append(dataclasses.asdict(check))
    if json_file:
        write_atomically(json_file, json.dumps(checks, indent=1))
    failed = sum(not check["ok"] for check in checks)
    console.print(f"{len(checks) - failed} of {len(checks)} checks passed", highlight=False)
    if failed:
        raise typer.Exit(2)
