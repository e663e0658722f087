"""Max pooling that needs less memory in training."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxPoolReLU(nn.MaxPool2d):
    """Max pooling, then ReLU. Equal to ReLU, then max pooling, to the last bit; so are the gradients.

    In the stem of a ResNet, the map before the pooling is the largest of the network. In this order only the batch norm
    keeps a map of that size for the backward pass, and no longer the ReLU and the pooling too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.ceil_mode or self.dilation != 1 or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.relu(super().forward(x))
        y: Tensor = _MaxPool.apply(x, _pair(self.kernel_size), _pair(self.stride), _pair(self.padding))
        return F.relu(y, inplace=True)


class _MaxPool(torch.autograd.Function):
    """Keeps the places of the largest values, and not the values among which they were found."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
        y, places = torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding)
        ctx.save_for_backward(places.int() if x.shape[2] * x.shape[3] < 2**31 else places)
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        ctx.like = x.shape, x.dtype, torch.channels_last if last else torch.contiguous_format
        ctx.form = kernel, stride, padding, [1, 1], False
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        shape, dtype, memory_format = ctx.like
        # Only the shape of the input is read: its memory is never touched, so the system provides none.
        x = torch.empty(shape, dtype=dtype, device=grad.device, memory_format=memory_format)
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.form, places.long()), None, None, None


def _pair(value: int | tuple[int, int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def pool_before_relu(body: nn.Module, kept: set[str]) -> None:
    """In a sequence of modules that ends its stem with ReLU and max pooling (``act1``, ``maxpool``), exchange the two;
    in place.

    Args:
        kept: names of the modules whose results are used elsewhere.
    """
    names = [name for name, _ in body.named_children()]
    if "act1" not in names or names[names.index("act1") + 1 :][:1] != ["maxpool"] or "act1" in kept:
        return
    relu, pool = body.get_submodule("act1"), body.get_submodule("maxpool")
    if type(relu) is nn.ReLU and type(pool) is nn.MaxPool2d and not pool.return_indices:
        body.add_module("act1", nn.Identity())
        pool.__class__ = MaxPoolReLU
