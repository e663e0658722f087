"""COCO evaluation from JSON files to numbers: visionkit's fast backend against pycocotools, each in its own process.

The set is synthetic and of the size of COCO's validation set: 5,000 images, 36,000 objects of 80 classes and 500,000
boxes or masks; for keypoints 11,000 persons and 100,000 detections (20 an image, as many as COCO counts).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pycocotools import mask as codec

HEIGHT, WIDTH, CLASSES = 480, 640, 80
BARS = {"bbox": 20.0, "segm": 8.0, "keypoints": 15.0}

OURS = """
import sys
from visionkit.evaluate import evaluate_coco
print(evaluate_coco(*sys.argv[1:3], sys.argv[3]))
"""
PEER = """
import sys
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
truth = COCO(sys.argv[1])
run = COCOeval(truth, truth.loadRes(sys.argv[2]), sys.argv[3])
run.evaluate(); run.accumulate(); run.summarize()
print(run.stats.tolist())
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Seconds of the whole process, medians of interleaved runs; the numbers are asserted equal to the last bit."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, bar in BARS.items():
            truth, results = write_set(Path(folder), kind, images=250 if quick else 5000)
            ours, peer = [], []
            for repeat in range(3):
                seconds, mine = _timed(OURS, truth, results, kind)
                ours.append(seconds)
                if repeat == 0 or quick:
                    seconds, theirs = _timed(PEER, truth, results, kind)
                    peer.append(seconds)
                    assert list(mine.values()) == theirs, f"{kind}: {mine} is not {theirs}"
            times = median(ours), median(peer)
            rows.append(
                {
                    "name": f"COCO evaluation, {kind}",
                    "ours": f"{times[0]:.2f} s",
                    "peer": f"pycocotools {times[1]:.2f} s",
                    "ratio": times[1] / times[0],
                    "bar": None if quick else bar,  # the fixed cost of starting Python outweighs a small set
                }
            )
    return rows


def _timed(code: str, *args: Any) -> tuple[float, Any]:
    """Wall time of a Python process in seconds, and what its last line says."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, json.loads(done.stdout.splitlines()[-1].replace("'", '"'))


def write_set(folder: Path, kind: str, images: int = 5000) -> tuple[Path, Path]:
    """Write the ground truth and the results of one kind; the same bytes on every machine."""
    rng = np.random.default_rng(0)
    persons = kind == "keypoints"
    objects, found = (images * 11 // 5, images * 20) if persons else (images * 36 // 5, images * 100)
    image = np.sort(rng.integers(0, images, objects))
    size = np.exp(rng.uniform(np.log(12), np.log(350), (objects, 2))) * (1, 0.8)
    corner = rng.random((objects, 2)) * np.maximum((WIDTH, HEIGHT) - size, 1)
    boxes = np.concatenate((corner, np.minimum(size, (WIDTH, HEIGHT) - corner)), 1)
    label = np.zeros(objects, int) if persons else rng.integers(0, CLASSES, objects)
    crowd = rng.random(objects) < 0.01

    # Two of three detections lie around an object, the worse the lower their score; the rest are noise.
    start = np.searchsorted(image, np.arange(images))
    count = np.bincount(image, minlength=images)
    where = np.repeat(np.arange(images), found // images)
    target = start[where] + (rng.random(found) * count[where]).astype(int)
    near = (count[where] > 0) & (rng.random(found) < 2 / 3)
    target = np.where(near, target, rng.integers(0, objects, found))
    blur = rng.exponential(0.15, found)
    jitter = np.where(near, blur, 1.0)[:, None] * rng.normal(0, 0.5, (found, 4))
    span = boxes[target][:, [2, 3, 2, 3]]
    guess = boxes[target] + jitter * span
    guess[:, 2:] = np.clip(guess[:, 2:], 4, (WIDTH, HEIGHT))
    guess[:, :2] = np.clip(guess[:, :2], 0, (WIDTH, HEIGHT) - guess[:, 2:])
    score = np.clip(np.where(near, np.exp(-2 * blur), 0.3) * rng.random(found), 0.001, 1).round(5)
    named = np.where(near & (rng.random(found) < 0.8), label[target], 0 if persons else rng.integers(0, CLASSES, found))

    truth: list[dict[str, Any]] = [
        {"id": i + 1, "image_id": m, "category_id": c, "bbox": b, "area": b[2] * b[3] * 0.7, "iscrowd": k}
        for i, (m, c, b, k) in enumerate(
            zip((image + 1).tolist(), (label + 1).tolist(), boxes.round(2).tolist(), crowd.astype(int).tolist())
        )
    ]
    results: list[dict[str, Any]] = [
        {"image_id": m, "category_id": c, "score": s}
        for m, c, s in zip((where + 1).tolist(), (named + 1).tolist(), score.tolist())
    ]
    outline = _outlines(rng, objects)
    for i, annotation in enumerate(truth):
        polygon = outline[i] * boxes[i, 2:] + boxes[i, :2]
        annotation["segmentation"] = _runs(polygon) if crowd[i] else [polygon.round(2).ravel().tolist()]
    if kind == "bbox":
        for record, box in zip(results, guess.round(2).tolist()):
            record["bbox"] = box
    elif kind == "segm":
        for i, record in enumerate(results):
            polygon = outline[target[i]] * guess[i, 2:] + guess[i, :2]
            rle = codec.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH)[0]
            record["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    else:
        joints = rng.random((objects, 17, 2))
        visible = rng.integers(0, 3, (objects, 17, 1)) * (rng.random((objects, 1, 1)) < 0.9)
        points = joints * boxes[:, None, 2:] + boxes[:, None, :2]
        points = np.concatenate((points.round() * (visible > 0), visible), 2).astype(int)
        for annotation, flat in zip(truth, points.reshape(objects, -1).tolist()):
            annotation.update(keypoints=flat, num_keypoints=sum(v > 0 for v in flat[2::3]))
        moved = joints[target] + np.where(near, blur, 1.0)[:, None, None] * rng.normal(0, 0.3, (found, 17, 2))
        moved = moved * guess[:, None, 2:] + guess[:, None, :2]
        moved = np.concatenate((moved.round(2), np.ones((found, 17, 1))), 2)
        for record, flat in zip(results, moved.reshape(found, -1).tolist()):
            record["keypoints"] = flat

    files = folder / f"{kind}_truth.json", folder / f"{kind}_results.json"
    header = {
        "images": [{"id": i + 1, "file_name": f"{i + 1}.jpg", "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"class {c + 1}"} for c in range(1 if persons else CLASSES)],
    }
    files[0].write_text(json.dumps(header | {"annotations": truth}))
    files[1].write_text(json.dumps(results))
    return files


def _outlines(rng: np.random.Generator, count: int, corners: int = 24) -> np.ndarray:
    """(count, corners, 2) outlines like potatoes in the unit square."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = 0.5 - 0.2 * rng.random((count, 1)) * (1 + np.cos(3 * angle + 6 * rng.random((count, 1)))) / 2
    return 0.5 + radius[..., None] * np.stack((np.cos(angle), np.sin(angle)), 1)


def _runs(polygon: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, as COCO gives them for crowds."""
    bitmap = codec.decode(codec.frPyObjects([polygon.ravel().tolist()], HEIGHT, WIDTH))[:, :, 0].ravel(order="F")
    edges = np.flatnonzero(np.diff(bitmap)) + 1
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges, prepend=0, append=bitmap.size).tolist()}
