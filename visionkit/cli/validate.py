"""``visionkit validate``."""

from __future__ import annotations

from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PipelineName, PluginFiles, read_pipeline, write_text


def command(
    pipeline: PipelineName,
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    all_images: Annotated[
        bool, typer.Option("--all-images", help="Decode every image, not one batch a source.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Build everything, run one batch of each source through every head, and say what would fail."""
    description, plugins = read_pipeline(pipeline, overrides, plugin)

    import dataclasses
    import json

    from rich.console import Console
    from rich.markup import escape

    from visionkit.train.validate import validate

    console = Console(soft_wrap=True)
    checks = []
    for check in validate(description, plugins, all_images=all_images):
        mark = "[green]ok  [/green]" if check.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {escape(check.what)}: {escape(check.detail)}", highlight=False)
        checks.append(dataclasses.asdict(check))
    if json_file:
        write_text(json_file, json.dumps(checks, indent=1))
    failed = sum(not check["ok"] for check in checks)
    console.print(f"{len(checks) - failed} of {len(checks)} checks passed", highlight=False)
    if not failed and not all_images:
        console.print("of the images, one batch of each source was read; --all-images reads all", highlight=False)
    if failed:
        raise typer.Exit(2)
