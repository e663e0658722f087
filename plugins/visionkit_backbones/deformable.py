"""Deformable convolutions in the place of the 3x3 ones of a ResNet (Dai et al., ICCV 2017, section 2.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from visionkit.errors import UserError
from visionkit.layers.deform import DeformConv

STAGES: Mapping[str, str] = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}
"""Level -> timm's name of the stage that makes it."""


def deform_stages(body: nn.Module, model: str, stages: Collection[str], modulated: bool) -> None:
    """Make the last 3x3 convolution of every block of some stages deformable.

    Weights, strides, dilations, and what is frozen stay as they are. Offsets start at 0, so the network first is what
    it was; with ``modulated``, those convolutions give half of that. Stages that are not built are passed over.

    Args:
        body: a ResNet of timm; changed.
        model: its name, for messages.
        stages: levels whose stages are meant, of ``c2`` ... ``c5``.
        modulated: see :class:`~visionkit.layers.deform.DeformConv`.

    Raises:
        UserError: a level that no stage makes, no ResNet, or grouped convolutions.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise UserError(f"deformable_stages: no stage '{unknown[0]}' (there is: {', '.join(STAGES)})")
    if stages and not any(isinstance(module, BasicBlock | Bottleneck) for module in body.modules()):
        raise UserError(f"deformable_stages: {model} is no ResNet")
    for level in stages:
        for block in getattr(body, STAGES[level], ()):
            block.conv2 = deformable(block.conv2, model, modulated)


def deformable(conv: nn.Conv2d, model: str, modulated: bool) -> DeformConv:
    """A deformable convolution with the weights of an ordinary one."""
    if conv.groups != 1:
        raise UserError(
            f"deformable_stages: {model} has convolutions in {conv.groups} groups, which cannot be deformed"
        )
    layer = DeformConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        stride=conv.stride[0],
        dilation=conv.dilation[0],
        modulated=modulated,
        bias=conv.bias is not None,
    )
    with torch.no_grad():
        layer.weight.copy_(conv.weight)
        if layer.bias is not None and conv.bias is not None:
            layer.bias.copy_(conv.bias)
    for parameter in layer.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return layer
