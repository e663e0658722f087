"""Panoptic quality of 480x640 PNGs, decoding included, against the public tool's way: PIL, a dictionary of id pairs."""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from PIL import Image

from visionkit.evaluate import evaluate_panoptic

HEIGHT, WIDTH, CLASSES, THINGS = 480, 640, 133, 80


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds an image, medians of interleaved calls; PQ is asserted equal.

    Ours uses all cores; the public tool is given one process. What a core does is told by the processor's time.
    """
    images = 6 if quick else 40
    with tempfile.TemporaryDirectory() as folder:
        files = write_set(Path(folder), images)
        values = [evaluate_panoptic(*files)["PQ"], evaluate_panoptic(*files, backend="numpy")["PQ"], peer(*files)]
        assert max(values) - min(values) < 1e-12, values
        ours, theirs = [], []
        for _ in range(3 if quick else 11):
            ours.append(_seconds(lambda: evaluate_panoptic(*files)))
            theirs.append(_seconds(lambda: peer(*files)))
    rows = []
    for which, name, bar in ((0, "an image", 8.0), (1, "an image, processor time", None)):
        mine, other = (1e3 * median(times[which] for times in side) / images for side in (ours, theirs))
        rows.append(
            {
                "name": f"panoptic quality, {name}",
                "ours": f"{mine:.2f} ms",
                "peer": f"PIL, dictionaries {other:.2f} ms",
                "ratio": other / mine,
                "bar": None if quick else bar,
            }
        )
    return rows


def peer(truth_file: Path, found_file: Path) -> float:
    """PQ as the public tool computes it, in one process."""
    truth, found = json.loads(truth_file.read_text()), json.loads(found_file.read_text())
    predictions = {entry["image_id"]: entry for entry in found["annotations"]}
    counts: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for entry in truth["annotations"]:
        other = predictions[entry["image_id"]]
        _count(
            _ids(truth_file.with_suffix("") / entry["file_name"]),
            {segment["id"]: segment for segment in entry["segments_info"]},
            _ids(found_file.with_suffix("") / other["file_name"]),
            {segment["id"]: dict(segment) for segment in other["segments_info"]},
            counts,
        )
    values = [iou / (tp + fp / 2 + fn / 2) for tp, fp, fn, iou in counts.values() if tp + fp + fn]
    return sum(values) / len(values)


def _ids(path: Path) -> np.ndarray:
    pixels = np.array(Image.open(path), dtype=np.uint32)
    return pixels[:, :, 0] + 256 * pixels[:, :, 1] + 256 * 256 * pixels[:, :, 2]


def _count(
    truth_map: np.ndarray, truth: dict, found_map: np.ndarray, found: dict, counts: dict[int, list[float]]
) -> None:
    for number, area in zip(*np.unique(found_map, return_counts=True)):
        if number:
            found[int(number)]["pixels"] = int(area)
    pairs = truth_map.astype(np.uint64) * 2**24 + found_map.astype(np.uint64)
    shared = {
        (int(pair) // 2**24, int(pair) % 2**24): int(pixels)
        for pair, pixels in zip(*np.unique(pairs, return_counts=True))
    }
    matched: tuple[set[int], set[int]] = set(), set()
    for (a, b), pixels in shared.items():
        if a not in truth or b not in found or truth[a]["iscrowd"]:
            continue
        if truth[a]["category_id"] == found[b]["category_id"]:
            iou = pixels / (truth[a]["area"] + found[b]["pixels"] - pixels - shared.get((0, b), 0))
            if iou > 0.5:
                counts[truth[a]["category_id"]][0] += 1
                counts[truth[a]["category_id"]][3] += iou
                matched[0].add(a)
                matched[1].add(b)
    crowds = {}
    for a, segment in truth.items():
        if segment["iscrowd"]:
            crowds[segment["category_id"]] = a
        elif a not in matched[0]:
            counts[segment["category_id"]][2] += 1
    for b, segment in found.items():
        if b not in matched[1]:
            excused = shared.get((0, b), 0) + shared.get((crowds.get(segment["category_id"], -1), b), 0)
            counts[segment["category_id"]][1] += excused / segment["pixels"] <= 0.5


def write_set(folder: Path, images: int) -> tuple[Path, Path]:
    """Scenes of ten segments, in as many runs and bytes as COCO's, and a prediction that is a little off."""
    rng = np.random.default_rng(0)
    categories = [{"id": i + 1, "name": f"class {i + 1}", "isthing": int(i < THINGS)} for i in range(CLASSES)]
    head: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": categories,
    }
    sides: dict[str, list[dict[str, Any]]] = {"truth": [], "found": []}
    for side in sides:
        (folder / side).mkdir()
    for image in range(images):
        scene, kinds = _scene(rng)
        moved = _warped(scene, rng)
        ids = np.concatenate(([0], 1 + rng.choice(2**24 - 1, len(kinds), replace=False)))
        for side, numbers in (("truth", scene), ("found", moved)):
            map_ids = ids[numbers]
            pixels = np.stack((map_ids % 256, map_ids // 256 % 256, map_ids // 65536), -1).astype(np.uint8)
            Image.fromarray(pixels).save(folder / side / f"{image}.png")
            infos = [
                {"id": int(ids[n]), "category_id": kinds[n - 1], "area": int(area), "iscrowd": 0}
                for n, area in zip(*np.unique(numbers, return_counts=True))
                if n
            ]
            sides[side].append({"image_id": image, "file_name": f"{image}.png", "segments_info": infos})
    for side, entries in sides.items():
        (folder / f"{side}.json").write_text(json.dumps(head | {"annotations": entries}))
    return folder / "truth.json", folder / "found.json"


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """A map of numbers, 0 is void, and the category of each."""
    stuff = rng.choice(np.arange(THINGS, CLASSES), 4, replace=False) + 1
    noise = cv2.resize(rng.random((3, 4), np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    scene = np.digitize(noise, np.quantile(noise, (0.04, 0.3, 0.55, 0.8))).astype(np.int32)
    things = (rng.choice(THINGS, 6) + 1).tolist()
    for number in range(len(things)):
        center, size = rng.random(2) * (WIDTH, HEIGHT), np.exp(rng.uniform(3, 5, 2))
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radius = 1 + 0.3 * np.sin(3 * angle + rng.random() * 6) + 0.03 * rng.standard_normal(40)
        outline = center + np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None] * size
        cv2.fillPoly(scene, [outline.round().astype(np.int32)], 5 + number)
    return scene, [*stuff.tolist(), *things]


def _warped(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scene with its edges moved by a few pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    dx, dy = (
        cv2.resize(rng.normal(0, 6, (6, 8)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(2)
    )
    moved = cv2.remap(scene.astype(np.uint8), x + dx, y + dy, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.int32)


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """By the clock, and of the processor in all threads."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]
