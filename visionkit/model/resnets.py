"""Which ResNet the tensors of a state dict belong to, for importers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import numbers_in, shape_of

# timm's names, by whether blocks are bottlenecks, blocks per stage, groups of the 3 x 3 convolutions, and the width of
# a group in the first stage.
_KNOWN: Mapping[tuple[bool, tuple[int, ...], int, int], str] = {
    (False, (2, 2, 2, 2), 1, 64): "resnet18",
    (False, (3, 4, 6, 3), 1, 64): "resnet34",
    (True, (3, 4, 6, 3), 1, 64): "resnet50",
    (True, (3, 4, 23, 3), 1, 64): "resnet101",
    (True, (3, 8, 36, 3), 1, 64): "resnet152",
    (True, (3, 4, 6, 3), 1, 128): "wide_resnet50_2",
    (True, (3, 4, 23, 3), 1, 128): "wide_resnet101_2",
    (True, (3, 4, 6, 3), 32, 4): "resnext50_32x4d",
    (True, (3, 4, 23, 3), 32, 4): "resnext101_32x4d",
    (True, (3, 4, 23, 3), 32, 8): "resnext101_32x8d",
    (True, (3, 4, 23, 3), 64, 4): "resnext101_64x4d",
}
TORCHVISION = ("conv1", "conv2", "conv3")
"""Names of the convolutions of a block, which timm shares."""


def resnet_section(
    state: Mapping[str, Tensor], stages: Sequence[str], convs: Sequence[str] = TORCHVISION
) -> dict[str, Any]:
    """The keys ``model`` and ``options`` of a backbone section for the ResNet that a state dict holds.

    Any number of blocks and any width per stage can be read from the shapes; strides and dilations cannot.

    Args:
        state: names and tensors.
        stages: for each stage, what its names begin with up to the number of the block (``backbone.layer1.``).
        convs: names of the two or three convolutions in a block.

    Raises:
        UserError: there are no such blocks.
    """
    blocks = [numbers_in(state, f"{stage}#.") for stage in stages]
    if empty := [stage for stage, numbers in zip(stages, blocks) if not numbers]:
        raise UserError(f"no tensor begins with '{empty[0]}', so that this is no ResNet of {len(stages)} stages")
    layers = tuple(map(len, blocks))
    firsts = [f"{stage}{min(numbers)}." for stage, numbers in zip(stages, blocks)]
    bottleneck = f"{firsts[0]}{convs[2]}.weight" in state
    last = convs[2] if bottleneck else convs[1]
    outputs = [shape_of(state, f"{first}{last}.weight")[0] for first in firsts]
    channels = [width // 4 for width in outputs] if bottleneck else outputs
    width, per_group = shape_of(state, f"{firsts[0]}{convs[1]}.weight")[:2]
    groups = width // per_group if bottleneck else 1
    base = per_group * 64 // channels[0] if bottleneck else 64
    model = next(
        (
            name
            for (kind, blocks_of, *widths), name in _KNOWN.items()
            if kind == bottleneck and blocks_of[: len(layers)] == layers and widths == [groups, base]
        ),
        None,
    )
    missing = 4 - len(layers)  # stages that nothing reads are not in every file
    options: dict[str, Any] = {}
    if model is None:
        model = "resnet50" if bottleneck else "resnet18"
        options["layers"] = [*layers, *[1] * missing]
        if groups > 1 or base != 64:
            options |= {"cardinality": groups, "base_width": base}
    usual = [64, 128, 256, 512]
    if channels != usual[: len(channels)]:
        options["channels"] = channels + [channels[-1]] * missing
    return {"model": model, **({"options": options} if options else {})}


def has_frozen_norms(state: Collection[str], prefix: str) -> bool:
    """Whether the batch norms below ``prefix`` are frozen ones, which have no counters of batches."""
    return not any(name.startswith(prefix) and name.endswith("num_batches_tracked") for name in state)
