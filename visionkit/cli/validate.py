"""``visionkit validate``."""

from __future__ import annotations

from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PipelineName, PluginFiles, plugin_manager, write_text


def command(
    pipeline: PipelineName,
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    all_images: Annotated[
        bool, typer.Option("--all-images", help="Decode every image, not a few of each source.")
    ] = False,
    full_batch: Annotated[
        bool, typer.Option("--full-batch", help="Take a step on whole batches, not on two images of each source.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Dry run: build everything, take one training and one evaluation step, and report all problems."""
    from visionkit.config import inspect_pipeline

    description, problems = inspect_pipeline(pipeline, overrides or ())
    plugins = plugin_manager(plugin)

    import dataclasses
    import json

    from rich.console import Console
    from rich.markup import escape

    from visionkit.train.validate import Check, validate

    console = Console(soft_wrap=True)
    checks = []
    if description is None:
        results = iter([Check("arguments", False, str(problem)) for problem in problems])
    else:
        results = validate(description, plugins, all_images=all_images, full_batch=full_batch, problems=problems)
    for check in results:
        mark = "[green]ok  [/green]" if check.ok else "[red]FAIL[/red]"
        console.print(f"{mark} {escape(check.what)}: {escape(check.detail)}", highlight=False)
        checks.append(dataclasses.asdict(check))
    if json_file:
        write_text(json_file, json.dumps(checks, indent=1))
    failed = sum(not check["ok"] for check in checks)
    console.print(f"{len(checks) - failed} of {len(checks)} checks passed", highlight=False)
    if not failed and not all_images:
        console.print("a few images of each source were read; --all-images reads all", highlight=False)
    if failed:
        raise typer.Exit(2)
