"""COCO annotations: the source, the targets of every image, and the evaluation of perfect predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from pycocotools import mask as codec

from tests.fuzz.coco_changes import DETECTION_CHANGES, FILE_CHANGES
from tests.fuzz.harness import WrongResult
from tests.fuzz.mutations import mutate_json
from visionkit.data.coco import CocoSource
from visionkit.data.shapes import write_shapes
from visionkit.evaluate.coco import CocoBoxes, CocoEvaluator, CocoKeypoints, CocoMasks
from visionkit.types import InstanceTarget

TASKS = (None, None, ["boxes"], ["masks"], ["keypoints"], ["boxes", "masks"], ["boxes", "masks", "keypoints"])
EVALUATORS: dict[str, type[CocoEvaluator]] = {"boxes": CocoBoxes, "masks": CocoMasks, "keypoints": CocoKeypoints}

PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads:
  boxes: {{name: rcnn, anchor_sizes: [[8], [16], [32], [48], [64]], fcs: [16], rpn_before_nms: 20, rpn_after_nms: 10}}
  masks: {{name: roi_mask, convs: [8]}}
sources:
  fuzz:
    name: coco
    images: {folder}/images
    annotations: {folder}/instances.json
    on_error: {on_error}
    train: {{}}
    val: {{}}
train: {{steps: 1, batch_size: 2, workers: 0}}
evaluate: {{batch_size: 2}}
"""


def seeds(folder: Path) -> list[Path]:
    """Synthetic scenes with polygons, compressed and plain run lengths, crowds and keypoints."""
    write_shapes(str(folder / "scenes"), 4, 0, (48, 64))
    for name in ("panoptic", "semantic", "panoptic.json", "parameters.json"):
        path = folder / "scenes" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "scenes" / "options.json").write_text(json.dumps({"tasks": None, "on_error": "fail"}))
    data = json.loads((folder / "scenes" / "instances.json").read_text())
    plain = shutil.copytree(folder / "scenes", folder / "plain")
    for annotation in data["annotations"]:  # run lengths as numbers, which crowds have in COCO
        if isinstance(annotation["segmentation"], dict):
            mask = codec.decode(annotation["segmentation"])
            edges = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=-1))
            annotation["segmentation"]["counts"] = np.diff(edges, prepend=0).tolist()
            annotation["iscrowd"] = int(annotation["id"] % 2)
    (plain / "instances.json").write_text(json.dumps(data))
    return [folder / "scenes", plain]


def mutate(rng: Random, folder: Path) -> None:
    options = {"tasks": rng.choice(TASKS), "on_error": rng.choice(("fail", "skip"))}
    (folder / "options.json").write_text(json.dumps(options))
    mutate_json(rng, folder / "instances.json", FILE_CHANGES + DETECTION_CHANGES)


def run(folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    source = CocoSource(images=str(folder / "images"), annotations=str(folder / "instances.json"), **options)
    for line in source.problems():
        if len(line.splitlines()) != 1:
            raise WrongResult(f"a problem of more than one line: {line!r}")
    masks = raw_masks(folder / "instances.json")
    for index in range(len(source)):
        sample = source.load(index, source.tasks)
        size = sample.info.original_size
        if sample.image.dtype != torch.uint8 or sample.image.shape != (3, *size):
            raise WrongResult(f"image {index} is {sample.image.dtype} of shape {tuple(sample.image.shape)}, not {size}")
        for task, target in source.targets(index, source.tasks).items():
            if isinstance(target, InstanceTarget):
                check_instances(target, size, len(source.labels[task]), masks)
    for task, kind in EVALUATORS.items():
        if task in source.tasks and len(source):
            check_evaluation(source, task, kind)


def command(folder: Path) -> list[str]:
    on_error = json.loads((folder / "options.json").read_text())["on_error"]
    (folder / "pipeline.yaml").write_text(PIPELINE.format(folder=folder, on_error=on_error))
    return ["validate", str(folder / "pipeline.yaml"), "--all-images"]


def check_instances(
    target: InstanceTarget, size: tuple[int, int], num_classes: int, masks: Callable[[Any, tuple[int, int]], Any]
) -> None:
    """Raise ``WrongResult`` unless boxes, labels, areas, masks and keypoints are what their types promise.

    Args:
        masks: the mask of an annotation ID by pycocotools, or ``None`` where it is not comparable.
    """
    height, width = size
    boxes, areas = target.boxes.double(), target.areas.double()
    require(bool(torch.isfinite(boxes).all() and torch.isfinite(areas).all()), "boxes or areas are not finite")
    require(bool((boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()),
            f"a box reaches outside its image of {size}: {boxes.tolist()}")  # fmt: skip
    require(bool((boxes[:, 2:] > boxes[:, :2]).all()), f"a box is empty: {boxes.tolist()}")
    require(bool((areas >= 0).all()), f"a negative area: {areas.tolist()}")
    require(bool(((target.labels >= 0) & (target.labels < num_classes)).all()), f"labels {target.labels.tolist()}")
    require(len(set(target.ids.tolist())) == len(target), f"IDs that are not unique: {target.ids.tolist()}")
    if target.keypoints is not None:
        points = target.keypoints
        require(bool(torch.isfinite(points).all()), "keypoints are not finite")
        require(set(points[..., 2].unique().tolist()) <= {0.0, 1.0, 2.0}, "a visibility other than 0, 1 and 2")
    if target.masks is not None:
        bitmaps = target.masks.dense().numpy()
        require(bitmaps.shape == (len(target), height, width), f"masks of shape {bitmaps.shape} for an image of {size}")
        require(not bitmaps.size or int(bitmaps.max()) <= 1, "masks are not 0 and 1")
        for number, bitmap in zip(target.ids.tolist(), bitmaps):
            reference = masks(number, size)
            require(reference is None or np.array_equal(reference, bitmap),
                    f"the mask of annotation {number} has {int(bitmap.sum())} pixels; pycocotools decodes another of "
                    f"{0 if reference is None else int(reference.sum())}")  # fmt: skip


def raw_masks(path: Path) -> Callable[[Any, tuple[int, int]], np.ndarray | None]:
    """A function that decodes the segmentation of an annotation in the file as it is, by pycocotools alone.

    It returns ``None`` where the file is not what pycocotools expects: an ID is not a whole number or is given twice,
    or the segmentation is neither polygons of six or more numbers nor run lengths for the size of the image.
    """
    try:
        entries = json.loads(path.read_bytes())["annotations"]
        segmentations = {entry["id"]: entry.get("segmentation") for entry in entries}
        if len(segmentations) < len(entries) or not all(type(number) is int for number in segmentations):
            segmentations = {}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        segmentations = {}

    def decode(number: Any, size: tuple[int, int]) -> np.ndarray | None:
        return codec_mask(segmentations.get(number), size)

    return decode


def codec_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray | None:
    """(H, W) by pycocotools of a segmentation in its standard form, else ``None``."""
    if isinstance(segmentation, list):
        fits = segmentation and all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and _small(polygon)
            for polygon in segmentation
        )
        if fits:
            return codec.decode(codec.merge(codec.frPyObjects(segmentation, *size)))
    elif isinstance(segmentation, dict) and segmentation.get("size") == list(size):
        counts = segmentation.get("counts")
        if isinstance(counts, list) and _small(counts) and sum(counts) == size[0] * size[1]:
            return codec.decode(codec.frPyObjects([segmentation], *size))[..., 0]
    return None


def _small(numbers: Collection[Any]) -> bool:
    """Whether these are numbers of a size that pycocotools can work with."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 10_000 for v in numbers)


def check_evaluation(source: CocoSource, task: str, kind: type[CocoEvaluator]) -> None:
    """Evaluate perfect predictions with both backends, whose numbers must agree and be fractions or undefined."""
    labels, results = source.labels[task], []
    for backend in ("fast", "pycocotools"):
        evaluator = kind(source, labels, backend=backend)  # type: ignore[arg-type]
        for index in range(len(source)):
            info = source.load(index, ()).info
            target = source.targets(index, [task]).get(task)
            if target is not None:
                evaluator.add([kind.reads.from_target(target, info, labels)], [target], [info])
        results.append(evaluator.result())
    require(same(*results), f"{task}: the backends differ: {results}")
    for name, value in results[0].items():
        require(value is None or np.isnan(value) or value == -1 or 0 <= value <= 1, f"{task}: {name} is {value}")


def same(first: dict[str, float], second: dict[str, float]) -> bool:
    """Whether two results are equal to the last digit; NaN equals NaN."""
    return repr(first) == repr(second)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise WrongResult(message)
