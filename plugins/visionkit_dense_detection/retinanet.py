"""RetinaNet (Lin et al., ICCV 2017): a class and a box at every anchor of a pyramid, learnt with the focal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from visionkit import Head
from visionkit.layers.anchors import PyramidAnchors
from visionkit.layers.boxes import batched_nms, decode, encode, labels_of, match
from visionkit.layers.focal import focal_sums, prior_bias
from visionkit.layers.norm import NormName
from visionkit.layers.roi import common_channels
from visionkit.layers.towers import AnchorValues, Tower
from visionkit.numbers import (
    AnchorSizes,
    Factors,
    Fraction,
    FractionBelowOne,
    FractionRange,
    NonNegative,
    OnlyWith,
    OpenFraction,
    Positive,
    PositiveFraction,
)
from visionkit.types import (
    Batch,
    BoxPrediction,
    Detections,
    Features,
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    LabelSet,
    Mean,
    PyramidOutput,
    RegionSamples,
)
from visionkit.types.device import constant, true_rows

SIZES = tuple(tuple(size * 2 ** (i / 3) for i in range(3)) for size in (32, 64, 128, 256, 512))
"""Three anchors an octave on P3 ... P7 (section 4, anchors)."""


@dataclass
class Answer:
    """What was already worked out for one image; shared by every selection of rows of an output."""

    found: Detections | None = None
    anchors: Tensor | None = None


@dataclass
class DenseOutput(PyramidOutput):
    """What is said of every anchor, a level an item.

    Attributes:
        head: works out the answers.
        logits: (B, A, classes).
        deltas: (B, A, 4), from the anchor to the object.
        info: one an image.
        answers: one an image.
    """

    head: RetinaNet
    logits: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    info: list[ImageInfo]
    answers: list[Answer] = field(default_factory=list)

    def matched(self, targets: Sequence[InstanceTarget]) -> list[Tensor]:
        return self.head.match(self.anchors.all(), targets)

    def samples(self, targets: Sequence[InstanceTarget]) -> list[RegionSamples]:
        """The detections and the objects themselves, as RetinaMask (Fu et al., 2019) learns from them."""
        return [self.head.sample(found.boxes, target) for found, target in zip(self.detections(), targets)]

    def detections(self) -> list[Detections]:
        self._answer()
        return [answer.found for answer in self.answers if answer.found is not None]

    def found_at(self) -> list[Tensor]:
        self._answer()
        return [answer.anchors for answer in self.answers if answer.anchors is not None]

    def _answer(self) -> None:
        todo = [row for row, answer in enumerate(self.answers) if answer.found is None]
        if todo:
            part: DenseOutput = self.rows(todo, len(self.answers))
            for answer, (found, anchors) in zip(part.answers, self.head.detect(part)):
                answer.found, answer.anchors = found, anchors


class RetinaNet(Head):
    """A class and a box for every anchor, by two towers that are shared over the levels.

    The defaults are the paper's, with detectron2's L1 loss for boxes. Further towers on the same anchors are heads of
    their own that read its output, a :class:`~visionkit.types.PyramidOutput`; branches such as ``roi_mask`` read it
    too.

    Args:
        levels: pyramid levels, finest first.
        anchor_sizes: roots of the anchors' areas in pixels, for each level.
        anchor_ratios: height / width of the anchors.
        exact_anchors: anchors keep their fractions and stand as far apart as the stride of their level; ``False``:
            whole pixels, as torchvision's weights expect it.
        channels: width of the towers.
        convs: 3 x 3 convolutions of each tower.
        norm: after each of them; ``None`` as in the paper.
        prior: score that every anchor starts from.
        alpha, gamma: of the focal loss.
        iou: an anchor below the first is background, from the second on it has an object, between them it is ignored.
        box_loss: ``"smooth_l1"`` on the regression code or ``"giou"`` on the boxes (Rezatofighi et al., CVPR 2019).
        beta: where smooth L1 turns from square to linear; 0 for L1.
        per_image: losses are divided by the anchors with an object of each image (torchvision), not by those of the
            whole batch (the paper).
        score: detections up to it are dropped.
        before_nms: the best detections of each level that are looked at.
        nms: IoU from which the weaker of two detections of a class is dropped.
        clip_first: boxes are clipped to the image before they are compared, not after (detectron2's weights).
        detections: the most an image.
        region_iou: IoU with an object from which a detection is one, for branches that learn from it.
    """

    task = "boxes"
    check_args = {"channels": 24, "convs": 2}
    makes = BoxPrediction
    output = DenseOutput
    loss_names = ("class", "box")
    evaluators = ("coco_bbox",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        levels: tuple[str, ...] = ("p3", "p4", "p5", "p6", "p7"),
        anchor_sizes: AnchorSizes = SIZES,
        anchor_ratios: Factors = (0.5, 1.0, 2.0),
        exact_anchors: bool = True,
        channels: Positive = 256,
        convs: Positive = 4,
        norm: NormName | None = None,
        prior: OpenFraction = 0.01,
        alpha: OpenFraction = 0.25,
        gamma: NonNegative = 2.0,
        iou: FractionRange = (0.4, 0.5),
        box_loss: Literal["smooth_l1", "giou"] = "smooth_l1",
        beta: Annotated[NonNegative, OnlyWith(box_loss="smooth_l1")] = 0.0,
        per_image: bool = False,
        score: FractionBelowOne = 0.05,
        before_nms: Positive = 1000,
        nms: Fraction = 0.5,
        clip_first: bool = True,
        detections: Positive = 100,
        region_iou: PositiveFraction = 0.5,
    ) -> None:
        super().__init__(spec, labels)
        self.levels = levels
        self.make_anchors = PyramidAnchors(spec, levels, anchor_sizes, anchor_ratios, exact=exact_anchors)
        inputs, anchors = common_channels(spec, levels), self.make_anchors.of_a_cell
        self.class_tower = Tower(inputs, channels, convs, norm=norm)
        self.box_tower = Tower(inputs, channels, convs, norm=norm)
        self.classes = AnchorValues(self.class_tower.channels, anchors, len(labels), bias=prior_bias(prior))
        self.deltas = AnchorValues(self.box_tower.channels, anchors, 4)
        self.alpha, self.gamma, self.iou = alpha, gamma, iou
        self.box_loss, self.beta, self.per_image = box_loss, beta, per_image
        self.score, self.before_nms, self.nms, self.clip_first = score, before_nms, nms, clip_first
        self.max_detections, self.region_iou = detections, region_iou

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> DenseOutput:
        levels = [features[level] for level in self.levels]
        height, width = batch.images.shape[-2:]
        grids = [(x.shape[-2], x.shape[-1]) for x in levels]
        anchors = self.make_anchors(grids, (height, width), batch.images.device)
        towers = {"classes": self.class_tower(levels), "boxes": self.box_tower(levels)}
        logits, deltas = self.classes.of_anchors(towers["classes"]), self.deltas.of_anchors(towers["boxes"])
        answers = [Answer() for _ in batch.info]
        return DenseOutput(self.labels, towers, anchors, self, logits, deltas, list(batch.info), answers)

    def losses(self, output: DenseOutput, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        anchors = output.anchors.all()
        matched = torch.stack(self.match(anchors, batch.targets))
        rows = true_rows((matched >= 0).unbind())
        anchor = torch.cat(rows)
        image = constant([row for row, index in enumerate(rows) for _ in range(len(index))], anchor)
        labels, boxes = objects_of([own[index] for own, index in zip(matched, rows)], batch.targets)
        on_classes = focal_sums(
            torch.cat(output.logits, 1), matched, labels, at=(image, anchor), alpha=self.alpha, gamma=self.gamma
        )
        each = self._box_losses(torch.cat(output.deltas, 1)[image, anchor], anchors[anchor], boxes)
        on_boxes = torch.zeros_like(on_classes).index_add(0, image, each.to(on_classes.dtype))
        positives = (matched >= 0).sum(1)
        if self.per_image:
            on_classes, on_boxes = on_classes / positives.clamp(min=1), on_boxes / positives.clamp(min=1)
        count = len(positives) if self.per_image else positives.sum()
        return {"class": Mean(on_classes.sum(), count), "box": Mean(on_boxes.sum(), count)}

    def _box_losses(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        if self.box_loss == "giou":
            return generalized_box_iou_loss(decode(deltas, anchors), boxes)
        return F.smooth_l1_loss(deltas, encode(boxes, anchors), beta=self.beta, reduction="none").sum(1)

    @torch.no_grad()
    def predict(self, output: DenseOutput, batch: Batch) -> list[BoxPrediction]:
        return [
            BoxPrediction(info.boxes_to_original(found.boxes), found.scores, found.labels)
            for info, found in zip(batch.info, output.detections())
        ]

    @torch.no_grad()
    def match(self, anchors: Tensor, targets: Sequence[InstanceTarget]) -> list[Tensor]:
        """Which object each anchor learns from; see :func:`visionkit.layers.boxes.match`."""
        low, high = self.iou
        return [match(anchors, t.boxes, t.crowd, low=low, high=high, best_of_each=True) for t in targets]

    @torch.no_grad()
    def sample(self, boxes: Tensor, target: InstanceTarget) -> RegionSamples:
        """``boxes`` and the objects themselves, with the objects that they lie on."""
        boxes = torch.cat((boxes, target.boxes[~target.crowd]))
        matched = match(boxes, target.boxes, target.crowd, low=self.region_iou, high=self.region_iou).clamp(min=-1)
        return RegionSamples(boxes, matched, labels_of(matched, target.labels))

    @torch.no_grad()
    def detect(self, output: DenseOutput) -> list[tuple[Detections, Tensor]]:
        """Final boxes of each image, suppressed class by class, and the anchors that they come from."""
        found, first = [], 0
        for logits, deltas, anchors in zip(output.logits, output.deltas, output.anchors.levels):
            logit, anchor, label = best(logits, self.before_nms)
            boxes = decode(deltas.gather(1, anchor[..., None].expand(-1, -1, 4)), anchors[anchor])
            found.append((logit, label, boxes, anchor + first))
            first += len(anchors)
        logits, labels, boxes, anchors = (torch.cat(part, 1) for part in zip(*found))
        clipped = clip(boxes, output.info)
        full = (clipped[..., 2:] > clipped[..., :2]).all(2)  # of a box beyond the image's edge nothing may be left
        wanted = logits > score_to_logit(self.score)  # no sigmoid before it is known which few are wanted
        if self.clip_first:
            wanted, boxes = wanted & full, clipped
        kept = []
        for row, index in enumerate(true_rows(wanted.unbind())):
            index = index[batched_nms(boxes[row, index], logits[row, index], labels[row, index], self.nms)]
            index = index[: self.max_detections]
            if not self.clip_first:
                index = index[true_rows([full[row, index]])[0]]
            final = Detections(clipped[row, index], logits[row, index].sigmoid(), labels[row, index])
            kept.append((final, anchors[row, index]))
        return kept


def objects_of(matched: Sequence[Tensor], targets: Sequence[InstanceTarget]) -> tuple[Tensor, Tensor]:
    """Labels (n,) and boxes (n, 4) of the objects (n_i,) that anchors of each image are matched with."""
    labels = torch.cat([target.labels[index] for target, index in zip(targets, matched)])
    return labels, torch.cat([target.boxes[index] for target, index in zip(targets, matched)])


def best(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` largest of (B, A, K) in each image, largest first: logit, anchor and class, each (B, n).

    They are all said by the anchors whose own best classes are the largest ``count``, so only those are sorted.
    """
    classes = logits.shape[2]
    _, anchor = logits.amax(2).topk(min(count, logits.shape[1]), dim=1, sorted=False)
    few = logits.gather(1, anchor[..., None].expand(-1, -1, classes)).flatten(1)
    logit, index = few.topk(min(count, few.shape[1]), dim=1)
    return logit, anchor.gather(1, index // classes), index % classes


def clip(boxes: Tensor, info: Sequence[ImageInfo]) -> Tensor:
    """``boxes`` (B, n, 4) within the true size of their images."""
    edges = constant([(i.size[1], i.size[0]) * 2 for i in info], boxes)
    return torch.minimum(boxes.clamp(min=0), edges[:, None])


def score_to_logit(score: float) -> float:
    """The logit whose sigmoid is ``score``; a score of 0 or 1 lets everything or nothing pass."""
    if not 0.0 < score < 1.0:
        return -math.inf if score <= 0.0 else math.inf
    return math.log(score / (1 - score))
