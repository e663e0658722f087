"""How far a network for one style gets in three minutes, with a VGG-16 of random weights.

    python -m benchmarks.training.style [--out FOLDER] [--steps 300] [--style FILE] [--vgg FILE] [--set KEY=VALUE ...]

The network and the losses of ``pipelines/style_transfer_coco.yaml``, on drawn scenes of 128 pixels, without a download;
three minutes on two CPU cores. Prints the losses over time, and exits with 1 where their sum did not fall by half. What
becomes of images is in the run folder, under ``pictures``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from visionkit.config import load_pipeline
from visionkit.data.shapes import write_shapes
from visionkit.plugins import PluginManager
from visionkit.train import train

SIDE = 128
LOSSES = ("content", "style", "variation")


def write_data(out: Path) -> None:
    """Drawn scenes, for training and to look at."""
    for split, count, seed in (("train", 400, 0), ("val", 4, 1)):
        write_shapes(str(out / split), count, seed=seed, size=(SIDE, SIDE))


def main() -> int:
    """Train, unless it is done already; print the table; 0 if the loss fell by half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/style"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--style", help="a picture; without it, drawn waves")
    parser.add_argument("--vgg", help="a file of weights, or `imagenet` to have them downloaded")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    data, run = options.out / "data", options.out / "run"
    if not (run / "weights.safetensors").exists():
        write_data(data)
        chosen = {"style": options.style, "vgg": options.vgg}
        places = {s: f"{{images: {data / s / 'images'}, pictures: {data / s / 'images'}}}" for s in ("train", "val")}
        changes = [
            f"sources={{scenes: {{name: pairs, train: {places['train']}, val: {places['val']}}}}}",
            f"train.steps={options.steps}", "train.batch_size=1", "train.log_every=10", "train.workers=1",
            f"train.transforms=[{{name: resize, size: {SIDE}}}]", f"evaluate.every={max(options.steps // 4, 1)}",
            f"heads.picture.style_size={SIDE}",
            *(f"heads.picture.{key}={value}" for key, value in chosen.items() if value),
        ]  # fmt: skip
        pipeline = load_pipeline("style_transfer_coco", [*changes, *options.overrides])
        train(pipeline, PluginManager(), run, resume=(run / "checkpoints" / "last.pt").exists())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["step"], [line["losses"][f"picture/{name}"] for name in LOSSES])
              for line in lines if "losses" in line]  # fmt: skip

    table = Table(title="Losses, means of ten steps")
    for column in ("step", *LOSSES, "sum"):
        table.add_column(column, justify="right")
    for step, losses in logged:
        table.add_row(str(step), *(f"{value:.3f}" for value in losses), f"{sum(losses):.3f}")
    first, last = (sum(losses) for _, losses in (logged[0], logged[-1]))
    Console().print(table, f"fell to {last / first:.0%}")
    return 0 if last <= 0.5 * first else 1


if __name__ == "__main__":
    sys.exit(main())
