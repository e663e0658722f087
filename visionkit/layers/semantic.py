"""What all heads that give a class to every pixel share: upsampling, the loss, and the label map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.types import IGNORE, Batch, ImageInfo, Mean, SemanticPrediction, SemanticTarget

_AT_ONCE = 1 << 21  # pixels x classes that prediction upsamples at once: 8 MB of float32


def resample(x: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> Tensor:
    """Bilinear resampling by exactly ``scale`` (height, width), cut off at (or continued to) ``size``.

    Cell (0, 0) has its corner on the image's (``align_corners=False``). ``F.interpolate`` takes either a size or a
    scale, and where sizes were rounded up both matter.

    Args:
        x: (B, C, h, w).
        size: (height, width) of the result.
        scale: result pixels per cell of ``x``.
    """
    return torch.ops.aten.upsample_bilinear2d(x, list(size), False, scale[0], scale[1])


def cell_size(logits: Tensor, batch: Batch) -> int:
    """Input pixels per cell of a semantic output (B, classes, h, w), whose sizes were rounded up.

    Of the sizes that fit, the one that fits exactly, else a power of two: 33 pixels in two cells are cells of 32.
    """
    (height, width), (h, w) = batch.images.shape[-2:], logits.shape[-2:]
    least = max(-(-height // h), -(-width // w))
    power = 1 << (least - 1).bit_length()
    if (height, width) == (h * least, w * least):
        return least
    return power if (-(-height // power), -(-width // power)) == (h, w) else least


def stack_labels(targets: Sequence[SemanticTarget], size: tuple[int, int]) -> Tensor:
    """Label maps of differing sizes as one int64 tensor (B, height, width), padded with ``IGNORE``."""
    height, width = size
    return torch.stack(
        [F.pad(t.labels, (0, width - t.labels.shape[1], 0, height - t.labels.shape[0]), value=IGNORE) for t in targets]
    ).long()


def semantic_cross_entropy(
    logits: Tensor, batch: Batch[SemanticTarget], *, stride: int = 1, weight: Tensor | None = None
) -> Mean:
    """Softmax cross-entropy as a mean over the labelled pixels of the batch; 0 where there is none.

    Args:
        logits: (B, classes, h, w), each cell ``stride`` input pixels a side; upsampled to the input first.
        batch: with targets of ``info.size``.
        stride: input pixels per cell.
        weight: (classes,) weight of each class; the mean is then a weighted one.
    """
    height, width = batch.images.shape[-2:]
    if logits.shape[-2:] != (height, width):
        logits = resample(logits, (height, width), (stride, stride))
    labels = stack_labels(batch.targets, (height, width))
    total = F.cross_entropy(logits.float(), labels, weight=weight, ignore_index=IGNORE, reduction="sum")
    if weight is None:
        return Mean(total, (labels != IGNORE).sum())
    counted = weight[labels.where(labels != IGNORE, 0)] * (labels != IGNORE)
    return Mean(total, counted.sum())


def semantic_predictions(logits: Tensor, batch: Batch, *, stride: int = 1) -> list[SemanticPrediction]:
    """The most likely class of every pixel of the original images.

    Padding is cut off, and logits (not labels) are resampled bilinearly to the original size in one step. Only a band
    of one image is ever held at full size, so a large image with many classes needs little memory.

    Args:
        logits: (B, classes, h, w), each cell ``stride`` input pixels a side.
        batch: the images' sizes and geometry.
        stride: input pixels per cell.
    """
    return [SemanticPrediction(_label_map(one, info, stride)) for one, info in zip(logits.detach(), batch.info)]


def _label_map(logits: Tensor, info: ImageInfo, stride: int) -> Tensor:
    """(H, W) uint8 from logits (classes, h, w)."""
    labels = torch.empty(info.original_size, dtype=torch.uint8, device=logits.device)
    for band, scores in original_bands(logits, info, stride):
        labels[band] = scores.argmax(1).to(torch.uint8)
    return labels


def original_bands(logits: Tensor, info: ImageInfo, stride: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits of one image, (classes, h, w), at its original size: some rows at a time, so that all of them together,
    which may be gigabytes, are never held.

    Yields:
        Which rows, and their logits (rows, classes, W), float32.
    """
    a, b, tx, c, d, ty = info.affine
    height, width = info.original_size
    if not (b == c == tx == 0 and a > 0):
        yield from _bands_by_lookup(logits, info, stride)
        return
    # Classes innermost: one row of cells is then read from one place, and stays in the cache.
    x = logits.permute(1, 2, 0).float().contiguous()
    y = (((torch.arange(height, device=x.device) + 0.5) * d + ty) / stride - 0.5).clamp(0, len(x) - 1)
    above = y.long()
    below, share = (above + 1).clamp(max=len(x) - 1), (y - above)[:, None, None]
    step = max(1, _AT_ONCE // (width * x.shape[2]))
    for top in range(0, height, step):
        band = slice(top, top + step)
        rows = torch.lerp(x[above[band]], x[below[band]], share[band])  # (rows, w, classes)
        yield band, resample(rows[:, None].permute(0, 3, 1, 2), (1, width), (1, stride / a))[:, :, 0]


def _bands_by_lookup(logits: Tensor, info: ImageInfo, stride: int) -> Iterator[tuple[slice, Tensor]]:
    """The same for any other geometry (mirrored, shifted, turned): look up where every original pixel centre lies."""
    a, b, tx, c, d, ty = info.affine
    height, width = info.original_size
    maps = logits[None].float()
    x = torch.arange(width, device=logits.device) + 0.5
    step = max(1, _AT_ONCE // (width * logits.shape[0]))
    for top in range(0, height, step):
        y = (torch.arange(top, min(top + step, height), device=logits.device) + 0.5)[:, None]
        cells = torch.stack(
            ((a * x + b * y + tx) / logits.shape[2], (c * x + d * y + ty) / logits.shape[1]), -1
        ) / stride  # fmt: skip
        rows = F.grid_sample(maps, cells[None] * 2 - 1, padding_mode="border", align_corners=False)[0]
        yield slice(top, top + step), rows.permute(1, 0, 2)
