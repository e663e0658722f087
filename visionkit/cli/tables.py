"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping

# What to show of each family of metrics in a narrow table; the files hold all of them.
SHOWN = ("AP", "AP50", "AP75", "mIoU", "pixel_accuracy", "PQ", "SQ", "RQ", "PCK@0.1", "PCKh@0.5", "mean_error_px")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """One table: a row a source and head, a column a metric."""
    from rich.console import Console
    from rich.table import Table

    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        source, head, metric = key.split("/", 2)
        rows.setdefault((source, head), {})[metric] = value
    names = [name for name in SHOWN if any(name in row for row in rows.values())]
    # A head whose metrics are all unknown to the list (a plugin's own) shows its first three.
    for row in rows.values():
        if not any(name in row for name in SHOWN):
            names += [name for name in list(row)[:3] if name not in names]
    table = Table(title="Metrics on the held-out images", title_justify="left")
    table.add_column("source")
    table.add_column("head", style="bold")
    for name in names:
        table.add_column(name, justify="right")
    for (source, head), row in rows.items():
        table.add_row(source, head, *(f"{row[name]:.3f}" if name in row else "" for name in names))
    Console().print(table)
