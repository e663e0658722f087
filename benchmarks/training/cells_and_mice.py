"""What sharing costs each task: ``pipelines/cells_and_mice.yaml`` trained together, and each source alone.

    python -m benchmarks.training.cells_and_mice [--out FOLDER] [--set KEY=VALUE ...]

Alone, a source is trained by the same pipeline without the others: as many steps, and as many of its own samples a
step as it has in the joint run. Takes as long as two joint runs; a run that is in the folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from visionkit.config import Pipeline, load_pipeline
from visionkit.config.load import parse_pipeline
from visionkit.plugins import PluginManager
from visionkit.train import train

SHOWN = ("AP", "AP50")


def alone(pipeline: Pipeline, source: str) -> Pipeline:
    """The pipeline with one source, the heads that it feeds, and its share of each batch."""
    tree = yaml.safe_load(pipeline.to_yaml())
    count = len(tree["sources"])
    assert len({s.weight for s in pipeline.sources.values()}) == 1, "sources of equal weight"
    assert tree["train"]["batch_size"] % count == 0, "a batch that the sources share evenly"
    tree["heads"] = {name: tree["heads"][name] for name in tree["sources"][source]["heads"]}
    tree["sources"] = {source: tree["sources"][source]}
    tree["train"]["batch_size"] //= count
    return parse_pipeline(yaml.safe_dump(tree, sort_keys=False), f"{pipeline.name} ({source} alone)")


def metrics_of(pipeline: Pipeline, out: Path) -> dict[str, float]:
    """Final metrics of a run, trained now or earlier."""
    if not (out / "metrics.json").exists():
        train(pipeline, PluginManager(), out, resume=(out / "checkpoints" / "last.pt").exists())
    return json.loads((out / "metrics.json").read_text())


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/cells_and_mice"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    pipeline = load_pipeline("cells_and_mice", options.overrides)
    together = metrics_of(pipeline, options.out / "together")
    table = Table(title="One backbone for all, and one a source")
    for column in ("source", "head", "metric", "together", "alone", "difference"):
        table.add_column(column, justify="left" if column in ("source", "head", "metric") else "right")
    for source in pipeline.sources:
        single = metrics_of(alone(pipeline, source), options.out / source)
        for key, value in single.items():
            _, head, metric = key.split("/", 2)
            if metric in SHOWN:
                table.add_row(
                    source, head, metric, f"{together[key]:.3f}", f"{value:.3f}", f"{together[key] - value:+.3f}"
                )
    Console().print(table)


if __name__ == "__main__":
    main()
