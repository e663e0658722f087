"""What torchvision's detection models have in common, for importers of their weights: ResNet, feature pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import Importer, numbers_in, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.numbers import AnchorSizes, Factors, NonNegative

# Pixels and sums in torchvision's own order: what is found is then equal to the last bits.
EVALUATE: Mapping[str, Any] = {
    "train": {"channels_last": False},
    "evaluate": {"transforms": ["normalize", {"name": "resize", "short": 800, "long": 1333, "exact": True}]},
}
"""The sections of a pipeline in which images are treated as there."""


class DetectorImporter(Importer):
    """Base of the importers of torchvision's detectors: the settings that cannot be determined from tensors.

    Args:
        anchor_sizes: of each level, where they are not torchvision's.
        anchor_ratios: height / width of the anchors, likewise.
        norm_eps: of frozen batch norms; 0 for a model that was fine-tuned from torchvision's weights ``COCO_V1``. The
            published files themselves are recognized.
    """

    def __init__(
        self,
        *,
        anchor_sizes: AnchorSizes | None = None,
        anchor_ratios: Factors | None = None,
        norm_eps: NonNegative = 1e-5,
    ) -> None:
        self.anchor_sizes, self.anchor_ratios, self.norm_eps = anchor_sizes, anchor_ratios, norm_eps


def stages(state: Mapping[str, Tensor]) -> list[str]:
    """What the names of each stage of the backbone begin with; torchvision leaves out those that nothing reads.

    Raises:
        UserError: it is no ResNet.
    """
    found = [f"backbone.body.layer{i}." for i in numbers_in(state, "backbone.body.layer#.")]
    if not found:
        raise UserError("no tensor begins with 'backbone.body.layer1.', so that its backbone is no ResNet")
    return found


def backbone_section(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The backbone's section. Without normalisations in the pyramid, those of the backbone are frozen."""
    frozen = {"frozen_bn": True} if lateral(state, 0, "1.weight") not in state else {}
    return {"name": "timm", **resnet_section(state, stages(state)), **frozen}


def neck_section(state: Mapping[str, Tensor], extra: str) -> dict[str, Any]:
    """The section of the feature pyramid with ``extra`` levels."""
    keys: dict[str, Any] = {"name": "fpn", "channels": shape_of(state, lateral(state, 0))[0]}
    keys["inputs"] = [f"c{level}" for level in levels_of(state)]
    if lateral(state, 0, "1.weight") in state:
        keys["norm"] = "batch"
    return {**keys, "extra": extra}


def lateral(state: Mapping[str, Tensor], i: int, part: str | None = None) -> str:
    """Name of a tensor of a lateral convolution; of its weight by default, under the name that the file has."""
    name = f"backbone.fpn.inner_blocks.{i}."
    if part is None:
        part = "weight" if f"{name}weight" in state else "0.weight"
    return name + part


def levels_of(state: Mapping[str, Tensor]) -> list[int]:
    """The levels that the pyramid is built on, as numbers: those whose channels its lateral convolutions read.

    Raises:
        UserError: a lateral convolution that fits no stage.
    """
    convs = ("conv3", "conv2")
    outputs = {}
    for level, stage in enumerate(stages(state), start=2):
        last = next((f"{stage}0.{conv}.weight" for conv in convs if f"{stage}0.{conv}.weight" in state), stage)
        outputs[shape_of(state, last)[0]] = level
    found = []
    for i in numbers_in(state, "backbone.fpn.inner_blocks.#."):
        channels = shape_of(state, lateral(state, i))[1]
        if channels not in outputs:
            raise UserError(f"{lateral(state, i)} reads {channels} channels, which no stage of the backbone has")
        found.append(outputs[channels])
    return found


def backbone_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Beginnings of their names -> ours, of a ResNet and the feature pyramid on some of its levels.

    Files that were published before version 0.13 have no number for the convolution in a block of the pyramid.
    """
    names = {"backbone.body.": "backbone.body.", "backbone.fpn.extra_blocks.": "neck.extras."}
    normed = lateral(state, 0, "1.weight") in state
    for i, level in enumerate(levels_of(state)):
        for block, ours in (("inner", f"neck.lateral.c{level}."), ("layer", f"neck.output.p{level}.")):
            names[f"backbone.fpn.{block}_blocks.{i}."] = ours
            names[f"backbone.fpn.{block}_blocks.{i}.0."] = f"{ours}conv." if normed else ours
            names[f"backbone.fpn.{block}_blocks.{i}.1."] = f"{ours}norm."
    return names


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` without the batch counters that only batch norms in training have."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(".num_batches_tracked")}


def published_batch_norms(state: Mapping[str, Tensor], theirs: float = 0.0, ours: float = 1e-5) -> dict[str, Tensor]:
    """Batch norms that were trained with the epsilon ``theirs``, as equal ones with ``ours``, by other scales.

    It is 0 in the published files of the first versions, which torchvision sets only when it loads them itself.
    """
    new = dict(state)
    for name, variance in state.items():
        if name.endswith(".running_var") and theirs != ours:
            scale = name.replace("running_var", "weight")
            wide = variance.double()
            new[scale] = (state[scale].double() * ((wide + ours) / (wide + theirs)).sqrt()).to(state[scale].dtype)
    return new
