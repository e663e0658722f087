"""``visionkit eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PluginFiles, plugin_manager, write_text


def command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    pipeline: Annotated[
        str | None, typer.Option(help="Take sources and evaluation from this pipeline instead of the run's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where predictions and pictures go; the run folder.")] = None,
    json_file: JsonFile = None,
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
) -> None:
    """Evaluate a run with the official metric of every head."""
    import dataclasses
    import json

    import torch

    from visionkit.cli.tables import print_metrics
    from visionkit.config import load_pipeline
    from visionkit.data.wiring import build_sources
    from visionkit.errors import RunError
    from visionkit.evaluate.runner import evaluate_model
    from visionkit.infer import pick_device
    from visionkit.model.run import load_model, write_atomically

    plugins = plugin_manager(plugin)
    loaded = load_model(run, plugins, () if pipeline else tuple(overrides or ()))
    description = loaded.pipeline
    if pipeline:
        other = load_pipeline(pipeline, overrides or [])
        description = dataclasses.replace(other, backbone=description.backbone, neck=description.neck,
                                          heads=description.heads)  # fmt: skip
    sources = build_sources(description, plugins, "val")
    if not sources:
        raise RunError(f"{pipeline or run}: nothing to evaluate on: no source has a `val` split "
                       f"(give one with --set sources.NAME={{name: coco, val: ...}} or --pipeline FILE)")  # fmt: skip
    where = pick_device(device)
    model = loaded.model.to(where)
    if description.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = evaluate_model(
        model, description, plugins, loaded.labels, sources, device=where, out=out or run, report=None
    )
    text = json.dumps(metrics, indent=1)
    write_atomically((out or run) / "metrics.json", text)
    if json_file:
        write_text(json_file, text)
    print_metrics(metrics)
