"""Transfers between the host and an accelerator that make the host wait as rarely as possible.

A copy from pageable memory, a boolean index, ``nonzero`` and ``.item()`` all block the host until the device has
finished everything that was queued before. A copy from pinned memory is queued like any other operation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from visionkit.types._tree import map_tensors

T = TypeVar("T")

_ALIGNMENT = 16
"""Bytes. Each packed tensor starts at a multiple of it, which suits every dtype."""


def to_device(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """The tensors on ``device``; from the host to a CUDA device, all of them in one transfer that is not waited for.

    What is transferred together shares one block of memory on the device, and lives as long as any part of it.
    """
    device = torch.device(device)
    moving = [i for i, tensor in enumerate(tensors) if tensor.device.type == "cpu"]
    if device.type != "cuda" or not moving:
        return [tensor.to(device) for tensor in tensors]
    offsets = [0]
    for i in moving:
        size = tensors[i].numel() * tensors[i].element_size()
        offsets.append(offsets[-1] + math.ceil(size / _ALIGNMENT) * _ALIGNMENT)
    packed = torch.empty(max(offsets[-1], 1), dtype=torch.uint8, pin_memory=True)
    for i, offset in zip(moving, offsets):
        _part(packed, offset, tensors[i]).copy_(tensors[i])
    packed = packed.to(device, non_blocking=True)
    moved = [tensor if tensor.device.type != "cpu" else None for tensor in tensors]
    for i, offset in zip(moving, offsets):
        moved[i] = _part(packed, offset, tensors[i])
    return [tensor.to(device) for tensor in moved if tensor is not None]


def _part(packed: Tensor, offset: int, like: Tensor) -> Tensor:
    """The bytes of ``packed`` from ``offset`` on as a tensor of the shape and dtype of ``like``."""
    size = like.numel() * like.element_size()
    return packed[offset : offset + size].view(like.dtype).view(like.shape)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Sums and products in the dtype of their operands, whatever precision a model is run in."""
    if device.type == "meta":  # which has no autocast
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def constant(values: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` (numbers, or nested sequences of them) as a tensor on the device of ``like`` and of its dtype."""
    return to_device([torch.tensor(values, dtype=dtype or like.dtype)], like.device)[0]


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU. The host waits for the device once, however many there are."""
    devices = {tensor.device for tensor in tensors}
    if len(tensors) < 2 or devices == {torch.device("cpu")} or len(devices) > 1:
        return [tensor.cpu() for tensor in tensors]
    parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    padded = []
    for part in parts:
        padded += [part, part.new_empty(-len(part) % _ALIGNMENT)]
    packed, offset, moved = torch.cat(padded).cpu(), 0, []
    for tensor, part in zip(tensors, parts):
        moved.append(_part(packed, offset, tensor))
        offset += len(part) + -len(part) % _ALIGNMENT
    return moved


def all_on_host(value: T) -> T:
    """``value`` with all tensors inside of dataclasses, lists, tuples and mappings on the CPU, after a single wait."""
    tensors: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(value, collect)
    moved = iter(on_host(tensors))
    return map_tensors(value, lambda _: next(moved))


def true_rows(masks: Sequence[Tensor]) -> list[Tensor]:
    """For each mask (n,), the indices at which it is true, int64. The host waits for the device once for all masks."""
    if not masks:
        return []
    host = torch.cat(list(masks)).cpu().split([len(mask) for mask in masks])
    return to_device([mask.nonzero()[:, 0] for mask in host], masks[0].device)
