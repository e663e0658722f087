"""The emulated device: every operator on its tensors comes by here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from visionkit.testing.fake_cuda.emulated import EMULATED
from visionkit.testing.fake_cuda.log import Log, Synchronization, innermost_place
from visionkit.testing.fake_cuda.operators import (
    ANY_DEVICE,
    FLOAT_ONLY,
    SYNCHRONIZING,
    Operator,
    describe,
    mixed_devices,
)
from visionkit.testing.fake_cuda.tensor import CPU, FakeCudaTensor, is_fake, plain

_HALF = (torch.float16, torch.bfloat16)


class FakeCuda(TorchDispatchMode):
    """The device inside ``with fake_cuda()``.

    Attributes:
        log: what is recorded; :meth:`recording` replaces it for a while.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self._pinned: dict[int, Any] = {}

    # -- recording

    @contextlib.contextmanager
    def recording(self) -> Iterator[Log]:
        """A separate log for what happens inside."""
        before, self.log = self.log, Log()
        try:
            yield self.log
        finally:
            self.log = before

    def synchronize(self, kind: str, operator: str) -> None:
        """Record that the host waits for the device; see :class:`Synchronization`."""
        self.log.synchronizations.append(Synchronization(kind, operator, innermost_place()))

    def copied_from_host(self, operator: str, source: Tensor, blocking: bool) -> None:
        """Record a copy from the host."""
        if blocking:
            self.synchronize("h2d", operator)
        elif not self.is_pinned(source):
            self.synchronize("h2d-pageable", operator)

    # -- operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Compute an operator on the CPU, after the checks that the device would make."""
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        leaves, tree = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if is_fake(tensor)]
        to_cuda = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if not fakes and not to_cuda:
            return self._on_host(func, args, kwargs)
        operator = describe(func)
        if operator.composite:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if emulated := EMULATED.get(operator.base):
            out = emulated(self, func, operator, args, kwargs)
            if out is not NotImplemented:
                return out
        self._check(operator, tensors, fakes, kwargs)
        self._count(operator, kwargs)
        args_, kwargs_ = tree_unflatten([plain(leaf) for leaf in leaves], tree)
        if operator.factory and (to_cuda or "device" in kwargs_):
            device = kwargs.get("device")
            to_host = isinstance(device, torch.device) and device.type != "cuda"
            kwargs_ = {**kwargs_, "device": device if to_host else CPU}
            if kwargs_.get("pin_memory"):
                kwargs_["pin_memory"] = False
            out = self.compute(func, operator, args_, kwargs_)
            return out if to_host else self.wrap(out)
        return self.results(operator, self.compute(func, operator, args_, kwargs_), args, kwargs)

    def wrap(self, value: Any) -> Any:
        """CPU tensors as tensors of the device."""
        return tree_map(lambda t: FakeCudaTensor(t) if isinstance(t, Tensor) and not is_fake(t) else t, value)

    def results(self, operator: Operator, out: Any, args: Any, kwargs: Any) -> Any:
        """What an operator returns: tensors of the device, and arguments themselves where it works in place."""
        if not operator.writes:
            base = args[0] if args and is_fake(args[0]) else None
            inference = torch.is_inference_mode_enabled()
            if base is not None and operator.aliases and inference and not base.is_inference():
                with torch.inference_mode(False):  # a view of an ordinary tensor is an ordinary tensor
                    return self.wrap(out)
            return self.wrap(out)
        several = isinstance(out, tuple)
        listed = list(out) if several else [out]
        for number, name, position in operator.writes:
            argument = kwargs.get(name)
            if argument is None and position is not None and position < len(args):
                argument = args[position]
            if isinstance(argument, Tensor):
                if argument.shape != plain(argument).shape:
                    raise NotImplementedError(f"fake_cuda: {operator.name} changes the shape of a tensor in place")
                listed[number] = argument
        listed = [t if any(t is a for a in args) else self.wrap(t) for t in listed]
        return tuple(listed) if several else listed[0]

    def compute(self, func: Any, operator: Operator, args: Any, kwargs: Any) -> Any:
        """The operator on the CPU; in single precision where only the device has a kernel for half precision."""
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            if "Half" not in str(error) and "BFloat16" not in str(error):
                raise
        dtypes = {t.dtype for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        half = torch.bfloat16 if torch.bfloat16 in dtypes else torch.float16
        pairs: list[tuple[Tensor, Tensor]] = []

        def widen(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dtype in _HALF:
                pairs.append((value, value.float()))
                return pairs[-1][1]
            return torch.float32 if isinstance(value, torch.dtype) and value in _HALF else value

        wide_args, wide_kwargs = tree_map(widen, (args, kwargs))
        out = func(*wide_args, **wide_kwargs)
        if operator.writes:
            for narrow, wide in pairs:
                narrow.copy_(wide)
        originals = {id(wide): narrow for narrow, wide in pairs}

        def narrowed(value: Any) -> Any:
            if id(value) in originals:
                return originals[id(value)]
            return value.to(half) if isinstance(value, Tensor) and value.dtype == torch.float32 else value

        return tree_map(narrowed, out)

    # -- pinned memory

    def _on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.name().partition(".")[0]
        if name == "aten::is_pinned":
            return self.is_pinned(args[0])
        if name == "aten::_pin_memory":
            return self._pin(args[0].clone())
        if kwargs.get("pin_memory") and "device" in kwargs:
            return self._pin(func(*args, **{**kwargs, "pin_memory": False}))
        return func(*args, **kwargs)

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage  # kept, so that no other tensor gets its address
        return tensor

    def is_pinned(self, value: Tensor) -> bool:
        """Whether a CPU tensor lies in pinned memory."""
        return not is_fake(value) and value.numel() > 0 and value.untyped_storage().data_ptr() in self._pinned

    # -- what a device refuses

    def _check(self, operator: Operator, tensors: Sequence[Tensor], fakes: Sequence[Tensor], kwargs: Any) -> None:
        if not operator.has_kernel and fakes:
            raise NotImplementedError(f"Could not run '{operator.name}' with arguments from the 'CUDA' backend.")
        others = [tensor for tensor in tensors if not is_fake(tensor)]
        meta = any(tensor.device.type == "meta" for tensor in others)
        if others and fakes and not meta and operator.base not in ANY_DEVICE:
            if not operator.mixes or any(tensor.dim() > 0 for tensor in others):
                raise mixed_devices(operator)
            if len(others) > 1:
                raise RuntimeError("Trying to pass too many CPU scalars to non-CPU kernel!")
        integers = fakes and not any(t.is_floating_point() or t.is_complex() for t in fakes)
        if operator.base in FLOAT_ONLY and integers:
            kind = str(fakes[0].dtype).removeprefix("torch.")
            raise NotImplementedError(f'"{operator.base.split("::")[1]}_cuda" not implemented for {kind}')
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cuda":
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found '{generator.device.type}'")

    def _count(self, operator: Operator, kwargs: Any) -> None:
        kind = SYNCHRONIZING.get(operator.base)
        if operator.base == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            kind = "size"
        if kind is not None:
            self.synchronize(kind, operator.name)
        if not operator.view:
            self.log.kernels += 1
