"""The small twins of the shipped systems, trained on shapes for the same time, beside one another.

    python -m benchmarks.training.twins [--group instances|points|semantic] [--minutes 5] [--out FOLDER] [NAME ...]

Each is timed for a few steps first, and then trained for as many as fit into the minutes; a run that is in the folder
is not trained again. Prints a table, and writes ``sheet.jpg``: the first held-out images as each system sees them.
Images a second are those of the whole predictor, all systems in turn; those that look at one object at a time are told
where the objects are, and look at all of an image.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from visionkit.config import load_pipeline
from visionkit.data.shapes import ShapesSource
from visionkit.draw import draw_prediction, sheet
from visionkit.evaluate.runner import metrics_of
from visionkit.infer import Predictor, load
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.types import BoxPrediction, InstanceTarget, KeypointPrediction, PanopticPrediction, Prediction

GROUPS = {
    "instances": ("mask_rcnn_shapes", "retinanet_shapes", "yolact_shapes", "panoptic_fpn_shapes", "upsnet_shapes"),
    "points": (
        "centernet_shapes",
        "cornernet_shapes",
        "centernet_triplet_shapes",
        "keypoint_heatmap_shapes",
        "keypoint_regression_shapes",
        "hourglass2_shapes",
        "centernet_pose_shapes",
        "keypoint_rcnn_shapes",
    ),
    "semantic": (
        "fcn_shapes",
        "unet_shapes",
        "xception_unet_shapes",
        "dilatednet_shapes",
        "deeplab_largefov_shapes",
        "deeplab_v2_shapes",
        "deeplab_v3_shapes",
        "deeplab_v3plus_shapes",
        "pspnet_shapes",
    ),
}
"""Pipelines that are put beside one another."""
METRICS = {
    "box AP50": ("coco_bbox", "AP50"),
    "mask AP50": ("coco_segm", "AP50"),
    "OKS AP": ("coco_keypoints", "AP"),
    "mIoU": ("semantic", "mIoU"),
    "PQ": ("pq", "PQ"),
    "PCK@0.1": ("pck", "PCK@0.1"),
}
"""Column -> the evaluator and the metric that it shows, of the first head that has them."""
TRIAL = (1, 10, 40)
"""Steps of three trials. The first may write the data set; the difference of the others leaves start and end out."""
PICTURES = 6
TIMED, BATCH, ROUNDS = 32, 8, 3
"""Images that are timed, how many at once, and how often."""
PADDING = 1.25
"""How much larger than the box of its object a crop is."""


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
    if not (out / "weights.safetensors").exists():
        steps = int(60 * minutes / seconds_a_step(name))
        train(load_pipeline(name, [f"train.steps={steps}"]), PluginManager(), out)
    return json.loads((out / "metrics.json").read_text())


def row(name: str, out: Path, metrics: Mapping[str, float], predictor: Predictor, speed: float) -> dict[str, str]:
    """What is known of a twin, by column."""
    pipeline = load_pipeline(str(out / "pipeline.yaml"))
    count = sum(p.numel() for p in predictor.model.parameters())
    shown = {"pipeline": name, "steps": f"{pipeline.train.steps}", "parameters": f"{count / 1e6:.2f} M"}
    for column, (evaluator, metric) in METRICS.items():
        values = [
            metrics[key]
            for head in predictor.model.order
            if evaluator in [config.name for config in metrics_of(pipeline, predictor.model, head)]
            # Where two evaluators of a head use one name, theirs stands before it.
            for key in (f"shapes/{head}/{evaluator}/{metric}", f"shapes/{head}/{metric}")
            if key in metrics
        ]
        shown |= {column: f"{values[0]:.3f}"} if values else {}
    return shown | {"images/s": f"{speed:.1f}"}


def table(rows: Sequence[Mapping[str, str]], title: str) -> Table:
    """A line a row, with the columns that any of them fills."""
    out = Table(title=title)
    names = ("pipeline", "steps", "parameters", *METRICS, "images/s")
    names = tuple(name for name in names if any(name in one for one in rows))
    for name in names:
        out.add_column(name, justify="left" if name == "pipeline" else "right")
    for one in rows:
        out.add_row(*(one.get(name, "") for name in names))
    return out


@dataclass(frozen=True)
class Scene:
    """A held-out image, (H, W, 3) uint8, and the boxes (N, 4) of its objects with keypoints."""

    image: np.ndarray
    boxes: Tensor


def held_out(name: str, count: int) -> list[Scene]:
    """The first held-out images."""
    split = load_pipeline(name).sources["shapes"].split("val")
    assert split is not None
    args = split.args.get("source", split.args)  # of the scenes whose objects are samples
    shapes = ShapesSource(**{key: value for key, value in args.items() if key not in ("name", "tasks")})
    scenes = []
    for i in range(min(count, len(shapes))):
        sample = shapes.load(i, {"keypoints"})
        target = cast(InstanceTarget, sample.targets["keypoints"])
        scenes.append(Scene(sample.image.permute(1, 2, 0).numpy(), target.boxes[~target.crowd]))
    return scenes


@dataclass(frozen=True)
class System:
    """A trained twin.

    Attributes:
        predictor: of its run.
        crops: it looks at one object at a time, and is told where they are, as in its evaluation.
    """

    predictor: Predictor
    crops: bool

    @classmethod
    def of(cls, run: Path) -> System:
        split = load_pipeline(str(run / "pipeline.yaml")).sources["shapes"].split("val")
        return cls(load(run), split is not None and split.name == "objects")

    @property
    def drawn(self) -> list[str]:
        """Heads that are shown: the panoptic one, which says it all, else those that find objects, else all."""
        made = {head: self.predictor.model.head(head).makes for head in self.predictor.model.order}
        panoptic = [head for head, kind in made.items() if issubclass(kind, PanopticPrediction)]
        return panoptic or [head for head, kind in made.items() if issubclass(kind, BoxPrediction)] or list(made)

    def look(self, scenes: Sequence[Scene]) -> list[dict[str, Prediction]]:
        """What it says of each image."""
        if not self.crops:
            return self.predictor.predict([scene.image for scene in scenes], batch_size=BATCH)
        cut = [crop(scene.image, box) for scene in scenes for box in scene.boxes]
        said = iter(self.predictor.predict([image for image, _ in cut], batch_size=BATCH))
        corners = iter([corner for _, corner in cut])
        (head,) = self.predictor.heads
        return [
            {head: joined(scene.boxes, [(next(said)[head], next(corners)) for _ in scene.boxes])} for scene in scenes
        ]


def crop(image: np.ndarray, box: Tensor) -> tuple[np.ndarray, tuple[int, int]]:
    """A square around a box, as much larger as the crops of training are, and its left top corner."""
    left, top, right, bottom = box.tolist()
    side = round(PADDING * max(right - left, bottom - top))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    around = cv2.copyMakeBorder(image, side, side, side, side, cv2.BORDER_CONSTANT)
    return np.ascontiguousarray(around[y + side : y + 2 * side, x + side : x + 2 * side]), (x, y)


def joined(boxes: Tensor, found: Sequence[tuple[Prediction, tuple[int, int]]]) -> KeypointPrediction:
    """What was said of the crops around these boxes, as one prediction of their image."""
    points, scores, labels = [torch.zeros(0, 0, 3)] * (not found), [torch.zeros(0)], [torch.zeros(0).long()]
    for one, corner in found:
        assert isinstance(one, KeypointPrediction)
        points.append(one.keypoints + torch.tensor([*corner, 0.0]))
        scores.append(one.scores)
        labels.append(one.labels)
    return KeypointPrediction(boxes, torch.cat(scores), torch.cat(labels), torch.cat(points))


def speeds(systems: Mapping[str, System], scenes: Sequence[Scene]) -> dict[str, float]:
    """Images a second of each; all take turns, so that a machine that slows down slows all."""
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for system in systems.values():
        system.look(scenes[:BATCH])
    for _ in range(ROUNDS):
        for name, system in systems.items():
            start = time.perf_counter()
            system.look(scenes)
            taken[name].append(time.perf_counter() - start)
    return {name: len(scenes) / median(times) for name, times in taken.items()}


def pictures(systems: Mapping[str, System], scenes: Sequence[Scene], out: Path) -> None:
    """``sheet.jpg``: a row an image, a column a system."""
    columns = []
    for system in systems.values():
        heads, labels = system.drawn, system.predictor.labels
        columns.append([
            draw_prediction(scene.image, {h: said[h] for h in heads}, labels, min_score=0.0 if system.crops else None)
            for scene, said in zip(scenes, system.look(scenes))
        ])  # fmt: skip
    tiles = [tile for row in zip(*columns) for tile in row]
    titles = [name.removesuffix("_shapes") for name in systems] + [""] * (len(tiles) - len(systems))
    cv2.imwrite(str(out / "sheet.jpg"), sheet(tiles, len(systems), titles)[..., ::-1])


def main() -> None:
    """Train what is missing; print the table; write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pipelines instead of a group")
    parser.add_argument("--group", choices=list(GROUPS), default="instances")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=Path("runs/twins"))
    options = parser.parse_args()
    names = options.names or GROUPS[options.group]
    metrics = {name: trained(name, options.minutes, options.out / name) for name in names}
    systems = {name: System.of(options.out / name) for name in names}
    scenes = held_out(names[0], TIMED)
    speed = speeds(systems, scenes)
    rows = [row(name, options.out / name, metrics[name], systems[name].predictor, speed[name]) for name in names]
    Console(width=None if sys.stdout.isatty() else 120).print(
        table(rows, f"Trained for {options.minutes:g} minutes each, on shapes")
    )
    pictures(systems, scenes[:PICTURES], options.out)


if __name__ == "__main__":
    main()
