"""A panoptic pipeline learns twenty photographs of COCO by heart: learning and evaluation agree if PQ gets high.

    VISIONKIT_REAL_DATA=FOLDER python -m benchmarks.training.panoptic_overfit [--out FOLDER] [--set KEY=VALUE ...]

Half an hour on two CPU cores. Prints PQ of things, stuff and all; pictures are in the run folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

from visionkit.config import load_pipeline
from visionkit.data.panoptic_formats import convert
from visionkit.plugins import PluginManager
from visionkit.train import train

IMAGES = 20


def write_data(source: Path, out: Path) -> None:
    """The first images of a COCO panoptic data set with their segments, and their things as a detection data set."""
    data = json.loads((source / "panoptic.json").read_text())
    data["images"] = data["images"][:IMAGES]
    ids = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
    seen = {s["category_id"] for a in data["annotations"] for s in a["segments_info"]}
    data["categories"] = [c for c in data["categories"] if c["id"] in seen]
    for folder in ("images", "panoptic"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for entry, folder in [(i, "images") for i in data["images"]] + [(a, "panoptic") for a in data["annotations"]]:
        shutil.copyfile(source / folder / entry["file_name"], out / folder / entry["file_name"])
    (out / "panoptic.json").write_text(json.dumps(data))
    convert("coco", "detection", str(out / "panoptic.json"), str(out / "things.json"), things_only=True)


def main() -> None:
    """Train, unless it is done already, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/panoptic_overfit"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    data, run = options.out / "data", options.out / "run"
    if not (run / "metrics.json").exists():
        write_data(Path(os.environ["VISIONKIT_REAL_DATA"]) / "coco_panoptic", data)
        files = {"images": "images", "annotations": "things.json", "panoptic": "panoptic.json"}
        paths = [f"sources.photos.{s}.{key}={data / name}" for s in ("train", "val") for key, name in files.items()]
        pipeline = load_pipeline(str(Path(__file__).with_suffix(".yaml")), [*paths, *options.overrides])
        train(pipeline, PluginManager(), run, resume=(run / "checkpoints" / "last.pt").exists())
    for name, value in json.loads((run / "metrics.json").read_text()).items():
        if "/panoptic/" in name or name.endswith(("mIoU", "AP50")):
            print(f"{name:40} {value:.3f}")


if __name__ == "__main__":
    main()
