"""From JPEG files to augmented uint8 batches: visionkit's loader against PIL and torchvision's transforms v2.

One process and one thread, the same files, boxes, scales and window. The peer decodes with PIL and does all else on
uint8 tensors, the fastest that v2 offers. Rounds of both are interleaved.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from visionkit.data.coco import CocoSource
from visionkit.data.loader import Feed, train_loader
from visionkit.data.shapes import write_shapes
from visionkit.data.transforms import ColorJitter, HorizontalFlip, Resize, ScaleJitterCrop

HEIGHT, WIDTH, WINDOW, BATCH = 480, 640, 512, 8
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}

PIPELINES: dict[str, tuple[list[Any], list[v2.Transform], float | None]] = {
    "decode, scale, crop, flip, colour": (
        [ScaleJitterCrop(size=WINDOW, scale=(0.5, 1.5), fit=True), HorizontalFlip(), ColorJitter(**JITTER)],
        [v2.ScaleJitter((WINDOW, WINDOW), (0.5, 1.5)), v2.RandomCrop(WINDOW, pad_if_needed=True),
         v2.RandomHorizontalFlip(), v2.ColorJitter(**JITTER), v2.SanitizeBoundingBoxes()],
        2.0,
    ),
    "the same with hue": (
        [ScaleJitterCrop(size=WINDOW, scale=(0.5, 1.5), fit=True), HorizontalFlip(), ColorJitter(**JITTER, hue=0.1)],
        [v2.ScaleJitter((WINDOW, WINDOW), (0.5, 1.5)), v2.RandomCrop(WINDOW, pad_if_needed=True),
         v2.RandomHorizontalFlip(), v2.ColorJitter(**JITTER, hue=0.1), v2.SanitizeBoundingBoxes()],
        2.0,
    ),
    "decode, resize (evaluation)": ([Resize(size=[384, 512])], [v2.Resize((384, 512), antialias=True)], None),
}  # fmt: skip


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Images a second, medians of interleaved rounds."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            write_shapes(str(data), 4 * BATCH, seed=0, size=(HEIGHT, WIDTH))
            source = CocoSource(images=str(data / "images"), annotations=str(data / "instances.json"), tasks=["boxes"])
            return [_measure(name, source, quick) for name in PIPELINES]
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def _measure(name: str, source: CocoSource, quick: bool) -> dict[str, Any]:
    mine, theirs, bar = PIPELINES[name]
    feed = Feed("shapes", source, {"boxes": ("boxes", None)}, transforms=mine)
    steps = 2 if quick else len(source) // BATCH
    batches = train_loader([feed], batch_size=BATCH, seed=0)
    peer = v2.Compose(theirs)
    files = [source.describe(i).rsplit(" (", 1)[0] for i in range(len(source))]
    boxes = [source.load(i, ["boxes"]).targets["boxes"].boxes for i in range(len(source))]

    def our_round() -> None:
        for _ in range(steps):
            next(batches)

    def peer_round() -> None:
        for step in range(steps):
            rows = range(step * BATCH, (step + 1) * BATCH)
            default_collate([_peer_sample(files[i], boxes[i], peer)["image"] for i in rows])

    ours, others = [], []
    for _ in range(2 if quick else 9):
        ours.append(_seconds(our_round))
        others.append(_seconds(peer_round))
    images = steps * BATCH
    return {
        "name": f"loading {HEIGHT}x{WIDTH} JPEGs: {name}",
        "ours": f"{images / median(ours):.0f} images/s",
        "peer": f"PIL + v2 {images / median(others):.0f} images/s",
        "ratio": median(b / a for a, b in zip(ours, others)),
        "bar": bar,
    }


def _peer_sample(path: str, boxes: torch.Tensor, transform: v2.Transform) -> dict[str, Any]:
    with Image.open(path) as file:
        image = v2.functional.pil_to_tensor(file.convert("RGB"))
    box = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))  # type: ignore[call-overload]
    sample = {"image": tv_tensors.Image(image), "boxes": box, "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    return transform(sample)


def _seconds(work: Callable[[], None]) -> float:
    # Of the processor: one thread works all the time, and what else the machine does should not count.
    start = time.process_time()
    work()
    return time.process_time() - start
