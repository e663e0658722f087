"""Normalisation layers by name, and batch norm that stays as it is."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.layers.fast_conv import FastConv2d

NormName = Literal["batch", "group"]


def make_norm(name: NormName, channels: int) -> nn.Module:
    """A normalisation layer over ``channels``.

    ``"group"`` has the 32 groups of the paper (Wu & He, ECCV 2018), or as many as leave two channels or more in a
    group: one channel a group would be instance norm, which wipes out a 1x1 map.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    groups = next(g for g in range(max(1, min(32, channels // 2)), 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and a fixed affine map, all of them buffers: nothing is trained or counted.

    Equal to ``nn.BatchNorm2d`` in evaluation mode, whatever ``train()`` says. State dict names are those of batch norm.

    Args:
        channels: of the input (B, channels, H, W).
        eps: added to the variance.
        act: applied to the result (timm joins activations to its batch norms).

    Attributes:
        joined: a :class:`JoinedConv2d` does its work while gradients are computed.
    """

    joined = False
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, act: nn.Module | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if not (self.joined and torch.is_grad_enabled()):
            # One fused kernel: twice as fast as x * scale + shift, and equal to the layer it replaces to the last bit.
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return x if self.act is None else self.act(x)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The affine map of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # only a layer in training has use for it
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"

    @classmethod
    def like(cls, norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
        """A frozen copy of ``norm`` (shares its memory), on the same device."""
        act = getattr(norm, "act", None)
        with torch.device("meta"):
            frozen = cls(norm.num_features, norm.eps, None if isinstance(act, nn.Identity) else act)
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError("a batch norm without running statistics cannot be frozen")
        ones = torch.ones_like(variance) if norm.weight is None else norm.weight.detach()
        zeros = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
        frozen.weight, frozen.bias = ones, zeros
        frozen.running_mean, frozen.running_var = mean, variance
        return frozen


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """``module`` with every ``BatchNorm2d`` in it replaced by its frozen copy (in place, unless it is one itself)."""
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNorm2d.like(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norms(child))
    return module


class JoinedConv2d(FastConv2d):
    """A convolution that does the work of the frozen batch norm behind it while gradients are computed.

    It scales its weight, which is small, so that features are neither scaled nor kept once more for the backward pass.
    Without gradients both layers work on their own, to the last bit as before. Parameters and names stay.

    Attributes:
        norms: the batch norm, in a tuple that keeps it from being a child; empty once it is folded for good.
    """

    norms: tuple[FrozenBatchNorm2d, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if not (self.norms and torch.is_grad_enabled()):
            return super().forward(x)
        scale, shift = self.norms[0].scale_and_shift()
        bias = shift if self.bias is None else shift + self.bias * scale
        return self.convolve(x, self.weight * scale[:, None, None, None], bias)


def join(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
    """Let ``conv`` do the work of ``norm``, which reads its result and nothing else; in place."""
    conv.__class__ = JoinedConv2d
    assert isinstance(conv, JoinedConv2d)
    conv.norms, norm.joined = (norm,), True
