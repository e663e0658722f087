"""``visionkit profile``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PipelineName, PluginFiles, read_pipeline, write_text
from visionkit.errors import UserError

if TYPE_CHECKING:
    from visionkit.model.profile import Cost, Profile


def command(
    pipeline: PipelineName,
    size: Annotated[str, typer.Option("--size", metavar="HxW", help="Height and width of the images.")] = "480x640",
    images: Annotated[int, typer.Option("--images", min=1, help="Images in the batch.")] = 1,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Classes of heads that list none.")] = 80,
    boxes: Annotated[int, typer.Option("--boxes", min=0, help="Boxes an image for branches on boxes.")] = 100,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes that are timed, after a first.")] = 5,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda ...")] = "cpu",
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    json_file: JsonFile = None,
) -> None:
    """Cost of backbone, neck and each head, and what sharing saves.

    Needs no data: weights and images are random, and heads whose labels come from data have --classes classes.
    """
    height, width = _parse_size(size)
    description, plugins = read_pipeline(pipeline, overrides, plugin)

    import json

    import torch

    from visionkit.model.build import build_model, placeholder_labels, without_first_weights
    from visionkit.model.profile import profile_model

    description = without_first_weights(description, plugins)  # what the weights are changes no figure here
    model = build_model(description, plugins, placeholder_labels(description, plugins, classes))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device}: {str(error).splitlines()[0]}") from None
    profile = profile_model(model, (height, width), images=images, device=device, boxes=boxes, repeats=repeats)
    if json_file:
        extra = {"pipeline": description.name, "size": [height, width], "images": images, "device": device}
        write_text(json_file, json.dumps({**profile.to_dict(), **extra}, indent=1) + "\n")
    print_profile(
        profile, f"{description.name}, {images} x {height}x{width}, {device}, {torch.get_num_threads()} threads"
    )


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(f"--size {text}: give height and width in pixels, such as 480x640")
    return int(height), int(width)


def print_profile(profile: Profile, title: str) -> None:
    """A table of the parts, then one of the heads as models of their own."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=title, title_justify="left")
    table.add_column("part")
    for name in ("parameters", "GFLOP", "ms", "peak MB"):
        table.add_column(name, justify="right")
    for name, cost in profile.parts.items():
        table.add_row(name, *_cells(cost))
        for network, own in profile.networks.get(name, {}).items():
            table.add_row(f"  {network} ({own.phase})", f"{own.parameters:,}", "", "", "", style="dim")
    table.add_section()
    table.add_row("all heads, shared", *_cells(profile.total), style="bold")
    for name in profile.separate:
        table.add_row(f"{name} alone", *_cells(profile.alone[name]), style="dim")
    console.print(table)
    if profile.boxes is not None:
        console.print(f"Branches on boxes were given {profile.boxes} random boxes an image.", highlight=False)
    if len(profile.separate) > 1:
        fewer = profile.sharing()["times_fewer"]
        console.print(
            f"Against {len(profile.separate)} models of one head each ({', '.join(profile.separate)}, with the heads "
            f"they read), sharing takes {fewer['milliseconds']:.2f}x less time, {fewer['flops']:.2f}x fewer "
            f"operations and {fewer['parameters']:.2f}x fewer parameters.",
            highlight=False,
        )


def _cells(cost: Cost) -> tuple[str, ...]:
    memory = "" if cost.peak_bytes is None else f"{cost.peak_bytes / 1e6:.1f}"
    return f"{cost.parameters:,}", f"{cost.flops / 1e9:.2f}", f"{cost.milliseconds:.1f}", memory
