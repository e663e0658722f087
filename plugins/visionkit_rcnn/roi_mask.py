"""Mask R-CNN's mask branch (He et al., ICCV 2017): one binary mask a class for every box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit import Head
from visionkit.layers.norm import NormName
from visionkit.layers.paste import paste_masks
from visionkit.layers.roi import RegionPool
from visionkit.numbers import Count, Positive, PositiveFloat, Widths
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    LabelSet,
    MaskPrediction,
    Mean,
    RegionMaskOutput,
    RegionOutput,
)
from visionkit.types.outputs import samples_on
from visionkit_rcnn.branch import conv_stack, init_convs


@dataclass
class Masks(RegionMaskOutput):
    """Nothing is computed before it is known which boxes are wanted: sampled ones to learn, final ones to predict.

    Attributes:
        head: works out the answers.
        features: level -> (B, C, h, w).
        found: what was already predicted, one list an image; shared by every selection of rows.
    """

    head: RoIMask
    features: Mapping[str, Tensor]
    found: list[list[MaskPrediction]] = field(default_factory=list)

    def mask_logits(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        logits = self.head.mask_logits(self.features, boxes, torch.cat(list(labels)))
        return list(logits.split([len(b) for b in boxes]))

    def instances(self, batch: Batch) -> list[MaskPrediction]:
        todo = [row for row, found in enumerate(self.found) if not found]
        if todo:
            part: Masks = self.rows(todo, len(self.found))
            for found, prediction in zip(part.found, self.head.paste(part, [batch.info[row] for row in todo])):
                found.append(prediction)
        return [found[0] for found in self.found]


class RoIMask(Head):
    """A mask inside each box that another head finds.

    Classes don't compete: each has a sigmoid of its own, and only the one of the object learns.

    Args:
        levels: pyramid levels that are read, finest first.
        pool_size, sampling_ratio, aligned, canonical_size: see :class:`~visionkit.layers.roi.RegionPool`.
        convs: widths of the 3 x 3 convolutions.
        norm: normalisation after each of them.
        hidden: width of the 2 x 2 transposed convolution, which doubles the size.
        class_agnostic: one mask for all classes.
        background: the background too has a mask, which never learns (torchvision's weights).
        exact_paste: a mask is read at the centres of the image's pixels (detectron2); ``False``: its box is cut to
            whole pixels first (torchvision).
    """

    task = "masks"
    check_args = {"convs": [16], "hidden": 16}
    makes = MaskPrediction
    output = Masks
    needs = {"regions": RegionOutput}
    labels_from = "regions"
    loss_names = ("mask",)
    evaluators = ("coco_segm",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p2", "p3", "p4", "p5"),
        pool_size: Positive = 14,
        sampling_ratio: Count = 2,
        aligned: bool = False,
        canonical_size: PositiveFloat = 224.0,
        convs: Widths = (256, 256, 256, 256),
        norm: NormName | None = None,
        hidden: Positive = 256,
        class_agnostic: bool = False,
        background: bool = True,
        exact_paste: bool = False,
    ) -> None:
        super().__init__(spec, labels)
        self.levels = levels
        self.pool = RegionPool(
            spec, levels, pool_size, sampling_ratio=sampling_ratio, aligned=aligned, canonical_size=canonical_size
        )
        self.conv, channels = conv_stack(self.pool.channels, convs, norm)
        self.upsample = nn.ConvTranspose2d(channels, hidden, 2, stride=2)
        self.logits = nn.Conv2d(hidden, 1 if class_agnostic else len(labels) + background, 1)
        self.class_agnostic, self.background, self.exact_paste = class_agnostic, background, exact_paste
        init_convs(self)

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> Masks:
        levels = {level: features[level] for level in self.levels}
        return Masks(upstream["regions"], self, levels, [[] for _ in batch.info])

    def mask_logits(self, features: Features, boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """(n, 2 pool_size, 2 pool_size) float32: the mask of each box's own class, image after image."""
        x = self.conv(self.pool(features, boxes))
        x = self.logits(F.relu(self.upsample(x))).float()
        channel = torch.zeros_like(labels) if self.class_agnostic else labels + self.background
        return x[torch.arange(len(x), device=x.device), channel]

    def losses(self, output: Masks, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        masked = [has_mask(target) for target in batch.targets]
        samples = samples_on(output.regions.samples(batch.targets), masked)
        labels = torch.cat([sample.labels for sample in samples])
        logits = self.mask_logits(output.features, [sample.boxes for sample in samples], labels)
        aims = torch.cat([
            target.masks.crop_and_resize(sample.boxes, sample.matched, logits.shape[-1], aligned=self.pool.aligned)
            for sample, target in zip(samples, batch.targets)
            if target.masks is not None
        ] or [logits.new_zeros(0, *logits.shape[1:])])  # fmt: skip
        loss = F.binary_cross_entropy_with_logits(logits, aims, reduction="sum")
        return {"mask": Mean(loss, logits.numel())}

    def predict(self, output: Masks, batch: Batch) -> list[MaskPrediction]:
        return output.instances(batch)

    @torch.no_grad()
    def paste(self, output: Masks, info: Sequence[ImageInfo]) -> list[MaskPrediction]:
        """The final boxes of each image with their masks."""
        found = output.regions.detections_for(self.labels)
        masks = output.mask_logits([f.boxes for f in found], [f.labels for f in found])
        predictions = []
        for image, f, own in zip(info, found, masks):
            boxes = image.boxes_to_original(f.boxes)
            rles = paste_masks(own.sigmoid(), boxes, *image.original_size, exact=self.exact_paste)
            predictions.append(MaskPrediction(boxes, f.scores, f.labels, rles))
        return predictions


def has_mask(target: InstanceTarget) -> Tensor:
    """(N,) bool: the objects that have a mask."""
    return torch.zeros_like(target.crowd) if target.masks is None else target.masks.nonempty()
