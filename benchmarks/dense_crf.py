"""The dense CRF on a photograph-like image of 480x640 with 21 classes: the grid against adding up all pairs of pixels.

All pairs would take an hour on a processor, so that their time is measured on some of the pixels and multiplied. The
sums of these pixels also say how far off the grid is. The bar is a time, 5 seconds for ten iterations, and no ratio.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._peers import seconds
from visionkit.layers.dense_crf import DenseCRF, ExactFilter, GridFilter

SECONDS, CLASSES = 5.0, 21


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Ten iterations with both kernels; quick: 120x160."""
    size, some = ((120, 160), 32) if quick else ((480, 640), 64)
    torch.manual_seed(0)
    image = photograph(*size)
    # Classes go with brightness: noise alone would be the same mean everywhere.
    classes = F.one_hot((image.mean(0) / 256 * CLASSES).long(), CLASSES).permute(2, 0, 1)
    probabilities = torch.softmax(3 * classes + torch.randn(CLASSES, *size), 0)
    if torch.cuda.is_available():
        image, probabilities = image.cuda(), probabilities.cuda()
    rows = []
    for rgb in (3.0, 13.0):
        crf = DenseCRF(appearance_rgb=rgb)
        ours = min(seconds(lambda crf=crf: crf(probabilities, image)) for _ in range(2))  # type: ignore[misc]
        values = torch.cat((probabilities, torch.ones_like(probabilities[:1]))).flatten(1).T.contiguous()
        exact = ExactFilter(image, 67.0, rgb)
        pick = torch.randperm(len(values), device=values.device)[:some]
        start = time.perf_counter()
        want = (exact.kernel(exact.features[pick]) @ values).cpu()
        theirs = (time.perf_counter() - start) / some * len(values) * 10
        grid = GridFilter(image, 67.0, rgb)
        got = grid(values)[pick].cpu()
        error = (got[:, :-1] / got[:, -1:] - want[:, :-1] / want[:, -1:]).abs()
        off = f"off by {float(error.mean()):.4f} on average, {float(error.max()):.3f} at most"
        name = f"dense CRF, {size[0]}x{size[1]}x{CLASSES}, {rgb:g} levels ({off})"
        rows.append(
            {
                "name": name,
                "ours": f"{ours:.1f} s",
                "peer": f"all pairs {theirs:.0f} s",
                "ratio": theirs / ours,
                "bar": theirs / SECONDS,
            }
        )
    return rows


def photograph(height: int, width: int) -> Tensor:
    """(3, H, W) in 0 ... 255: as different at all scales as photographs are, in brightness more than in colour, and
    with the noise of a camera."""
    image = 2 * torch.randn(3, height, width) + 128
    for cells in (4, 8, 16, 32, 64, 128):
        for channels, contrast in ((1, 20), (3, 6)):
            coarse = contrast * torch.randn(1, channels, cells, cells)
            image += F.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return image.clamp(0, 255).round()
