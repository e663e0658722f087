"""YOLACT (Bolya et al., ICCV 2019): masks as combinations of prototypes, in one stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit import Head
from visionkit.layers.boxes import decode, encode, labels_of
from visionkit.layers.roi import common_channels
from visionkit.numbers import (
    AnchorSizes,
    Factors,
    Fraction,
    FractionBelowOne,
    FractionRange,
    NonNegative,
    Positive,
    PositiveFloat,
)
from visionkit.types import (
    Batch,
    Features,
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    LabelSet,
    MaskPrediction,
    Mean,
    Output,
)
from visionkit.types.device import constant, on_host, to_device, true_rows
from visionkit_yolact.fast_nms import cross_class_fast_nms, fast_nms
from visionkit_yolact.losses import class_loss, mask_loss, semantic_loss
from visionkit_yolact.masks import assemble, inside, on_grid, to_original
from visionkit_yolact.priors import Grid, assign, cell_size, level_priors

VARIANCES = (10.0, 10.0, 5.0, 5.0)
"""SSD's: shifts are in tenths of a prior, log scales in fifths."""


@dataclass
class YOLACTOutput(Output):
    """What the network says of every prior, and the prototypes.

    Attributes:
        deltas: (B, P, 4), from the prior to the object.
        logits: (B, P, classes + 1), background first.
        coefficients: (B, P, K) in -1 ... 1.
        prototypes: (B, K, 2 h, 2 w), where the finest level is h by w.
        finest: (B, C, h, w), what the semantic loss reads.
        grids: rows and columns of each level.
    """

    deltas: Tensor
    logits: Tensor
    coefficients: Tensor
    prototypes: Tensor
    finest: Tensor
    grids: tuple[Grid, ...]


class ProtoNet(nn.Module):
    """Features (B, C, h, w) -> prototypes (B, K, 2 h, 2 w), which are 0 or more."""

    def __init__(self, channels: int, hidden: int, prototypes: int) -> None:
        super().__init__()
        widths = (channels, hidden, hidden, hidden)
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.refine = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.prototypes = nn.Conv2d(hidden, prototypes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.conv:
            x = F.relu(conv(x))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.relu(self.prototypes(F.relu(self.refine(x))))


class PriorBranch(nn.Module):
    """One level (B, C, h, w) -> deltas (B, P, 4), logits (B, P, classes) and coefficients (B, P, K), in float32."""

    def __init__(self, channels: int, hidden: int, priors: int, classes: int, prototypes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.deltas = nn.Conv2d(hidden, priors * 4, 3, padding=1)
        self.classes = nn.Conv2d(hidden, priors * classes, 3, padding=1)
        self.coefficients = nn.Conv2d(hidden, priors * prototypes, 3, padding=1)
        self.widths = 4, classes, prototypes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.conv(x))
        found = (
            layer(x).permute(0, 2, 3, 1).reshape(len(x), -1, width).float()
            for layer, width in zip((self.deltas, self.classes, self.coefficients), self.widths)
        )
        deltas, logits, coefficients = found
        return deltas, logits, coefficients.tanh()


class YOLACT(Head):
    """Boxes, classes and mask coefficients of priors on every level, and prototypes that the coefficients combine.

    Within the head class 0 is background; outside labels start at 0 without it. Pixels of a crowd belong to no object:
    no prior learns from it, those that lie in it are not background either, and to the semantic loss it is nothing. An
    image without objects teaches the semantic loss alone, since background is learnt in proportion to the objects.

    Args:
        levels: pyramid levels that are read, finest first; the prototypes and the semantic loss read the finest.
        anchor_sizes: sides of the priors in pixels, for each level.
        anchor_ratios: width / height of the priors.
        square_anchors: keep the area of the ratios but make all priors squares, as the published weights have it;
            ``False`` for YOLACT++.
        hidden: width of the convolutions.
        prototypes: how many.
        iou: a prior is background below the first, and learns an object from the second on.
        negatives: priors of background that are learnt from, for each that has an object.
        mask_samples: priors an image whose masks are learnt; above that a random choice stands for all.
        class_weight, box_weight, mask_weight, semantic_weight: factors of the losses.
        score: priors whose best class scores no more are dropped.
        nms: IoU above which the weaker of two detections is dropped (Fast NMS).
        before_nms: detections that it looks at, of each class; of all together with ``cross_class``.
        cross_class: suppress over all classes; else each class by itself.
        detections: the most an image.
    """

    task = "masks"
    check_args = {"hidden": 16, "prototypes": 8}
    makes = MaskPrediction
    output = YOLACTOutput
    loss_names = ("class", "box", "mask", "semantic")
    evaluators = ("coco_segm",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p3", "p4", "p5", "p6", "p7"),
        anchor_sizes: AnchorSizes = ((24,), (48,), (96,), (192,), (384,)),
        anchor_ratios: Factors = (1.0, 0.5, 2.0),
        square_anchors: bool = True,
        hidden: Positive = 256,
        prototypes: Positive = 32,
        iou: FractionRange = (0.4, 0.5),
        negatives: PositiveFloat = 3.0,
        mask_samples: Positive = 100,
        class_weight: NonNegative = 1.0,
        box_weight: NonNegative = 1.5,
        mask_weight: NonNegative = 6.125,
        semantic_weight: NonNegative = 1.0,
        score: FractionBelowOne = 0.05,
        nms: Fraction = 0.5,
        before_nms: Positive = 200,
        cross_class: bool = False,
        detections: Positive = 100,
    ) -> None:
        super().__init__(spec, labels)
        if len(anchor_sizes) != len(levels) or len({len(sizes) for sizes in anchor_sizes}) != 1:
            raise ValueError(f"anchor_sizes must hold equally many sizes for each of the {len(levels)} levels, "
                             f"not {[len(sizes) for sizes in anchor_sizes]}")  # fmt: skip
        self.levels = levels
        self.strides = tuple(spec[level].stride for level in levels)
        self.sizes, self.ratios, self.square = anchor_sizes, anchor_ratios, square_anchors
        channels, priors = common_channels(spec, levels), len(anchor_sizes[0]) * len(anchor_ratios)
        self.protonet = ProtoNet(channels, hidden, prototypes)
        self.branch = PriorBranch(channels, hidden, priors, len(labels) + 1, prototypes)
        self.semantic = nn.Conv2d(channels, len(labels), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.iou, self.negatives, self.mask_samples = iou, negatives, mask_samples
        self.weights = {"class": class_weight, "box": box_weight, "mask": mask_weight, "semantic": semantic_weight}
        self.score, self.nms, self.before_nms = score, nms, before_nms
        self.cross_class, self.max_detections = cross_class, detections

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> YOLACTOutput:
        maps = [features[level] for level in self.levels]
        deltas, logits, coefficients = (torch.cat(part, 1) for part in zip(*(self.branch(x) for x in maps)))
        prototypes = self.protonet(maps[0]).float()
        grids = tuple((x.shape[2], x.shape[3]) for x in maps)
        return YOLACTOutput(deltas, logits, coefficients, prototypes, maps[0], grids)

    def priors(self, grids: tuple[Grid, ...], info: ImageInfo) -> Tensor:
        """(P, 4) in input pixels: those of every level, for one image."""
        return torch.cat([
            level_priors(grid, cell_size(info.size, stride), sizes, self.ratios, square=self.square)
            for grid, stride, sizes in zip(grids, self.strides, self.sizes)
        ])  # fmt: skip

    # -- learning

    def losses(self, output: YOLACTOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        device = output.deltas.device
        matched = []
        priors = to_device([self.priors(output.grids, info) for info in batch.info], device)
        for info, own, t in zip(batch.info, priors, batch.targets):
            low, high = self.iou
            matched.append(assign(own, t.boxes, t.crowd, low=low, high=high, usable=in_image(own, info)))
        aims = torch.stack([
            torch.where(own >= 0, labels_of(own, target.labels), own) for own, target in zip(matched, batch.targets)
        ])  # fmt: skip
        rows = true_rows([own >= 0 for own in matched])
        # What the losses of masks look at on the host, fetched at once.
        on = on_host([own[index] for own, index in zip(matched, rows)])
        parts = [
            self._image_losses(output, row, *each)
            for row, each in enumerate(zip(batch.info, host_view(batch.targets), priors, rows, on, strict=True))
        ]
        box, mask, semantic = zip(*parts)
        sums = {
            "class": Mean(class_loss(output.logits, aims, self.negatives), (aims >= 0).sum()),
            "box": _add(box),
            "mask": _add(mask),
            "semantic": _add(semantic),
        }
        return {name: Mean(part.total * self.weights[name], part.count) for name, part in sums.items()}

    def _image_losses(
        self,
        output: YOLACTOutput,
        row: int,
        info: ImageInfo,
        target: HostView,
        priors: Tensor,
        index: Tensor,
        on: Tensor,
    ) -> tuple[Mean, Mean, Mean]:
        """Of one image, unweighted: the losses of boxes, masks and the semantic branch.

        Args:
            index: priors that lie on an object, and ``on``, on the host, the objects.
        """
        objects = to_device([on], index.device)[0]
        aims = encode(target.all.boxes[objects], priors[index], VARIANCES)
        box = Mean(F.smooth_l1_loss(output.deltas[row][index], aims, reduction="sum"), len(on))
        return (
            box,
            self._mask_loss(output, row, info, target, index, on),
            self._semantic_loss(output, row, info, target),
        )

    def _mask_loss(
        self, output: YOLACTOutput, row: int, info: ImageInfo, target: HostView, index: Tensor, on: Tensor
    ) -> Mean:
        """Of the priors that lie on objects which have a mask."""
        prototypes, masks = output.prototypes[row], target.all.masks
        if masks is None:
            return Mean(prototypes.sum() * 0.0 + output.coefficients[row][index].sum() * 0.0, 0)
        known = target.nonempty[on]
        used, number = on[known].unique(return_inverse=True)
        chosen, on, number = to_device([known.nonzero()[:, 0], on[known], number], index.device)
        coefficients = output.coefficients[row][index[chosen]]
        cell = self._mask_cell(info)
        rows, columns = cells_of(info, cell)
        pixels = on_grid(masks.select(used), (rows, columns), cell)[number]
        boxes = target.all.boxes[on] / constant((cell[1], cell[0], cell[1], cell[0]), target.all.boxes)
        prototypes = prototypes[:, :rows, :columns]
        return Mean(mask_loss(prototypes, coefficients, pixels, boxes, self.mask_samples), len(on))

    def _semantic_loss(self, output: YOLACTOutput, row: int, info: ImageInfo, target: HostView) -> Mean:
        logits = self.semantic(output.finest[row : row + 1])[0].float()
        if target.all.masks is None:
            return Mean(logits.sum() * 0.0, 0)
        cell = cell_size(info.size, self.strides[0])
        rows, columns = cells_of(info, cell)
        objects, labels = target.all.select(~target.crowd), target.labels[~target.crowd]
        assert objects.masks is not None
        logits, masks = logits[:, :rows, :columns], on_grid(objects.masks, (rows, columns), cell)
        # Which cells belong to an object without a mask is not known, so the cells of its box teach its class nothing.
        unknown = ~target.annotated[~target.crowd]
        boxes = objects.select(unknown).boxes
        cells = inside(boxes / constant((cell[1], cell[0]) * 2, boxes), rows, columns)
        return Mean(semantic_loss(logits, masks, labels, (cells, labels[unknown])), 1)

    def _mask_cell(self, info: ImageInfo) -> tuple[float, float]:
        """Height and width of a cell of the prototypes, in input pixels."""
        height, width = cell_size(info.size, self.strides[0])
        return height / 2, width / 2

    # -- finding

    @torch.no_grad()
    def predict(self, output: YOLACTOutput, batch: Batch) -> list[MaskPrediction]:
        return [self._predict_image(output, row, info) for row, info in enumerate(batch.info)]

    def _predict_image(self, output: YOLACTOutput, row: int, info: ImageInfo) -> MaskPrediction:
        boxes, scores, labels, coefficients = self.detect(output, row, info)
        cell = self._mask_cell(info)
        rows, columns = cells_of(info, cell)
        masks = assemble(output.prototypes[row][:, :rows, :columns], coefficients).sigmoid()
        masks = masks * inside(boxes / constant((cell[1], cell[0]) * 2, boxes), rows, columns)
        rles = to_original(masks, boxes, cell, info)
        return MaskPrediction(info.boxes_to_original(boxes), scores, labels, rles)

    def detect(self, output: YOLACTOutput, row: int, info: ImageInfo) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (n, 4) of one image in input pixels, not clipped, with scores, labels and coefficients, best first."""
        scores = output.logits[row].softmax(1)[:, 1:]
        priors = to_device([self.priors(output.grids, info)], scores.device)[0]
        boxes = decode(output.deltas[row], priors, VARIANCES)
        keep = (scores.amax(1) > self.score) & in_image(priors, info) & touches(boxes, info)
        kept = true_rows([keep])[0]
        boxes, scores, coefficients = boxes[kept], scores[kept], output.coefficients[row][kept]
        suppress = cross_class_fast_nms if self.cross_class else fast_nms
        index, labels = suppress(boxes, scores, iou=self.nms, top_k=self.before_nms)
        index, labels = index[: self.max_detections], labels[: self.max_detections]
        return boxes[index], scores[index, labels], labels, coefficients[index]


@dataclass(frozen=True)
class HostView:
    """A target, and on the CPU what the losses of masks look at object by object.

    Attributes:
        all: the target where it is.
        labels, crowd: its own.
        annotated, nonempty: (N,) bool, of its masks; false where it has none.
    """

    all: InstanceTarget
    labels: Tensor
    crowd: Tensor
    annotated: Tensor
    nonempty: Tensor


def host_view(targets: Sequence[InstanceTarget]) -> list[HostView]:
    """The targets of all images. The host waits for the device once."""
    tensors: list[Tensor] = []
    for target in targets:
        masks = target.masks
        no = torch.zeros_like(target.crowd)
        tensors += [target.labels, target.crowd]
        tensors += [no, no] if masks is None else [masks.annotated, masks.nonempty()]
    known = on_host(tensors)
    return [HostView(target, *known[4 * i : 4 * i + 4]) for i, target in enumerate(targets)]


def in_image(priors: Tensor, info: ImageInfo) -> Tensor:
    """(P,) bool: which priors have their centre in the image. The others, on its padding, learn and find nothing."""
    x, y = ((priors[:, :2] + priors[:, 2:]) / 2).unbind(1)
    return (x < info.size[1]) & (y < info.size[0])


def touches(boxes: Tensor, info: ImageInfo) -> Tensor:
    """(N,) bool: of which boxes something is left in the image."""
    height, width = info.size
    return (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def cells_of(info: ImageInfo, cell: tuple[float, float]) -> Grid:
    """Rows and columns of the cells, of this height and width, that the image without padding takes."""
    return round(info.size[0] / cell[0]), round(info.size[1] / cell[1])


def _add(parts: tuple[Mean, ...]) -> Mean:
    return Mean(torch.stack([part.total for part in parts]).sum(), sum(part.count for part in parts))
