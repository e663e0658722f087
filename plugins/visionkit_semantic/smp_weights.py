"""``Unet`` and ``DeepLabV3Plus`` of segmentation_models.pytorch, on ResNets, as runs of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import Importer, rename
from visionkit.types import LabelSet
from visionkit_semantic.voc import VOC

RESNETS: Mapping[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
"""Whether blocks are bottlenecks, and how many of them each stage has."""
HEAD = "heads.semantic."
SCORE = "segmentation_head.0."


class SMP(Importer):
    """What both have in common. Which ResNet it is and how many classes there are is told from the tensors.

    A model of one class gives the probability of a foreground by a sigmoid: the same as two classes of which the
    background always scores 0.
    """

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        score = state.get(f"{SCORE}weight")
        if score is None:
            raise UserError(f"no '{SCORE}weight': not a whole model of segmentation_models.pytorch")
        classes = len(score)
        if classes == 1:
            labels = LabelSet(("background", "foreground"))
        else:
            labels = VOC if classes == len(VOC) else LabelSet(tuple(f"class {i}" for i in range(classes)))
        text = f"{self.model_of(state)}\ntrain: {{channels_last: false}}\n"
        return text, {"semantic": labels}

    @abstractmethod
    def model_of(self, state: Mapping[str, Tensor]) -> str:
        """Backbone and head as YAML."""

    def scores(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The last layer, with a background where there is one class."""
        found = {name: state[f"{SCORE}{name}"] for name in ("weight", "bias") if f"{SCORE}{name}" in state}
        if any(len(tensor) == 1 for tensor in found.values()):
            found = {name: torch.cat([torch.zeros_like(tensor), tensor]) for name, tensor in found.items()}
        return {f"{HEAD}score.{name}": tensor for name, tensor in found.items()}


class Unet(SMP):
    """``Unet("resnet...")``, of any decoder channels, with batch norm and without attention."""

    def model_of(self, state: Mapping[str, Tensor]) -> str:
        widths = _widths(state)
        return (
            f"backbone: {{name: timm, model: {_resnet(state)}}}\n"
            f"heads: {{semantic: {{name: unet, channels: {widths[:-1]}, last: {widths[-1]}, kernel: 3, narrow: false,"
            " upsampling: nearest, norm: batch}}"
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {"encoder.": "backbone.body."}
        for i, _ in enumerate(_widths(state)):
            for j in (0, 1):
                theirs, ours = f"decoder.blocks.{i}.conv{j + 1}.", f"{HEAD}convs.{i}.{j}."
                names |= {f"{theirs}0.": f"{ours}conv.", f"{theirs}1.": f"{ours}norm."}
        found = rename({name: tensor for name, tensor in state.items() if not name.startswith(SCORE)}, names)
        # They put a level behind the enlarged map, we before it.
        before = 2048 if "encoder.layer1.0.conv3.weight" in state else 512
        for i, width in enumerate(_widths(state)):
            name = f"{HEAD}convs.{i}.0.conv.weight"
            if name in found:
                found[name] = torch.cat([found[name][:, before:], found[name][:, :before]], 1)
            before = width
        return found | self.scores(state)


class DeepLabV3Plus(SMP):
    """``DeepLabV3Plus("resnet...")`` at output stride 16 and with its own rates of 12, 24 and 36.

    Neither can be told from tensors: where yours had others, change ``output_stride`` and ``rates`` in the run's
    ``pipeline.yaml``.
    """

    names: Mapping[str, str] = {
        "encoder.": "backbone.resnet.body.",
        "decoder.aspp.0.convs.0.0.": f"{HEAD}aspp.branches.0.conv.",
        "decoder.aspp.0.convs.0.1.": f"{HEAD}aspp.branches.0.norm.",
        **{
            f"decoder.aspp.0.convs.{i}.{theirs}.": f"{HEAD}aspp.branches.{i}.{ours}."
            for i in (1, 2, 3)
            for theirs, ours in (("0.0", "depthwise"), ("0.1", "pointwise"), ("1", "norm"))
        },
        "decoder.aspp.0.convs.4.1.": f"{HEAD}aspp.pool.conv.",
        "decoder.aspp.0.convs.4.2.": f"{HEAD}aspp.pool.norm.",
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

    def model_of(self, state: Mapping[str, Tensor]) -> str:
        return (
            f"backbone: {{name: dilated_resnet, model: {_resnet(state)}, output_stride: 16}}\n"
            "heads: {semantic: {name: deeplab_v3plus, rates: [12, 24, 36], convs: 1, separable: true, between: true,"
            " dropout: [0.5, 0.0], align: ends}}"
        )

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(SCORE)}
        return rename(rest, self.names) | self.scores(state)


def _resnet(state: Mapping[str, Tensor]) -> str:
    """timm's name of the encoder. Raises ``UserError`` where it is none of ``RESNETS``."""
    blocks = tuple(
        len({name.split(".")[2] for name in state if name.startswith(f"encoder.layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    conv = state.get("encoder.layer1.0.conv2.weight")
    name = RESNETS.get(("encoder.layer1.0.conv3.weight" in state, blocks))
    if name is None or conv is None or tuple(conv.shape[:2]) != (64, 64):
        raise UserError(f"its encoder is none of {', '.join(RESNETS.values())}")
    return name


def _widths(state: Mapping[str, Tensor]) -> list[int]:
    """Channels of the decoder, step by step. Raises ``UserError`` for another number of steps than a ResNet has."""
    names = [f"decoder.blocks.{i}.conv2.0.weight" for i in range(5)]
    if missing := [name for name in names if name not in state]:
        raise UserError(f"no '{missing[0]}': not a Unet of five steps")
    return [len(state[name]) for name in names]
