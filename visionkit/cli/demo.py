"""``visionkit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visionkit.cli.options import Overrides, plugin_manager


def command(
    out: Annotated[Path, typer.Option(help="Run folder; an earlier demo there is replaced.")] = Path("runs/demo"),
    overrides: Overrides = None,
) -> None:
    """Train four heads on drawn scenes from nothing, in a few minutes on a CPU."""
    import shutil
    import time

    from visionkit.cli.tables import print_metrics
    from visionkit.config import load_pipeline
    from visionkit.errors import RunError
    from visionkit.model.run import RunFolder
    from visionkit.results.lock import folder_lock
    from visionkit.train import train

    started = time.perf_counter()
    pipeline = load_pipeline("demo", overrides or [])
    if out.exists():
        if not (out / "pipeline.yaml").is_file():
            raise RunError(f"{out} exists and is no run folder; choose another --out")
        if list(RunFolder(out).pipeline().heads) != list(pipeline.heads):
            raise RunError(f"{out} holds a run of other heads than the demo's; choose another --out")
        with folder_lock(out):
            shutil.rmtree(out)
    metrics = train(pipeline, plugin_manager(None), out)
    print_metrics(metrics)
    pictures = sorted((out / "pictures").rglob("*.jpg"))
    typer.echo(f"{time.perf_counter() - started:.0f} s in all")
    typer.echo(f"metrics:  {out / 'metrics.json'}")
    typer.echo(f"pictures: {pictures[0].parent if pictures else out} ({len(pictures)}: input | truth | prediction)")
    typer.echo(f"next:     visionkit predict {out} IMAGE... --out predictions")
