"""The published generators of pix2pix and CycleGAN (pytorch-CycleGAN-and-pix2pix) as runs of ours.

A published file holds one generator and nothing else; what a run has beside it (discriminators, the way back) starts
anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit import Head
from visionkit.errors import UserError
from visionkit.model.importing import Importer, count_in, rename, section, shape_of
from visionkit.types import FeatureSpec, LabelSet
from visionkit_translation import cyclegan, pix2pix


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


def resnet_names(blocks: int, second: int = 5) -> dict[str, str]:
    """Beginnings of the names in a published ResNet generator -> ours.

    Args:
        blocks: how many residual blocks it has.
        second: place of the second convolution in a block: 5, or 6 where a dropout stands before it.
    """
    names = {f"model.{i}.": f"layers.{i}." for i in (1, 2, 4, 5, 7, 8)}
    for block in range(10, 10 + blocks):
        places = {1: 1, 2: 2, second: 5, second + 1: 6}
        names |= {f"model.{block}.conv_block.{i}.": f"layers.{block}.layers.{new}." for i, new in places.items()}
    after = 10 + blocks
    return names | {f"model.{i}.": f"layers.{i}." for i in (after, after + 1, after + 3, after + 4, after + 7)}


def patchgan_names() -> dict[str, str]:
    """Of a discriminator."""
    return {"model.": ""}


def without_statistics(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what batch norms counted: the published programs do not use it either."""
    counted = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value for name, value in state.items() if not name.endswith(counted)}


class _Generator(Importer):
    """A generator of either kind. Depth, width and normalization are read from the tensors."""

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        size = self.side(state)
        text = section(heads={"picture": self.head(state)}, evaluate={"transforms": [{"name": "resize", "size": size}]})
        return text, {"picture": LabelSet(())}

    def side(self, state: Mapping[str, Tensor]) -> int:
        """Pixels a side of the images."""
        return 256

    @abstractmethod
    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The section of the head."""

    @abstractmethod
    def untrained(self, state: Mapping[str, Tensor]) -> Head:
        """The head with random weights."""

    @abstractmethod
    def names(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        """Beginnings of their names -> ours within the head."""

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = {theirs: f"heads.picture.{ours}" for theirs, ours in self.names(state).items()}
        found = rename(without_statistics(state), names)
        begun = {name.split(".")[2] for name in found}  # what the file holds is whole, or it is an error
        fresh = anew(self.untrained(state))
        counted = without_statistics(fresh)
        return {n: v for n, v in fresh.items() if n not in counted or n.split(".")[2] not in begun} | found


class Pix2Pix(_Generator):
    """A generator of pix2pix: a U-Net of any depth and width, or a ResNet of any number of blocks and width."""

    key = ("model.model.0.weight", "model.10.conv_block.1.weight")

    def side(self, state: Mapping[str, Tensor]) -> int:
        return 128 if is_unet(state) and unet_depth(state) == 7 else 256

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "pix2pix", **self._options(state)}

    def untrained(self, state: Mapping[str, Tensor]) -> Head:
        return pix2pix.Pix2Pix(FeatureSpec(), LabelSet(()), **self._options(state))

    def _options(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        if not is_unet(state):
            return {"generator": "resnet", **resnet_options(state)}
        downs = unet_depth(state)
        inner = "model.model.1.model."
        width = three_colors(state, "model.model.0.weight", "model.model.3.weight", transposed=True)
        return {"downs": downs, "width": width, "norm": norm_in(state, f"{inner}1.bias", f"{inner}2.weight")}

    def names(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        names = unet_names(unet_depth(state)) if is_unet(state) else published_resnet(state)
        return {theirs: f"generator.{ours}" for theirs, ours in names.items()}


class CycleGAN(_Generator):
    """A generator of CycleGAN, of any number of blocks and width, as the way from the first domain to the second."""

    key = "model.10.conv_block.1.weight"

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "cyclegan", **resnet_options(state)}

    def untrained(self, state: Mapping[str, Tensor]) -> Head:
        return cyclegan.CycleGAN(FeatureSpec(), LabelSet(()), **resnet_options(state))

    def names(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        return {theirs: f"forth.{ours}" for theirs, ours in published_resnet(state).items()}


def is_unet(state: Mapping[str, Tensor]) -> bool:
    """Whether the generator is a U-Net."""
    return "model.model.0.weight" in state


def unet_depth(state: Mapping[str, Tensor]) -> int:
    """How many steps down a U-Net has."""
    depth, prefix = 1, "model.model.1."
    while f"{prefix}model.1.weight" in state:
        depth, prefix = depth + 1, f"{prefix}model.3."
    return depth


def published_resnet(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of the ResNet generator that the tensors are of."""
    return resnet_names(_blocks(state), 5 if "model.10.conv_block.5.weight" in state else 6)


def resnet_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a head for a ResNet generator."""
    blocks = _blocks(state)
    width = three_colors(state, "model.1.weight", f"model.{10 + blocks + 7}.weight")
    return {"blocks": blocks, "width": width, "norm": norm_in(state, "model.1.bias", "model.2.weight")}


def _blocks(state: Mapping[str, Tensor]) -> int:
    return count_in(state, "model.#.conv_block.")


def three_colors(state: Mapping[str, Tensor], first: str, last: str, *, transposed: bool = False) -> int:
    """Channels after the first convolution of a generator from color images to color images.

    Raises:
        UserError: other images.
    """
    width, inputs = shape_of(state, first)[:2]
    outputs = shape_of(state, last)[1 if transposed else 0]
    if (inputs, outputs) != (3, 3):
        raise UserError(f"a generator from {inputs} to {outputs} channels; only color images (3 to 3) can be imported")
    return width


def norm_in(state: Mapping[str, Tensor], bias: str, scale: str) -> str:
    """The normalization: one with a scale, or the instance norm without, beside which convolutions have biases.

    Raises:
        UserError: there is none.
    """
    if scale in state:
        return "image"
    if bias in state:
        return "instance"
    raise UserError(f"neither {scale} nor {bias} is there: generators without normalization cannot be imported")


def anew(head: Head) -> dict[str, Tensor]:
    """The tensors of a head that nobody has trained."""
    return {f"heads.picture.{name}": value for name, value in head.state_dict().items()}
