"""Operators that are not merely computed: copies between host and device, indexing, and cuDNN's batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from visionkit.testing.fake_cuda.operators import Operator, describe, mixed_devices
from visionkit.testing.fake_cuda.tensor import FakeCudaTensor, is_fake, plain

if TYPE_CHECKING:
    from visionkit.testing.fake_cuda.device import FakeCuda


def _to_copy(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    source, device = args[0], kwargs.get("device")
    to_cuda = is_fake(source) if device is None else device.type == "cuda"
    rest = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    blocking = not kwargs.get("non_blocking", False)
    out = gpu.compute(func, operator, (plain(source),), rest)
    gpu.log.kernels += 1
    if is_fake(source) and not to_cuda:
        gpu.synchronize("d2h" if blocking else "d2h-unguarded", operator.name)
        return out
    if to_cuda and not is_fake(source):
        if source.device.type == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        gpu.copied_from_host(operator.name, source, blocking)
    return FakeCudaTensor(out)


def _copy(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if is_fake(source) and not is_fake(target):
        gpu.synchronize("d2h" if blocking else "d2h-unguarded", operator.name)
    elif is_fake(target) and not is_fake(source):
        gpu.copied_from_host(operator.name, source, blocking)
    gpu.log.kernels += 1
    out = plain(target).copy_(plain(source))
    return target if operator.name == "aten::copy_" else gpu.wrap(out)


def _foreach_copy(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> None:
    for target, source in zip(args[0], args[1]):
        _copy(
            gpu, torch.ops.aten.copy_.default, describe(torch.ops.aten.copy_.default), (target, source, *args[2:]), {}
        )


def _index(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    source, indices = args[0], args[1]
    _check_indices(source, indices)
    if not is_fake(source):
        return NotImplemented
    for index in indices:
        _count_index(gpu, operator, index)
    gpu.log.kernels += 1
    return FakeCudaTensor(func(plain(source), [plain(index) for index in indices]))


def _count_index(gpu: FakeCuda, operator: Operator, index: Tensor | None) -> None:
    if index is None:
        return
    if index.dtype in (torch.bool, torch.uint8):
        gpu.synchronize("mask" if is_fake(index) else "h2d", operator.name)
    elif not is_fake(index):
        gpu.synchronize("h2d", f"{operator.name} (index on the CPU)")


def _check_indices(source: Tensor, indices: Sequence[Tensor | None]) -> None:
    if not is_fake(source) and any(is_fake(index) for index in indices):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")


def _index_put(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    target, indices, values = args[0], args[1], args[2]
    _check_indices(target, indices)
    if is_fake(target):
        if not is_fake(values) and values.dim() > 0:
            raise mixed_devices(operator)
        given = [index for index in indices if index is not None]
        accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
        # `x[mask] = number` is masked_fill.
        fills = not accumulate and len(given) == 1 and given[0].dtype in (torch.bool, torch.uint8)
        fills = fills and not is_fake(values) and values.numel() == 1
        for index in given:
            if not (fills and is_fake(index)):
                _count_index(gpu, operator, index)
        if not fills and not is_fake(values):
            gpu.synchronize("h2d", f"{operator.name} (value on the CPU)")
    elif is_fake(values):
        raise mixed_devices(operator)
    gpu.log.kernels += 1
    out = func(*tree_map(plain, args), **kwargs)
    if func._schema.name.endswith("_"):
        return target
    return gpu.wrap(out) if is_fake(target) else out


def _fill(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    """``masked_fill`` and the like take their value as a number, so one on the device is fetched."""
    target, value = args[0], args[-1]
    if not is_fake(target):
        raise RuntimeError(f"{operator.base}: Expected inputs to be on same device")
    if len(args) > 2 and isinstance(args[1], Tensor) and not is_fake(args[1]):
        raise RuntimeError("expected self and mask to be on the same device, but got mask on cpu and self on cuda:0")
    if len(args) > 3 and isinstance(args[2], Tensor) and not is_fake(args[2]):
        raise mixed_devices(operator)
    if operator.base.rstrip("_") in ("aten::masked_fill", "aten::index_fill") and is_fake(value):
        gpu.synchronize("item", f"{operator.name} (value on the device)")
    gpu.log.kernels += 1
    return gpu.results(operator, gpu.compute(func, operator, tree_map(plain, args), kwargs), args, kwargs)


def _where(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    """``where`` accepts CPU scalars for both values, and moves them."""
    if len(args) < 3:
        return NotImplemented
    on_host = [arg for arg in args[:3] if not is_fake(arg)]
    if any(arg.dim() > 0 for arg in on_host):
        raise mixed_devices(operator)
    if is_fake(args[0]):
        for _ in on_host:
            gpu.synchronize("h2d", f"{operator.name} (scalar on the CPU)")
    gpu.log.kernels += 1
    return gpu.wrap(gpu.compute(func, operator, tree_map(plain, args), kwargs))


def _is_pinned(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> bool:
    return False


def _pin_memory(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    raise RuntimeError(f"cannot pin 'torch.cuda.{args[0].dtype}' only dense CPU tensors can be pinned")


def _batch_norm(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    *tensors, training, momentum, eps = args
    out = torch.ops.aten.native_batch_norm.default(*map(plain, tensors), training, momentum, eps)
    gpu.log.kernels += 1
    return gpu.wrap((*out, torch.empty(0, dtype=torch.uint8)))


def _batch_norm_backward(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
    x, grad, weight, mean, var, saved, inverse, eps, _ = map(plain, args)
    gpu.log.kernels += 1
    return gpu.wrap(
        torch.ops.aten.native_batch_norm_backward.default(
            grad.to(x.dtype), x, weight, mean, var, saved, inverse, True, eps, [True, True, True]
        )
    )


def _record_stream(gpu: FakeCuda, func: Any, operator: Operator, args: Any, kwargs: Any) -> None:
    return None


EMULATED: Mapping[str, Callable[..., Any]] = {
    "aten::_to_copy": _to_copy,
    "aten::copy_": _copy,
    "aten::copy": _copy,
    "aten::_foreach_copy_": _foreach_copy,
    "aten::index": _index,
    "aten::_unsafe_index": _index,
    "aten::index_put": _index_put,
    "aten::index_put_": _index_put,
    "aten::_index_put_impl_": _index_put,
    "aten::_unsafe_index_put": _index_put,
    "aten::masked_fill": _fill,
    "aten::masked_fill_": _fill,
    "aten::index_fill": _fill,
    "aten::index_fill_": _fill,
    "aten::fill": _fill,
    "aten::fill_": _fill,
    "aten::where": _where,
    "aten::_pin_memory": _pin_memory,
    "aten::is_pinned": _is_pinned,
    "aten::cudnn_batch_norm": _batch_norm,
    "aten::cudnn_batch_norm_backward": _batch_norm_backward,
    "aten::record_stream": _record_stream,
}
"""Functions of the device, an operator and its arguments, by the operator's base name. Where they return
``NotImplemented``, the operator is computed like any other."""
