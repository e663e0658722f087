"""Perceptual losses: pictures compared by what a network for recognition sees in them (Johnson et al., ECCV 2016)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.importing import read_state
from visionkit.types.device import without_autocast

Convention = Literal["torchvision", "caffe"]
"""What pixels a VGG was trained on. ``torchvision``: RGB, 0 ... 1, less ImageNet's mean and over its deviation.
``caffe``, the authors': BGR, 0 ... 255, less a mean."""

STAGES = (2, 2, 3, 3, 3)
"""Convolutions of the stages of VGG-16 (Simonyan and Zisserman, ICLR 2015); between stages sides are halved."""


class VGG16(nn.Module):
    """The convolutions of VGG-16, frozen: layers by name, ``relu1_1`` ... ``relu5_3``, from pictures.

    Nothing in it is trained, and it has no parts that differ between training and evaluation. Tensors are named
    ``features.N.weight`` as torchvision's are.

    Args:
        layers: names of the layers that are wanted; no others are built behind the last of them.
        weights: a file of torchvision's VGG-16 weights, ``imagenet`` to have torchvision download them, or ``None`` for
            random ones, with which a loss works too, though it sees less.
        convention: of the pixels that the weights were trained on.
        width: channels of the first stage; other than 64 for trying things out.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: Collection[str],
        *,
        weights: str | None = None,
        convention: Convention = "torchvision",
        width: int = 64,
    ) -> None:
        super().__init__()
        names = [f"relu{stage}_{i}" for stage, count in enumerate(STAGES, 1) for i in range(1, count + 1)]
        if unknown := [name for name in layers if name not in names]:
            raise UserError(f"VGG-16 has no layer '{unknown[0]}' (layers: {names[0]} ... {names[-1]})")
        last = max(names.index(name) for name in layers)
        parts: list[nn.Module] = []
        self.at: dict[int, str] = {}
        channels = 3
        for name in names[: last + 1]:
            stage, i = int(name[4]), int(name[6])
            if i == 1 and stage > 1:
                parts.append(nn.MaxPool2d(2))
            parts += [nn.Conv2d(channels, channels := width * min(2 ** (stage - 1), 8), 3, padding=1), nn.ReLU()]
            if name in layers:
                self.at[len(parts) - 1] = name
        self.features = nn.Sequential(*parts)
        self.weights, self.bgr = weights, convention == "caffe"
        mean, std = (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)
        if not self.bgr:
            mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self._fill(weights)
        self.requires_grad_(False)

    def _fill(self, weights: str | None) -> None:
        if weights is None:
            for module in self.features:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            return
        mine = self.features.state_dict()
        wanted = {f"features.{name}" for name in mine}
        state = _published() if weights == "imagenet" else read_state(Path(weights), wanted)
        found = {name: state.get(f"features.{name}") for name in mine}
        for name, value in mine.items():
            theirs = found[name]
            if theirs is None or theirs.shape != value.shape:
                has = "no such tensor" if theirs is None else f"one of {tuple(theirs.shape)}"
                raise UserError(f"{weights}: is no VGG-16 of torchvision: features.{name} is {tuple(value.shape)} "
                                f"there, and it has {has}")  # fmt: skip
        self.features.load_state_dict(found)

    def problems(self) -> list[str]:
        """What a user of a head with this network should know."""
        if self.weights is not None:
            return []
        return ["its VGG-16 has random weights, which see little; 'vgg' takes a file of trained ones"]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """The layers, each (B, C, h, w), from pictures (B, 3, H, W) in -1 ... 1, RGB."""
        x = (pictures + 1.0) * 127.5
        x = ((x.flip(1) if self.bgr else x) - self.mean) / self.std
        seen = {}
        for i, part in enumerate(self.features):
            x = part(x)
            if i in self.at:
                seen[self.at[i]] = x
        return seen


def _published() -> Mapping[str, Tensor]:
    """torchvision's weights, from its cache or the network."""
    from torchvision.models import VGG16_Weights

    try:
        return VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, no disk, a damaged file
        raise UserError(f"the weights of VGG-16 cannot be downloaded ({error}); give a file of them") from None


def gram(features: Tensor) -> Tensor:
    """(B, C, C) products of the channels of features (B, C, H, W), over C H W (Johnson et al., equation 3).

    They do not know where something is, only what goes with what.
    """
    flat = features.float().flatten(2)
    with without_autocast(flat.device):  # sums of this size overflow in half precision
        return flat @ flat.transpose(1, 2) / flat[0].numel()


def content_cost(made: Tensor, seen: Tensor) -> Tensor:
    """Mean squared difference of two layers (Johnson et al., equation 2)."""
    return (made.float() - seen.float()).square().mean()


def style_cost(made: Tensor, style: Tensor) -> Tensor:
    """Mean squared difference of the Gram matrices of ``made`` (B, C, H, W) from one (C, C).

    The mean is that of the authors' program; equation 4 of the paper has the sum, which is C^2 times as much.
    """
    return (gram(made) - style).square().mean()


def total_variation(pictures: Tensor) -> Tensor:
    """Squared differences of neighbours, summed over a picture in 0 ... 255, a mean over the pictures (B, 3, H, W) in
    -1 ... 1."""
    x = pictures.float() * 127.5
    down, right = x[:, :, 1:] - x[:, :, :-1], x[..., 1:] - x[..., :-1]
    return (down.square().sum() + right.square().sum()) / len(x)
