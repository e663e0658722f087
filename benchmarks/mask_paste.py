"""100 masks of 28x28 onto 480x640: paste and run lengths, against torchvision's paste and pycocotools' encoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as codec
from torchvision.models.detection.roi_heads import paste_masks_in_image

from visionkit.layers.paste import paste_masks

HEIGHT, WIDTH = 480, 640


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds on one thread, medians of interleaved calls; the masks are asserted equal."""
    masks, boxes = example()
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        assert paste_masks(masks, boxes, HEIGHT, WIDTH) == peer(masks, boxes)
        ours, theirs = [], []
        for _ in range(5 if quick else 31):
            ours.append(_milliseconds(lambda: paste_masks(masks, boxes, HEIGHT, WIDTH)))
            theirs.append(_milliseconds(lambda: peer(masks, boxes)))
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    a, b = median(ours), median(theirs)
    return [
        {
            "name": "mask paste + run lengths, 100 masks",
            "ours": f"{a:.1f} ms",
            "peer": f"torchvision + pycocotools {b:.1f} ms",
            "ratio": b / a,
            "bar": 5.0,
        }
    ]


def example(count: int = 100, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Blurred blobs in boxes of 20 to 300 pixels, as a mask head gives them."""
    g = torch.Generator().manual_seed(0)
    span = 20 + 280 * torch.rand(count, 2, generator=g) ** 2
    corner = torch.rand(count, 2, generator=g) * (torch.tensor([WIDTH, HEIGHT]) - span)
    axis = torch.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None, :]
    tilt = torch.rand(count, 1, 1, generator=g) - 0.5
    masks = torch.sigmoid(12 * (0.6 - x**2 - y**2 - tilt * x * y))
    return masks, torch.cat((corner, corner + span), 1)


def peer(masks: torch.Tensor, boxes: torch.Tensor) -> list[dict[str, Any]]:
    """What a user of torchvision does."""
    pasted = paste_masks_in_image(masks[:, None], boxes, (HEIGHT, WIDTH))[:, 0] > 0.5
    return [codec.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in pasted]


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
