"""Run every benchmark and print one table: ``python -m benchmarks [--quick] [NAME ...]``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

import benchmarks


def main() -> int:
    """0 if every ratio reaches its bar, else 1."""
    modules = pkgutil.iter_modules(benchmarks.__path__)
    names = sorted(module.name for module in modules if module.name[0] != "_" and not module.ispkg)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones, by default all: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, to see that they run")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    rows: list[dict[str, Any]] = []
    for name in options.names or names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)
    Console(width=None if sys.stdout.isatty() else 120).print(table(rows))
    return 0 if all(reached(row) for row in rows) else 1


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a measurement; ratios are times the peer's, and green where they reach their bar."""
    out = Table()
    for column in ("name", "ours", "peer", "ratio", "bar"):
        out.add_column(column, justify="right" if column in ("ratio", "bar") else "left")
    for row in rows:
        color = "green" if reached(row) else "red"
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        out.add_row(row["name"], str(row["ours"]), str(row["peer"]), f"[{color}]{row['ratio']:.2f}[/]", bar)
    return out


def reached(row: dict[str, Any]) -> bool:
    """Whether the ratio is as large as it must be; a row without a bar is only for information."""
    return row["bar"] is None or row["ratio"] >= row["bar"]


if __name__ == "__main__":
    sys.exit(main())
