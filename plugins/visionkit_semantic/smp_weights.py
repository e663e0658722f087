"""``Unet`` and ``DeepLabV3Plus`` of segmentation_models.pytorch, on ResNets, as runs of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import Importer, class_labels, count_in, given, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet
from visionkit_semantic.deeplab_pytorch_weights import fitting_rates
from visionkit_semantic.voc import VOC

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
HEAD = "heads.semantic."
SCORE = "segmentation_head.0."


class SMP(Importer):
    """What both have in common. Which ResNet it is and how many classes there are is read from the tensors.

    A model of one class gives the probability of a foreground by a sigmoid: the same as two classes of which the
    background always scores 0.
    """

    key = f"{SCORE}weight"

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        classes = shape_of(state, self.key)[0]
        labels = LabelSet(("background", "foreground")) if classes == 1 else class_labels(classes, VOC)
        text = section(**self.model_of(state), train={"channels_last": False})
        return text, {"semantic": labels}

    @abstractmethod
    def model_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Sections of the backbone and the head."""

    def scores(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The last layer, with a background where there is one class."""
        found = {name: state[f"{SCORE}{name}"] for name in ("weight", "bias") if f"{SCORE}{name}" in state}
        if any(len(tensor) == 1 for tensor in found.values()):
            found = {name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in found.items()}
        return {f"{HEAD}score.{name}": tensor for name, tensor in found.items()}


class Unet(SMP):
    """``Unet("resnet...")`` of any encoder depth and decoder channels, without attention."""

    def model_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        widths = _widths(state)
        head = {
            "name": "unet",
            "levels": [f"c{i}" for i in range(len(widths), 0, -1)],
            "channels": widths[:-1],
            "last": widths[-1],
            "kernel": 3,
            "narrow": False,
            "upsampling": "nearest",
        }
        if "decoder.blocks.0.conv1.1.weight" in state:
            head["norm"] = "batch"
        return {"backbone": {"name": "timm", **_resnet(state)}, "heads": {"semantic": head}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        widths = _widths(state)
        names = {"encoder.": "backbone.body."}
        for j in (0, 1):
            theirs, ours = f"decoder.blocks.#.conv{j + 1}.", f"{HEAD}convs.#.{j}."
            names |= {f"{theirs}0.": f"{ours}conv.", f"{theirs}1.": f"{ours}norm."}
        # An encoder of fewer levels still has the deeper stages, which nothing reads.
        unread = (SCORE, *(f"encoder.layer{stage}." for stage in range(len(widths), 5)))
        found = rename({name: tensor for name, tensor in state.items() if not name.startswith(unread)}, names)
        # They put a level behind the enlarged map, we before it.
        outputs = {1: "conv1.weight"} | {
            i: f"layer{i - 1}.0.conv{3 if 'encoder.layer1.0.conv3.weight' in state else 2}.weight" for i in range(2, 6)
        }
        before = shape_of(state, f"encoder.{outputs[len(widths)]}")[0]
        for i, width in enumerate(widths):
            name = f"{HEAD}convs.{i}.0.conv.weight"
            if name in found:
                found[name] = torch.cat([found[name][:, before:], found[name][:, :before]], 1)
            before = width
        return found | self.scores(state)


class DeepLabV3Plus(SMP):
    """``DeepLabV3Plus("resnet...")``.

    Args:
        output_stride: 8 or 16; it cannot be determined from the weights.
        rates: dilations of the branches, as ``decoder_atrous_rates`` has them.
    """

    def __init__(self, *, output_stride: Literal[8, 16] | None = None, rates: Sequence[int] = (12, 24, 36)) -> None:
        self.output_stride, self.rates = output_stride, tuple(rates)

    names: Mapping[str, str] = {
        "encoder.": "backbone.resnet.body.",
        "decoder.aspp.0.convs.0.0.": f"{HEAD}aspp.branches.0.conv.",
        "decoder.aspp.0.convs.0.1.": f"{HEAD}aspp.branches.0.norm.",
        **{
            f"decoder.aspp.0.convs.#.{theirs}.": f"{HEAD}aspp.branches.#.{ours}."
            for theirs, ours in (("0.0", "depthwise"), ("0.1", "pointwise"), ("1", "norm"))
        },
        "decoder.aspp.0.project.0.": f"{HEAD}aspp.project.conv.",
        "decoder.aspp.0.project.1.": f"{HEAD}aspp.project.norm.",
        "decoder.aspp.1.0.": f"{HEAD}between.depthwise.",
        "decoder.aspp.1.1.": f"{HEAD}between.pointwise.",
        "decoder.aspp.2.": f"{HEAD}between.norm.",
        "decoder.block1.0.": f"{HEAD}reduce.conv.",
        "decoder.block1.1.": f"{HEAD}reduce.norm.",
        "decoder.block2.0.0.": f"{HEAD}decoder.0.depthwise.",
        "decoder.block2.0.1.": f"{HEAD}decoder.0.pointwise.",
        "decoder.block2.1.": f"{HEAD}decoder.0.norm.",
    }

    def model_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        stride = given(self.output_stride, "output_stride", "8 or 16")
        rates = fitting_rates(self.rates, self._pooled(state) - 1)
        if wrong := [rate for rate in rates if rate * stride % 16]:
            raise UserError(f"rates: {wrong[0]} at output stride {stride} is not even")
        head = {
            "name": "deeplab_v3plus",
            "rates": [rate * stride // 16 for rate in rates],  # ours are those at output stride 16
            "channels": shape_of(state, "decoder.aspp.2.weight")[0],
            "fine_channels": shape_of(state, "decoder.block1.0.weight")[0],
            "convs": 1,
            "separable": True,
            "between": True,
            "dropout": [0.5, 0.0],
            "align": "ends",
        }
        backbone = {"name": "dilated_resnet", **_resnet(state), "output_stride": stride}
        return {"backbone": backbone, "heads": {"semantic": head}}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(SCORE)}
        pool = f"decoder.aspp.0.convs.{self._pooled(state)}."
        pooling = {f"{pool}1.": f"{HEAD}aspp.pool.conv.", f"{pool}2.": f"{HEAD}aspp.pool.norm."}
        return rename(rest, {**self.names, **pooling}) | self.scores(state)

    def _pooled(self, state: Mapping[str, Tensor]) -> int:
        """The number of the branch with the average of the whole map, which is the last one."""
        return count_in(state, "decoder.aspp.0.convs.#.") - 1


def _resnet(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keys of a backbone section for the encoder. Raises ``UserError`` where it is none of ``RESNETS``."""
    try:
        found = resnet_section(state, [f"encoder.layer{i}." for i in range(1, 5)])
    except UserError:
        found = {"model": None}
    if found["model"] not in RESNETS:
        raise UserError(f"its encoder is none of {', '.join(RESNETS)}")
    return found


def _widths(state: Mapping[str, Tensor]) -> list[int]:
    """Channels of the decoder, step by step. Raises ``UserError`` where it has not 2 to 5 steps."""
    steps = count_in(state, "decoder.blocks.#.")
    if not 2 <= steps <= 5:
        raise UserError(f"a decoder of {steps} steps; a Unet on a ResNet has 2 to 5")
    return [shape_of(state, f"decoder.blocks.{i}.conv2.0.weight")[0] for i in range(steps)]
