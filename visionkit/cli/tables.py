"""Tables that several commands print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

NOT_AVAILABLE = "n/a"

# What to show of each family of metrics in a narrow table; the files hold all of them.
SHOWN = (
    *("AP", "AP50", "AP75", "mIoU", "pixel_accuracy", "PQ", "SQ", "RQ", "PCK@0.1", "PCKh@0.5", "mean_error_px"),
    *("L1", "PSNR", "SSIM", "LPIPS", "FID", "KID", "segmented_mIoU", "segmented_pixel_accuracy"),
)


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One table: a row a source and head, a column a metric; where that is too wide, a row's metrics in one column."""
    from rich.console import Console

    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        source, head, metric = key.split("/", 2)
        rows.setdefault((source, head), {})[metric] = value
    names = [name for name in SHOWN if any(name in row for row in rows.values())]
    # A head whose metrics are all unknown to the list (a plugin's own) shows its first three.
    for row in rows.values():
        if not any(name in row for name in SHOWN):
            names += [name for name in list(row)[:3] if name not in names]
    shown = {head: {name: in_words(row[name]) for name in names if name in row} for head, row in rows.items()}

    if not rows:
        return
    console = Console()
    table = _table(names, {head: [row.get(name, "") for name in names] for head, row in shown.items()})
    if console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        one = {head: ["  ".join(f"{name} {value}" for name, value in row.items())] for head, row in shown.items()}
        table = _table(["metrics"], one, justify="left")
    console.print(table)
    for (source, head), row in rows.items():
        if all(math.isnan(value) for value in row.values()):
            print(f"{source}: no ground truth that head '{head}' could be evaluated on")
    if any(text == NOT_AVAILABLE for row in shown.values() for text in row.values()):
        print(f"{NOT_AVAILABLE}: there was nothing to measure (null in JSON)")


def in_words(metric: float) -> str:
    """A metric as tables show it: ``n/a`` where there was nothing to measure."""
    return NOT_AVAILABLE if math.isnan(metric) else f"{metric:.3f}"


def _table(
    columns: Sequence[str],
    rows: Mapping[tuple[str, str], Sequence[str]],
    justify: Literal["left", "right"] = "right",
) -> Table:
    from rich.table import Table

    table = Table(title="Metrics on the held-out images", title_justify="left")
    table.add_column("source")
    table.add_column("head", style="bold")
    for name in columns:
        table.add_column(name, justify=justify)
    for head, cells in rows.items():
        table.add_row(*head, *cells)
    return table
