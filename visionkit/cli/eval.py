"""``visionkit eval``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PluginFiles, plugin_manager, write_text
from visionkit.results.files import check_output_folder, json_text


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
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a call that was stopped; its images are not predicted again.")
    ] = False,
) -> None:
    """Evaluate a run with the official metric of every head."""
    folder = out or run
    if out or run.is_dir():  # where there is no run, that is the error
        check_output_folder(folder)
    if json_file:
        check_output_folder(Path(json_file).parent)

    import dataclasses

    from visionkit.cli.tables import print_metrics
    from visionkit.config import load_pipeline
    from visionkit.data.label_maps import label_map_problems
    from visionkit.data.wiring import build_sources
    from visionkit.errors import RunError
    from visionkit.evaluate.runner import evaluate_model
    from visionkit.infer import pick_device
    from visionkit.layers.fast_conv import to_channels_last
    from visionkit.model.run import load_model
    from visionkit.results.lock import folder_lock

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
    for name, source in sources.items():
        for problem in (*source.problems(), *label_map_problems(name, source)):
            print(f"{name}: {problem}", file=sys.stderr)
    where = pick_device(device)
    model = loaded.model.to(where)
    if description.train.channels_last:
        to_channels_last(model)

    def publish(metrics: dict[str, float]) -> None:
        print_metrics(metrics)
        sys.stdout.flush()
        if json_file:
            write_text(json_file, json_text(metrics, indent=1))

    with folder_lock(folder):  # metrics of an earlier checkpoint must not get into the folder of a run that goes on
        evaluate_model(
            model, description, plugins, loaded.labels, sources, device=where, out=folder, on_metrics=publish,
            resume=resume,
        )  # fmt: skip
