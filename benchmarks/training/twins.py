"""The small twins of the shipped systems, trained on shapes for the same time, beside one another.

    python -m benchmarks.training.twins [--minutes 5] [--out FOLDER] [NAME ...]

Each is timed for a few steps first, and then trained for as many as fit into the minutes; a run that is in the folder
is not trained again. Prints a table, and writes ``sheet.jpg``: the first held-out images as each system sees them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from visionkit.config import load_pipeline
from visionkit.data.shapes import ShapesSource
from visionkit.draw import draw_prediction, sheet
from visionkit.infer import load
from visionkit.plugins import PluginManager
from visionkit.train import train

TWINS = {
    "mask_rcnn_shapes": ("boxes", "masks"),
    "retinanet_shapes": ("boxes",),
    "yolact_shapes": ("objects",),
    "panoptic_fpn_shapes": ("panoptic",),
    "upsnet_shapes": ("panoptic",),
}
"""Pipeline -> the heads that are drawn."""
METRICS = {
    "box AP50": ("boxes/AP50",),
    "mask AP50": ("masks/AP50", "objects/AP50"),
    "mIoU": ("semantic/mIoU",),
    "PQ": ("panoptic/PQ",),
}
"""Column -> what it shows, the first that is there."""
TRIAL = (1, 10, 40)
"""Steps of three trials. The first may write the data set; the difference of the others leaves start and end out."""
PICTURES = 6


def seconds_a_step(name: str) -> float:
    """Measured on the machine that trains."""
    taken = []
    for steps in TRIAL:
        with tempfile.TemporaryDirectory() as folder:
            few = [f"train.steps={steps}", "train.warmup.steps=1", "evaluate.max_images=1"]
            start = time.perf_counter()
            train(load_pipeline(name, few), PluginManager(), Path(folder) / "run")
            taken.append(time.perf_counter() - start)
    return (taken[2] - taken[1]) / (TRIAL[2] - TRIAL[1])


def trained(name: str, minutes: float, out: Path) -> dict[str, float]:
    """Final metrics of a twin, trained now or earlier."""
    if not (out / "metrics.json").exists():
        steps = int(60 * minutes / seconds_a_step(name))
        train(load_pipeline(name, [f"train.steps={steps}"]), PluginManager(), out)
    return json.loads((out / "metrics.json").read_text())


def row(name: str, out: Path, metrics: dict[str, float]) -> list[str]:
    """Steps, parameters, and the metrics that are there."""
    count = sum(p.numel() for p in load(out).model.parameters())
    shown = [[metrics[f"shapes/{key}"] for key in keys if f"shapes/{key}" in metrics] for keys in METRICS.values()]
    return [
        name,
        f"{load_pipeline(str(out / 'pipeline.yaml')).train.steps}",
        f"{count / 1e6:.2f} M",
        *(f"{values[0]:.3f}" if values else "" for values in shown),
    ]


def pictures(out: Path, names: list[str]) -> None:
    """``sheet.jpg``: a row an image, a column a system."""
    source = load_pipeline(names[0]).sources["shapes"].split("val")
    assert source is not None
    shapes = ShapesSource(**source.args)
    files = [shapes.load(i, []).info.path for i in range(PICTURES)]
    columns = []
    for name in names:
        predictor = load(out / name)
        columns.append([
            draw_prediction(result.image, {h: result.predictions[h] for h in TWINS[name]}, predictor.labels)
            for result in predictor.stream(files)
        ])  # fmt: skip
    tiles = [tile for row in zip(*columns) for tile in row]
    titles = [name.removesuffix("_shapes") for name in names] + [""] * (len(tiles) - len(names))
    cv2.imwrite(str(out / "sheet.jpg"), sheet(tiles, len(names), titles)[..., ::-1])


def main() -> None:
    """Train what is missing; print the table; write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TWINS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    options = parser.parse_args()
    table = Table(title=f"Trained for {options.minutes:g} minutes each, on shapes")
    for column in ("pipeline", "steps", "parameters", *METRICS):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    for name in options.names:
        table.add_row(*row(name, options.out / name, trained(name, options.minutes, options.out / name)))
    Console().print(table)
    pictures(options.out, options.names)


if __name__ == "__main__":
    main()
