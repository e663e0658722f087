"""The published generators of pix2pix and CycleGAN (pytorch-CycleGAN-and-pix2pix) as runs of ours.

A published file holds one generator and nothing else; what a run has beside it (discriminators, the way back) starts
anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit import Head
from visionkit.model.importing import Importer, rename
from visionkit.types import FeatureSpec, LabelSet
from visionkit_translation.cyclegan import CycleGAN
from visionkit_translation.pix2pix import Pix2Pix


def unet_names(downs: int) -> dict[str, str]:
    """Beginnings of the names in a published U-Net of so many steps down -> ours.

    Each published step holds all steps inside it, so names grow inwards.
    """
    names, prefix = {}, "model."
    for i in range(downs):
        inner = i == downs - 1
        conv, up = ("0", "3") if i == 0 else ("1", "3" if inner else "5")
        names[f"{prefix}model.{conv}."] = f"down.{i}.{0 if i == 0 else 1}."
        names[f"{prefix}model.{up}."] = f"up.{downs - 1 - i}.1."
        if i:
            names[f"{prefix}model.{int(up) + 1}."] = f"up.{downs - 1 - i}.2."
            names |= {} if inner else {f"{prefix}model.2.": f"down.{i}.2."}
        prefix += "model.1." if i == 0 else "model.3."
    return names


def resnet_names(blocks: int) -> dict[str, str]:
    """Beginnings of the names in a published ResNet generator -> ours; its normalisations have no tensors."""
    names = {f"model.{i}.": f"layers.{i}." for i in (1, 4, 7)}
    for block in range(10, 10 + blocks):
        names |= {f"model.{block}.conv_block.{i}.": f"layers.{block}.layers.{i}." for i in (1, 5)}
    after = 10 + blocks
    return names | {f"model.{i}.": f"layers.{i}." for i in (after, after + 3, after + 7)}


def patchgan_names() -> dict[str, str]:
    """Of a discriminator."""
    return {"model.": ""}


def without_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what batch norms counted: the published programs do not use it either."""
    counted = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in state.items() if not name.endswith(counted)}


class Pix2PixUNet256(Importer):
    """The U-Net for pictures of 256 pixels."""

    pipeline = """
heads:
  picture: {name: pix2pix}
evaluate:
  transforms: [{name: resize, size: 256}]
"""
    labels = {"picture": LabelSet(())}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {theirs: f"heads.picture.generator.{ours}" for theirs, ours in unet_names(8).items()}
        return anew(Pix2Pix(FeatureSpec(), LabelSet(()))) | rename(without_statistics(state), names)


class CycleGANResNet9(Importer):
    """The generator with nine residual blocks, as the way from the first domain to the second."""

    pipeline = """
heads:
  picture: {name: cyclegan}
evaluate:
  transforms: [{name: resize, size: 256}]
"""
    labels = {"picture": LabelSet(())}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {theirs: f"heads.picture.forth.{ours}" for theirs, ours in resnet_names(9).items()}
        return anew(CycleGAN(FeatureSpec(), LabelSet(()))) | rename(without_statistics(state), names)


def anew(head: Head) -> dict[str, Tensor]:
    """The tensors of a head that nobody has trained."""
    return {f"heads.picture.{name}": value for name, value in head.state_dict().items()}
