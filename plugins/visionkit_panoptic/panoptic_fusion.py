"""Panoptic FPN's merge of a semantic and an instance head (Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR
2019, by the rules of their "Panoptic Segmentation", CVPR 2019, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionkit import Head
from visionkit.layers.semantic import cell_size, semantic_predictions
from visionkit.numbers import Count, Fraction, FractionBelowOne
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    InstanceMasks,
    LabelSet,
    MaskOutput,
    MaskPrediction,
    Mean,
    PanopticPrediction,
    SemanticOutput,
)
from visionkit_panoptic.join import Both, demand, stuff_of, table, things_of


class PanopticFusion(Head):
    """Things from a head that finds masks, stuff from one that labels pixels. It has no parameters and learns nothing.

    Objects are taken best first. One that lies under better ones by more than ``overlap`` of its area is dropped, of
    the others the pixels that are still free are taken. What is left belongs to the stuff that the semantic head sees
    there, unless that is less than ``stuff_area`` in all. Classes are joined by name: those of the semantic head that
    are not stuff here (its things, or one class for all of them) leave their pixels void.

    Args:
        spec, labels: as for every head; ``labels.things`` says which classes are things.
        score: objects below it are left out.
        overlap: see above.
        stuff_area: in pixels of the original image.
    """

    task = "panoptic"
    makes = PanopticPrediction
    output = Both
    needs = {"semantic": SemanticOutput, "masks": MaskOutput}
    loss_names = ()
    evaluators = ("pq",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        score: FractionBelowOne = 0.5,
        overlap: Fraction = 0.5,
        stuff_area: Count = 4096,
    ) -> None:
        super().__init__(spec, labels)
        self.score, self.overlap, self.stuff_area = score, overlap, stuff_area

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        demand([self.labels.names[i] for i in stuff_of(self.labels)], port_labels["semantic"], "semantic")
        demand([self.labels.names[i] for i in things_of(self.labels)], port_labels["masks"], "masks")

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> Both:
        return Both(upstream["semantic"], upstream["masks"])

    def losses(self, output: Both, batch: Batch) -> dict[str, Tensor | Mean]:
        return {}

    @torch.no_grad()
    def predict(self, output: Both, batch: Batch) -> list[PanopticPrediction]:
        logits = output.semantic.logits
        seen = semantic_predictions(logits, batch, stride=cell_size(logits, batch))
        return [self.merge(one.labels.cpu().numpy(), found) for one, found in zip(seen, output.masks.instances(batch))]

    def merge(self, semantic: np.ndarray, found: MaskPrediction) -> PanopticPrediction:
        """One image: a label map of the semantic head (H, W), and what the mask head found."""
        stuff = table(self.port_labels["semantic"], self.labels)
        stuff[torch.isin(stuff, torch.tensor(things_of(self.labels)))] = -1
        labels = table(self.port_labels["masks"], self.labels)[found.labels.cpu()]
        scores = found.scores.float().cpu()
        known = [i for i in range(len(labels)) if labels[i] >= 0 and scores[i] >= self.score]
        segments, things, classes = fuse(
            InstanceMasks.from_rles([found.rles[i] for i in known], (semantic.shape[0], semantic.shape[1])),
            scores[known].numpy(), semantic, (stuff >= 0).numpy(), overlap=self.overlap, stuff_area=self.stuff_area,
        )  # fmt: skip
        rows = [known[i] for i in things]
        return PanopticPrediction(
            torch.from_numpy(segments),
            torch.cat((labels[rows], stuff[classes])),
            torch.cat((scores[rows], torch.ones(len(classes)))),
        )


def fuse(
    masks: InstanceMasks,
    scores: np.ndarray,
    semantic: np.ndarray,
    stuff: np.ndarray,
    *,
    overlap: float,
    stuff_area: int,
) -> tuple[np.ndarray, list[int], list[int]]:
    """Objects first, best first, then stuff where nothing is yet.

    Args:
        masks: N masks of the image.
        scores: (N,).
        semantic: (H, W) uint8 label map.
        stuff: (classes,) bool, which of its classes are stuff.
        overlap: the largest share of an object's area that may lie under better ones.
        stuff_area: the smallest area of a class of stuff, in pixels.

    Returns:
        Segments (H, W) int32, numbered from 1, 0 where nothing is said; the masks that the first numbers are; the
        classes that the others are.
    """
    segments = np.zeros(semantic.shape, np.int32)
    things: list[int] = []
    crops, windows = masks.crops(), masks.windows.tolist()
    for i in np.argsort(-scores, kind="stable").tolist():
        left, top, width, height = windows[i]
        mask, part = crops[i].numpy().astype(bool), segments[top : top + height, left : left + width]
        area, free = int(mask.sum()), mask & (part == 0)
        if area and area - int(free.sum()) <= overlap * area:
            things.append(i)
            part[free] = len(things)
    rest = np.bincount(semantic[segments == 0], minlength=len(stuff))[: len(stuff)]
    classes = np.flatnonzero(stuff & (rest >= max(stuff_area, 1))).tolist()
    number = np.zeros(256, np.int32)
    number[classes] = len(things) + 1 + np.arange(len(classes))
    return np.where(segments == 0, number[semantic], segments), things, classes
