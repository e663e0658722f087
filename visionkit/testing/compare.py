"""Whether two outputs, predictions or targets say the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from visionkit.types import BoxPrediction


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything inside dataclasses, lists, tuples and mappings, by its path; arrays as tensors."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}".lstrip("."))
    else:
        yield path, torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor inside, by its path."""
    return {path: leaf for path, leaf in leaves(value) if isinstance(leaf, Tensor)}


def difference(one: Any, other: Any, *, rtol: float = 0.0, share: float = 1.0) -> str:
    """The first thing in which two values differ, in words; empty where there is none.

    Args:
        rtol: how far numbers may lie apart, relative to the largest of their tensor.
        share: of the numbers of a tensor that must lie so near.
    """
    if type(one) is not type(other):
        return f"a {type(one).__name__} and a {type(other).__name__}"
    mine, theirs = dict(leaves(one)), dict(leaves(other))
    if mine.keys() != theirs.keys():
        return f"'{sorted(mine.keys() ^ theirs.keys())[0]}' is in one of them only"
    for path, a in mine.items():
        b = theirs[path]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if said := _tensor_difference(a.detach(), b.detach(), rtol, share):
                return f"{path or 'values'}: {said}"
        elif isinstance(a, bool | int | float | str | bytes) and a != b and not (a != a and b != b):
            return f"{path or 'values'}: {a!r} and {b!r}"
    return ""


def assert_close(found: Any, expected: Any, *, rtol: float = 3e-5) -> None:
    """Raise ``AssertionError`` unless values are the same up to float32 rounding, which differs from CPU to CPU.

    Args:
        found, expected: tensors, or anything that holds them.
        rtol: how far numbers may lie apart, relative to the largest of their tensor: an absolute tolerance would fit
            values of one magnitude only.
    """
    if said := difference(found, expected, rtol=rtol):
        raise AssertionError(said)


def _tensor_difference(a: Tensor, b: Tensor, rtol: float, share: float) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}"
    if not a.numel() or torch.equal(a, b):
        return ""
    a, b = a.double(), b.double()
    apart = (a - b).abs().nan_to_num(nan=torch.inf)
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, apart)
    wrong = apart > rtol * float(torch.cat((a.flatten(), b.flatten())).nan_to_num(0.0, 0.0, 0.0).abs().max())
    if float(wrong.double().mean()) <= 1.0 - share:
        return ""
    return f"{int(wrong.sum())} of {a.numel()} values differ, by {float(apart.max()):.3g} at most"


def alike(one: Any, other: Any) -> str:
    """As :func:`difference`, for predictions that were computed in another order.

    Where scores are nearly equal, rounding decides which box is suppressed: boxes are matched, not compared in order.
    """
    if isinstance(one, BoxPrediction) and isinstance(other, BoxPrediction):
        return _boxes_alike(one, other)
    return difference(one, other, rtol=1e-3, share=0.99)


def _boxes_alike(one: BoxPrediction, other: BoxPrediction) -> str:
    sure = [p.scores >= 0.5 * p.scores.max() if len(p) else p.scores > 0 for p in (one, other)]
    for a, b, kept in ((one, other, sure[0]), (other, one, sure[1])):
        if not bool(kept.any()):
            continue
        found = torch.zeros(int(kept.sum()), dtype=torch.bool)
        if len(b):
            overlap = box_iou(a.boxes[kept], b.boxes)
            overlap[a.labels[kept][:, None] != b.labels] = 0.0
            found = overlap.max(1).values > 0.9
        if float(found.float().mean()) < 0.9:
            return f"{int((~found).sum())} of {len(found)} boxes of one are not in the other"
    return ""
