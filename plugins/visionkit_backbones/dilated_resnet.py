"""ResNets as semantic segmentation dilates them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import timm
import torch.nn.functional as F
from timm.models import is_model_in_modules
from torch import Tensor

from visionkit.errors import UserError
from visionkit.model import Backbone
from visionkit.numbers import Count, OpenFraction, Positive
from visionkit.types import FeatureSpec, Level
from visionkit_backbones.deformable import deform_stages
from visionkit_backbones.timm_backbone import TimmBackbone


class DilatedResNet(Backbone):
    """A ResNet of timm whose deep stages are dilated in every block, with a multi-grid in the last one.

    ``timm`` with an output stride keeps the dilation of the stage before in the first block of a stage, as torchvision
    does. The DeepLabs and PSPNet dilate that one too, and DeepLabv3 dilates the blocks of the last stage each in its
    own way (Chen et al., arXiv:1706.05587, section 3.2.1).

    Args:
        model: timm's name of a ResNet.
        levels: names of the levels that are read; ``None``: all.
        output_stride: 8, 16 or 32; deeper stages are dilated instead of striding.
        multi_grid: what the dilation of each block of the last stage is multiplied by; DeepLabv3 has 1, 2, 4.
        pretrained, frozen_stages, frozen_bn, stride_in_1x1, options: as for ``timm``. ``options: {stem_width: 64,
            stem_type: deep}`` is the stem of PSPNet.
        deformable_stages, modulated: as for ``timm``, with the dilations of the stages.
        scales: of smaller copies of the image, which are looked at too; what is seen there are levels of their own,
            ``c5@0.75`` for the level ``c5`` of a copy of three quarters. Their strides are rounded.
        pixels: ``imagenet`` for the mean and spread of ImageNet, ``caffe`` for values 0 ... 255 less Caffe's mean.

    Raises:
        UserError: no ResNet, an output stride that is none of these, a multi-grid of another length than the stage,
            or a scale that makes the image no smaller.
    """

    def __init__(
        self,
        *,
        model: str = "resnet101",
        levels: Collection[str] | None = None,
        output_stride: Literal[8, 16, 32] = 16,
        multi_grid: Sequence[Positive] | None = None,
        pretrained: bool | str = False,
        frozen_stages: Count = 0,
        frozen_bn: bool = False,
        stride_in_1x1: bool = False,
        deformable_stages: Sequence[str] = (),
        modulated: bool = False,
        options: dict[str, Any] | None = None,
        scales: Sequence[OpenFraction] = (),
        pixels: Literal["imagenet", "caffe"] = "imagenet",
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise UserError(f"output_stride: {output_stride} is none of 8, 16, 32")
        if timm.is_model(model) and not is_model_in_modules(model.split(".")[0], ["resnet"]):
            raise UserError(f"model: {model} is no ResNet")
        if wrong := [scale for scale in scales if not 0 < scale < 1]:
            raise UserError(f"scales: {wrong[0]} is not between 0 and 1; the image itself is always looked at")
        self.resnet = TimmBackbone(
            model=model,
            levels=None if levels is None else {level.partition("@")[0] for level in levels},
            output_stride=output_stride,
            pretrained=pretrained,
            frozen_stages=frozen_stages,
            frozen_bn=frozen_bn,
            stride_in_1x1=stride_in_1x1,
            options=options,
        )
        plain = self.resnet.spec
        smaller = {scale: {f"{name}@{scale:g}": name for name in plain} for scale in scales}
        # By scale, the levels that are read of that copy, and what the network calls them.
        self.smaller = {
            scale: {ours: name for ours, name in names.items() if levels is None or ours in levels}
            for scale, names in smaller.items()
        }
        self.spec = plain | FeatureSpec(
            {
                ours: Level(plain[name].channels, round(plain[name].stride / scale))
                for scale, names in self.smaller.items()
                for ours, name in names.items()
            }
        )
        self.mean, self.std = self.resnet.mean, self.resnet.std
        if pixels == "caffe":
            self.mean = (122.675 / 255, 116.669 / 255, 104.008 / 255)
            self.std = (1 / 255, 1 / 255, 1 / 255)
        for stage, stride in (("layer3", 16), ("layer4", 32)):
            if blocks := getattr(self.resnet.body, stage, None):
                grid = multi_grid if stage == "layer4" and multi_grid else [1] * len(blocks)
                _dilate(list(blocks), [max(1, stride // output_stride) * g for g in grid], model)
        deform_stages(self.resnet.body, model, deformable_stages, modulated)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels that are read, each (B, channels, H / stride, W / stride), rounded up."""
        found: dict[str, Tensor] = self.resnet(images)
        for scale, names in self.smaller.items():
            if names:
                size = [round(int(side) * scale) for side in images.shape[-2:]]
                copy = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
                seen = self.resnet(copy)
                found |= {ours: seen[name] for ours, name in names.items()}
        return found


def _dilate(blocks: list[Any], dilations: Sequence[int], model: str) -> None:
    """Set the dilation of the 3x3 convolutions of every block."""
    if len(blocks) != len(dilations):
        raise UserError(
            f"multi_grid: {len(dilations)} factors for the {len(blocks)} blocks of the last stage of {model}"
        )
    for block, dilation in zip(blocks, dilations):
        for conv in (block.conv1, block.conv2):
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
