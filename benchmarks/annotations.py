"""Reading annotations of the size of COCO train2017: the COCO source against pycocotools' ``COCO(file)``.

118,000 images, 860,000 objects with a polygon each, in random order of sizes. Each reader runs in a process of its own;
its CPU time and the growth of its peak memory are measured from when everything is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HEIGHT, WIDTH, CLASSES = 480, 640, 80

MEASURE = """
import json, resource, sys
from visionkit.data.coco import CocoSource
from pycocotools.coco import COCO
before = resource.getrusage(resource.RUSAGE_SELF)
if sys.argv[1] == "ours":
    CocoSource(images=sys.argv[2], annotations=sys.argv[3])
else:
    COCO(sys.argv[3])
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps([seconds, (after.ru_maxrss - before.ru_maxrss) / 1024]))
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """CPU seconds and growth in MB, medians of interleaved runs, as ratios to pycocotools."""
    num_images = 2_000 if quick else 118_000
    with tempfile.TemporaryDirectory() as folder:
        images, file = write_set(Path(folder), num_images, num_images * 860 // 118)
        figures: dict[str, list[list[float]]] = {"ours": [], "pycocotools": []}
        for _ in range(1 if quick else 3):
            for name, values in figures.items():
                call = [sys.executable, "-c", MEASURE, name, str(images), str(file)]
                out = subprocess.run(call, capture_output=True, text=True, check=True).stdout
                values.append(json.loads(out.splitlines()[-1]))
    rows = []
    for column, what, unit, bar in ((0, "CPU time", "s", 2.0), (1, "growth of peak memory", "MB", 1.0)):
        ours, peer = (median(row[column] for row in figures[name]) for name in ("ours", "pycocotools"))
        rows.append(
            {
                "name": f"reading {num_images:,} images' annotations, {what}",
                "ours": f"{ours:.1f} {unit}",
                "peer": f"pycocotools {peer:.1f} {unit}",
                "ratio": peer / max(ours, 1e-9),
                "bar": None if quick else bar,
            }
        )
    return rows


def write_set(folder: Path, num_images: int, num_objects: int) -> tuple[Path, Path]:
    """Write a folder of empty image files and an annotation file; the same bytes on every machine."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    header = []
    for i in range(1, num_images + 1):
        name = f"{i:012d}.jpg"
        (images / name).touch()
        header.append({"license": 3, "file_name": name, "coco_url": f"http://localhost/train2017/{name}", "id": i,
                       "height": HEIGHT, "width": WIDTH, "date_captured": "2013-11-14 11:18:45"})  # fmt: skip
    owner = np.sort(rng.integers(1, num_images + 1, num_objects))
    corners = rng.integers(6, 42, num_objects)
    file = folder / "instances.json"
    with file.open("w") as out:
        categories = [{"id": c, "name": f"class {c}", "supercategory": "thing"} for c in range(1, CLASSES + 1)]
        out.write(f'{{"images": {json.dumps(header)}, "categories": {json.dumps(categories)}, "annotations": [')
        for i, (image, count) in enumerate(zip(owner.tolist(), corners.tolist())):
            width, height = rng.uniform(8, 200, 2)
            left, top = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
            angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
            outline = 0.5 + 0.5 * np.stack((np.cos(angle), np.sin(angle)), 1)
            polygon = (outline * (width, height) + (left, top)).round(2).ravel().tolist()
            box = [round(v, 2) for v in (left, top, width, height)]
            entry = {"segmentation": [polygon], "area": round(width * height * 0.785, 5), "iscrowd": 0,
                     "image_id": image, "bbox": box, "category_id": i % CLASSES + 1, "id": i + 1}  # fmt: skip
            out.write((", " if i else "") + json.dumps(entry))
        out.write("]}")
    return images, file
