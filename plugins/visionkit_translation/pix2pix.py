"""pix2pix (Isola et al., CVPR 2017): pictures from images, learnt from pairs, with a judge that sees both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from visionkit import Head
from visionkit.errors import UserError
from visionkit.numbers import Count, FractionBelowOne, NonNegative, OnlyWith, Positive
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, Mean, PicturePrediction, PictureTarget
from visionkit_translation.discriminator import Objective, PatchGAN, gradient_penalty, judge_costs, made_cost
from visionkit_translation.generators import FeatureDecoder, Norm, ResNetGenerator, UNet
from visionkit_translation.perceptual import VGG16, content_cost
from visionkit_translation.pictures import PictureOutput, inside, mean_absolute, predictions, wanted

SEEN = "relu3_3"


class Pix2Pix(Head):
    """A generator of pictures and a discriminator that judges patches of a picture beside its image.

    The generator reads the images themselves, or with ``levels`` the features that it shares with other heads. The
    paper trains with one image a batch. Then batch norm is a norm over each image, in training and, as the paper has
    it, in testing; ``norm: image`` is that for batches of any size. The objective of the discriminator is halved.

    Args:
        levels: feature levels that are read; empty: the images, by a generator that shares nothing.
        generator: which one reads images.
        downs: steps down of the U-Net; 8 for 256 pixels and 7 for 128. Sides are filled up to 2 to the power of this.
        blocks: residual blocks of the ResNet.
        width: channels of the first layer of the generator, or of every layer of the decoder on features.
        norm: of the generator and the discriminator.
        dropout: probability in the innermost steps of U-Net and decoder, in prediction too.
        seed: of that noise in prediction.
        judge_layers: steps down of the discriminator; 3 for patches of 70 pixels.
        judge_width: channels of its first layer.
        objective: what its judgements cost.
        penalty: weight of the gradient penalty; for ``wasserstein`` alone.
        l1: weight of the mean absolute difference.
        perceptual: weight of the mean squared difference in what VGG-16 sees (Johnson et al., ECCV 2016), of its layer
            ``relu3_3``; 0: none.
        vgg: a file of its weights, ``imagenet`` to have them downloaded, or ``None`` for random ones.

    Raises:
        UserError: ``vgg`` is given, but nothing is compared by it.
    """

    task = "picture"
    check_args = {"downs": 5, "width": 4, "judge_width": 4}
    makes = PicturePrediction
    output = PictureOutput
    loss_names: tuple[str, ...] = ("gan", "l1")
    phase_loss_names = {"discriminator": ("real", "fake")}
    evaluators = ("pictures",)
    starts_from = ("vgg",)

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = (),
        generator: Literal["unet", "resnet"] = "unet",
        downs: Annotated[int, Ge(1), Le(10), OnlyWith(generator="unet")] = 8,
        blocks: Annotated[Count, OnlyWith(generator="resnet")] = 9,
        width: Positive = 64,
        norm: Norm = "image",
        dropout: FractionBelowOne = 0.5,
        seed: Count = 0,
        judge_layers: Positive = 3,
        judge_width: Positive = 64,
        objective: Objective = "vanilla",
        penalty: Annotated[NonNegative, OnlyWith(objective="wasserstein")] = 10.0,
        l1: NonNegative = 100.0,
        perceptual: NonNegative = 0.0,
        vgg: str | None = None,
    ) -> None:
        super().__init__(spec, labels)
        if vgg is not None and not perceptual:
            raise UserError("vgg is given, but perceptual is 0: nothing is compared by what it sees")
        self.levels = levels
        self.objective, self.penalty, self.l1 = objective, penalty, l1
        self.generator: nn.Module
        if levels:
            self.generator = FeatureDecoder(spec, levels, channels=width, norm=norm, dropout=dropout, seed=seed)
        elif generator == "unet":
            self.generator = UNet(downs=downs, width=width, norm=norm, dropout=dropout, seed=seed)
        else:
            self.generator = ResNetGenerator(blocks=blocks, width=width, norm=norm)
        self.discriminator = PatchGAN(6, layers=judge_layers, width=judge_width, norm=norm)
        if objective == "wasserstein":
            self.phase_loss_names = {"discriminator": ("real", "fake", "penalty")}
        self.perceptual, self.vgg = perceptual, VGG16([SEEN], weights=vgg) if perceptual else None
        if perceptual:
            self.loss_names = ("gan", "l1", "perceptual")

    def problems(self) -> list[str]:
        return [] if self.vgg is None else self.vgg.problems()

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> PictureOutput:
        if not self.levels:
            return PictureOutput(self.generator(batch.signed()))
        return PictureOutput(self.generator(features, (batch.images.shape[2], batch.images.shape[3])))

    def phases(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"main": self.generator.parameters(), "discriminator": self.discriminator.parameters()}

    def losses(self, output: PictureOutput, batch: Batch[PictureTarget]) -> dict[str, Tensor | Mean]:
        """Paper, equation 4: the generator is to be taken for the truth, and to be near it."""
        judged = self.discriminator(torch.cat((batch.signed(), output.picture), 1))
        truth = wanted(batch)
        total, count = mean_absolute(output.picture, truth, inside(batch))
        losses: dict[str, Tensor | Mean] = {
            "gan": made_cost(self.objective, judged),
            "l1": Mean(self.l1 * total, count),
        }
        if self.vgg is not None:
            with torch.no_grad():
                seen = self.vgg(truth)[SEEN]
            losses["perceptual"] = self.perceptual * content_cost(self.vgg(output.picture)[SEEN], seen)
        return losses

    def phase_losses(self, phase: str, output: PictureOutput, batch: Batch[PictureTarget]) -> Mapping[str, Any]:
        if phase == "main":
            return self.losses(output, batch)
        images = batch.signed()
        real = torch.cat((images, wanted(batch)), 1)
        made = torch.cat((images, output.picture), 1)
        costs = judge_costs(self.objective, self.discriminator(real), self.discriminator(made))
        if self.objective == "wasserstein":
            costs["penalty"] = self.penalty * gradient_penalty(self.discriminator, real, made)
        return {name: cost / 2.0 for name, cost in costs.items()}

    def predict(self, output: PictureOutput, batch: Batch) -> list[PicturePrediction]:
        return predictions(output.picture, batch)
