"""``visionkit import-weights``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(help="Whose weights, such as torchvision/maskrcnn_resnet50_fpn.")],
    file: Annotated[Path, typer.Argument(help="A weights file or checkpoint: .pth, .pt, .safetensors or .pkl.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that weights do not contain; may be repeated."),
    ] = None,
    prefix: Annotated[
        str, typer.Option(help="Read only tensors whose names begin with this, where a file holds several networks.")
    ] = "",
    plugin: Annotated[list[str] | None, typer.Option(metavar="FILE.py", help="Load a plugin from a file.")] = None,
) -> None:
    """Make a run folder from weights that were trained elsewhere, ready for predict and eval."""
    from visionkit.errors import RunError
    from visionkit.model.importing import build_importer, import_model
    from visionkit.model.run import write_run
    from visionkit.plugins import PluginManager

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists already; give --out a new folder")
    plugins = PluginManager(files=plugin or [])
    importer = build_importer(plugins, name, settings or ())
    found = import_model(importer, file, plugins, prefix)
    write_run(out, found.pipeline, found.labels, found.model)
    parameters = sum(p.numel() for p in found.model.parameters())
    typer.echo(f"{name}: {parameters:,} parameters, heads {', '.join(found.pipeline.heads)}; run folder: {out}")
