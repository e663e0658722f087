"""``visionkit coco-eval``: COCO's metrics of any results file, with no pipeline and no torch."""

from __future__ import annotations

import math
import sys
import warnings
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, cast

import typer

from visionkit.cli.options import JsonFile, write_text
from visionkit.errors import UserError
from visionkit.results.files import json_text

if TYPE_CHECKING:
    from visionkit.evaluate.coco_metrics import Type


class Kind(StrEnum):
    bbox = "bbox"
    segm = "segm"
    keypoints = "keypoints"
    panoptic = "panoptic"


class By(StrEnum):
    fast = "fast"
    pycocotools = "pycocotools"


def command(
    gt: Annotated[str, typer.Option("--gt", metavar="GT.json", help="The annotations, as COCO has them.")],
    dt: Annotated[str, typer.Option("--dt", metavar="DT.json", help="The results, as COCO has them.")],
    kind: Annotated[Kind, typer.Option("--type", help="What to compare.")],
    json_file: JsonFile = None,
    backend: Annotated[By, typer.Option("--backend", help="Who computes; the numbers are the same.")] = By.fast,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also the AP, or PQ, of every class.")] = False,
    gt_folder: Annotated[
        str | None,
        typer.Option("--gt-folder", metavar="DIR", help="Panoptic: PNGs of the annotations; else GT without .json."),
    ] = None,
    dt_folder: Annotated[
        str | None,
        typer.Option("--dt-folder", metavar="DIR", help="Panoptic: PNGs of the results; else DT without .json."),
    ] = None,
) -> None:
    """Evaluate a COCO results file with COCO's metrics."""
    from visionkit import evaluate  # which imports no more than is asked for

    if kind is Kind.panoptic:
        if backend is By.pycocotools:
            raise UserError("--backend pycocotools: it knows nothing of panoptic segmentation; leave the option out")
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            metrics = evaluate.evaluate_panoptic(gt, dt, gt_folder, dt_folder, per_class=per_class)
        for note in notes:
            print(f"warning: {note.message}", file=sys.stderr)
    elif gt_folder or dt_folder:
        raise UserError(f"--gt-folder and --dt-folder are for --type panoptic, not {kind.value}")
    else:
        metrics = evaluate.evaluate_coco(gt, dt, cast("Type", kind.value), backend=backend.value, per_class=per_class)
    if json_file:
        write_text(json_file, json_text(metrics, indent=1))
    _print(metrics, f"{kind.value}, {dt}")
    if -1.0 in metrics.values():
        print("-1: nothing to detect, as pycocotools reports it (no object of this class or size)", file=sys.stderr)


def _print(metrics: dict[str, float], title: str) -> None:
    """A table for people; for pipes a line a metric, name and number."""
    if not sys.stdout.isatty():
        width = max(map(len, metrics))
        print("\n".join(f"{name:{width}} {_text(value):>9}" for name, value in metrics.items()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("metric", style="bold")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, _text(value))
    Console().print(table)


def _text(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6f}"
