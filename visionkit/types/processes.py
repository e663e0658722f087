"""Objects exchanged between the processes of a distributed run."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor


def gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every process, by rank, in every process.

    Tensors arrive on the CPU wherever they were: the device of one process is not for the others to allocate on.
    """
    if not torch.distributed.is_initialized():
        return [value]
    everything: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everything, pickled(value))
    return [pickle.loads(data) for data in everything]


def pickled(value: Any) -> bytes:
    """``value`` pickled with all its tensors on the CPU, however deep inside they are."""
    file = io.BytesIO()
    _OnCPU(file, pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


class _OnCPU(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return value.detach().cpu().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented
