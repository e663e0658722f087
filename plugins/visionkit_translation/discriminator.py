"""The discriminator that judges patches, and what real and made pictures cost by its judgement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit_translation.generators import Norm, initialise, norm_of

Objective = Literal["vanilla", "least_squares", "hinge", "wasserstein"]
"""``vanilla``: cross-entropy, non-saturating (Goodfellow et al., NIPS 2014). ``least_squares``: squares from 1 and 0
(Mao et al., ICCV 2017). ``hinge``: real beyond 1, made below -1 (Lim and Ye, 2017). ``wasserstein``: plain scores, with
a penalty on gradients that are not of length 1 (Gulrajani et al., NIPS 2017)."""


class PatchGAN(nn.Sequential):
    """Real or made, for every patch of a picture (Isola et al., CVPR 2017, section 6.1.2).

    A judgement sees 16, 34, 70, 142, 286 or 574 pixels a side for 1 to 6 layers.

    Args:
        inputs: channels of what is judged; 6 for a picture beside the image that it was made from.
        layers: steps of stride 2.
        width: channels of the first step; they double to at most eight times as many.
        norm: of all layers but the first and the last.
    """

    def __init__(self, inputs: int = 3, *, layers: int = 3, width: int = 64, norm: Norm = "image") -> None:
        bias = norm == "instance"
        parts: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            before, after = width * min(2 ** (i - 1), 8), width * min(2**i, 8)
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(before, after, 4, stride, 1, bias=bias), norm_of(norm, after), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))
        self.smallest = 3 * 2**layers
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, 1, h, w) of pictures (B, inputs, H, W). Raises ``UserError`` for pictures that are too small."""
        if min(x.shape[-2:]) < self.smallest:
            raise UserError(f"the discriminator judges pictures of {self.smallest} pixels a side or more, not of "
                            f"{x.shape[-2]}x{x.shape[-1]}; give it fewer judge_layers")  # fmt: skip
        y: Tensor = super().forward(x)
        return y


def made_cost(objective: Objective, made: Tensor) -> Tensor:
    """What a generator pays: the mean over the judgements of what it made.

    Args:
        objective: the choice of loss.
        made: scores of any shape.
    """
    made = made.float()
    if objective == "vanilla":
        return F.softplus(-made).mean()
    if objective == "least_squares":
        return (made - 1.0).square().mean()
    return -made.mean()


def judge_costs(objective: Objective, real: Tensor, made: Tensor) -> dict[str, Tensor]:
    """What a discriminator pays for its judgements of ``real`` and ``made`` pictures, each a mean.

    Args:
        objective: the choice of loss.
        real, made: scores of any shape.
    """
    real, made = real.float(), made.float()
    if objective == "vanilla":
        return {"real": F.softplus(-real).mean(), "fake": F.softplus(made).mean()}
    if objective == "least_squares":
        return {"real": (real - 1.0).square().mean(), "fake": made.square().mean()}
    if objective == "hinge":
        return {"real": F.relu(1.0 - real).mean(), "fake": F.relu(1.0 + made).mean()}
    return {"real": -real.mean(), "fake": made.mean()}


def gradient_penalty(judge: Callable[[Tensor], Tensor], real: Tensor, made: Tensor) -> Tensor:
    """Mean squared distance from 1 of the gradient's length, between real and made pictures (Gulrajani et al., NIPS
    2017, equation 3, without its weight).

    Args:
        judge: the discriminator, of which nothing but the scores is asked.
        real, made: (B, C, H, W), without gradient.
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device, dtype=real.dtype)
    with torch.enable_grad():
        between = real.lerp(made, share).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(judge(between).float().sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1.0).square().mean()
