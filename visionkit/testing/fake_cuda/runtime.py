"""Stand-ins for what ``torch.cuda`` asks the driver."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from visionkit.testing.fake_cuda.backward import run_backward
from visionkit.testing.fake_cuda.tensor import CUDA, FakeCudaTensor, is_fake


def patches() -> list[Any]:
    """Everything that is replaced while the device is there."""
    properties = types.SimpleNamespace(name="fake", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
    values: dict[str, Any] = {
        **{"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0},
        **{"get_device_capability": (9, 0), "get_device_name": "fake", "get_device_properties": properties},
        **{"is_bf16_supported": True, "mem_get_info": (80 << 30, 80 << 30)},
        **{"_exchange_device": 0, "_maybe_exchange_device": 0},
        **dict.fromkeys(("_lazy_init", "init", "set_device", "empty_cache", "ipc_collect", "reset_peak_memory_stats")),
        **dict.fromkeys(("manual_seed", "manual_seed_all", "seed_all", "set_rng_state")),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), 0),
    }
    functions: dict[str, Any] = {
        "synchronize": _synchronize,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state_all": _set_rng_states,
        **dict.fromkeys(("current_stream", "default_stream", "Stream", "stream"), _Stream),
        "Event": _Event,
        **dict.fromkeys(("device", "device_of"), _DeviceContext),
    }
    functions |= {name: _returning(value) for name, value in values.items()}
    found = [mock.patch.object(torch.cuda, name, f) for name, f in functions.items() if hasattr(torch.cuda, name)]
    return [
        *found,
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.autograd._engine_run_backward", run_backward),
        mock.patch("torch.load", _loading(torch.load)),
        mock.patch("torch.utils.swap_tensors", _swapping(torch.utils.swap_tensors)),
        mock.patch.object(
            torch.autograd.function.FunctionCtx, "set_materialize_grads", _set_materialize_grads, create=True
        ),
    ]


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


class _Stream:
    """A stream on which everything is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def synchronize(self) -> None:
        _synchronize()

    def wait_stream(self, _: Any) -> None: ...

    def wait_event(self, _: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def query(self) -> bool:
        return True


class _Event(_Stream):
    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class _DeviceContext:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def _synchronize(*_: Any) -> None:
    if FakeCudaTensor.active is not None:
        FakeCudaTensor.active.synchronize("item", "torch.cuda.synchronize")


def _set_rng_states(states: Sequence[Tensor]) -> None:
    for state in states:
        if is_fake(state) or state.dtype != torch.uint8:
            raise TypeError("RNG state must be a torch.ByteTensor")


def _set_materialize_grads(ctx: Any, value: bool) -> None:
    ctx.materialize_grads = value
    ctx._fake_cuda_bare = not value


def _swapping(swap: Callable[..., None]) -> Callable[..., None]:
    """``Module.to`` swaps wrapped parameters, which fails while a graph holds them. One on the device only gets new
    data, as a real one would."""

    def swapped(one: Tensor, other: Tensor) -> None:
        if is_fake(one) and is_fake(other):
            one.data = other.data
        else:
            swap(one, other)

    return swapped


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if not isinstance(map_location, str | torch.device) or not str(map_location).startswith("cuda"):
            return load(file, map_location=map_location, **kwargs)
        state = load(file, map_location="cpu", **kwargs)
        return tree_map(lambda value: value.to(CUDA) if isinstance(value, Tensor) else value, state)

    return loaded
