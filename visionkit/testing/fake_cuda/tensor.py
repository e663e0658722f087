"""A tensor that reports to be on a CUDA device and holds its values on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from visionkit.testing.fake_cuda.device import FakeCuda

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


class FakeCudaTensor(Tensor):
    """A wrapper with ``device="cuda:0"``, for Python, the dispatcher, autocast and autograd alike.

    Attributes:
        _inner: the values, an ordinary tensor on the CPU.
        active: the device, while there is one; operators are dispatched to it.
    """

    _inner: Tensor
    active: ClassVar[FakeCuda | None] = None

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeCudaTensor:
        wrapper = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CUDA, requires_grad=False,
        )  # fmt: skip
        wrapper._inner = inner
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if cls.active is None:
            raise RuntimeError("a tensor of fake_cuda is used outside of `with fake_cuda():`")
        return cls.active.run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> FakeCudaTensor:
        return FakeCudaTensor(inner["_inner"])

    # What C++ decides by the type of the object or by its storage.

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                        "memory first.")  # fmt: skip

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    @property  # type: ignore[override]
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, FakeCudaTensor):
            raise RuntimeError("incompatible tensor type: `x.data = y` with x on cuda:0 and y on the CPU")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self._inner = new._inner

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"FakeCudaTensor({self._inner!r}, requires_grad={self.requires_grad})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol"
            )
        new = self._like_this(FakeCudaTensor(self._inner.detach().clone()))
        if self.grad is not None:
            new.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, proto: Any) -> Any:
        """Saved the way it is read back with ``map_location="cpu"``."""
        if self.active is not None:
            self.active.synchronize("d2h", "torch.save")
        return self._like_this(self._inner.detach().clone()).__reduce_ex__(proto)

    def _like_this(self, new: Tensor) -> Tensor:
        """``new`` as a parameter where this is one."""
        if getattr(self, "_is_param", False):
            return torch.nn.Parameter(new, requires_grad=self.requires_grad)
        return new.requires_grad_(self.requires_grad)


def is_fake(value: Any) -> bool:
    """Whether ``value`` is a tensor on the emulated device."""
    return isinstance(value, FakeCudaTensor)


def plain(value: Any) -> Any:
    """The CPU tensor that holds the values of a tensor on the device; anything else as it is."""
    return value._inner if isinstance(value, FakeCudaTensor) else value
