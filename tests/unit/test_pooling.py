"""Max pooling before ReLU: the same numbers from less memory."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from visionkit.layers.pooling import MaxPoolReLU
from visionkit_backbones.timm_backbone import TimmBackbone


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The levels, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    levels = module(x)
    levels = list(levels.values()) if isinstance(levels, dict) else levels
    sum((level * level.detach().flip(3)).sum() for level in levels).backward()
    return [*levels, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("levels", [["c2", "c5"], ["c1", "c2", "c5"]])
def test_a_resnet_is_timms_to_the_last_bit(levels: list[str], memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16)}
    mine = TimmBackbone(model="resnet18", levels=levels, options=options)
    indices = [int(level[1]) - 1 for level in levels]
    theirs = timm.create_model("resnet18", features_only=True, out_indices=indices, **options)
    theirs.load_state_dict(mine.body.state_dict())
    assert isinstance(mine.body.maxpool, MaxPoolReLU) == ("c1" not in levels)
    x = torch.randn(2, 3, 70, 97).contiguous(memory_format=memory)
    for a, b in zip(gradients(mine.train(), x), gradients(theirs.train(), x), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        for a, b in zip(mine.eval()(x).values(), theirs.eval()(x), strict=True):
            assert torch.equal(a, b)


def test_only_the_places_of_the_largest_values_are_kept() -> None:
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    layer = MaxPoolReLU(3, 2, 1)
    x = torch.randn(2, 4, 32, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        layer(x * 1.0)
    assert {tuple(value.shape) for value in kept if value.ndim} == {(2, 4, 16, 16)}
    assert torch.autograd.gradcheck(layer, x[:, :1, :6, :6].detach().double().requires_grad_())
