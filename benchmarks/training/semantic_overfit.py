"""A semantic pipeline learns twenty photographs of COCO by heart: learning and evaluation agree if mIoU gets high.

    VISIONKIT_REAL_DATA=FOLDER python -m benchmarks.training.semantic_overfit [--out FOLDER] [--set KEY=VALUE ...]

Twenty minutes on two CPU cores at most. Prints mIoU and accuracies on the images that it was trained on; pictures are
in the run folder. Label maps are those of COCO's panoptic annotations, things and stuff alike.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks.training.panoptic_overfit import write_data
from visionkit.config import load_pipeline
from visionkit.plugins import PluginManager
from visionkit.train import train


def main() -> None:
    """Train, unless it is done already, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/semantic_overfit"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    data, run = options.out / "data", options.out / "run"
    if not (run / "metrics.json").exists():
        write_data(Path(os.environ["VISIONKIT_REAL_DATA"]) / "coco_panoptic", data)
        files = {"images": "images", "panoptic": "panoptic.json"}
        paths = [f"sources.photos.{s}.{key}={data / name}" for s in ("train", "val") for key, name in files.items()]
        pipeline = load_pipeline(str(Path(__file__).with_suffix(".yaml")), [*paths, *options.overrides])
        train(pipeline, PluginManager(), run, resume=(run / "checkpoints" / "last.pt").exists())
    for name, value in json.loads((run / "metrics.json").read_text()).items():
        print(f"{name:40} {value:.3f}")


if __name__ == "__main__":
    main()
