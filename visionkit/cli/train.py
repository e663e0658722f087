"""``visionkit train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionkit.cli.options import Overrides, PipelineName, PluginFiles, read_pipeline


def command(
    pipeline: PipelineName,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    accelerator: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; as torchrun says, else 1.", show_default=False)
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="Machines, each started by torchrun; as it says, else 1.", show_default=False),
    ] = None,
) -> None:
    """Train all heads of a pipeline together, and evaluate them."""
    description, plugins = read_pipeline(pipeline, overrides, plugin)

    import torch

    from visionkit.cli.tables import print_metrics
    from visionkit.train import train

    folder = out or Path("runs") / description.name
    metrics = train(description, plugins, folder, resume=resume, accelerator=accelerator, devices=devices, nodes=nodes)
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    print_metrics(metrics)
    typer.echo(f"run folder: {folder}")
