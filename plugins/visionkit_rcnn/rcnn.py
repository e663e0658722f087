"""Faster R-CNN (Ren et al., NeurIPS 2015) with feature pyramid and RoIAlign: the boxes that further heads read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from visionkit import Head
from visionkit.layers.boxes import (
    IGNORED,
    SoftNMS,
    batched_nms,
    decode,
    encode,
    labels_of,
    match,
    sample_images,
    soft_nms,
)
from visionkit.layers.norm import NormName
from visionkit.layers.roi import RegionPool
from visionkit.numbers import (
    AnchorSizes,
    Count,
    Factors,
    Fraction,
    FractionBelowOne,
    FractionRange,
    NonNegative,
    OnlyWith,
    Positive,
    PositiveFloat,
    PositiveFraction,
    Widths,
)
from visionkit.types import (
    Batch,
    BoxPrediction,
    Detections,
    Features,
    FeatureSpec,
    InstanceTarget,
    LabelSet,
    Mean,
    RegionOutput,
    RegionSamples,
)
from visionkit.types.device import true_rows
from visionkit.types.outputs import select_samples
from visionkit_rcnn.box_branch import BoxBranch, Stage
from visionkit_rcnn.rpn import RPN, RPNOutput


@dataclass
class Answer:
    """What was already worked out for one image; shared by every selection of rows of an output."""

    sampled: Tensor | None = None
    found: Detections | None = None


@dataclass
class Regions(RegionOutput):
    """Proposals, and on demand what becomes of them.

    Attributes:
        head: works out the answers.
        features: level -> (B, C, h, w).
        rpn: what the proposal network says.
        answers: one an image.
    """

    head: RCNN
    features: Mapping[str, Tensor]
    rpn: RPNOutput
    answers: list[Answer] = field(default_factory=list)

    def samples(self, targets: Sequence[InstanceTarget]) -> list[RegionSamples]:
        todo = [row for row, answer in enumerate(self.answers) if answer.sampled is None]
        if todo:
            part: Regions = self.rows(todo, len(self.answers))
            chosen = self.head.choose(part.rpn, [targets[row] for row in todo])
            for answer, boxes in zip(part.answers, chosen):
                answer.sampled = boxes
        sampled = [answer.sampled for answer in self.answers if answer.sampled is not None]
        return self.head.match(sampled, targets)

    def detections(self) -> list[Detections]:
        todo = [row for row, answer in enumerate(self.answers) if answer.found is None]
        if todo:
            part: Regions = self.rows(todo, len(self.answers))
            for answer, found in zip(part.answers, self.head.detect(part)):
                answer.found = found
        return [answer.found for answer in self.answers if answer.found is not None]


class RCNN(Head):
    """Region proposals, then a class and a refined box for each.

    Within the head class 0 is background, as in torchvision's weights; outside labels start at 0 without it. The
    defaults are torchvision's; detectron2 has ``exact_anchors``, ``aligned``, a ``sampling_ratio`` and a ``beta`` of 0,
    and no deltas of the ``background``.

    Args:
        levels: pyramid levels that the proposal network reads, finest first.
        anchor_sizes: roots of the anchors' areas in pixels, for each level.
        anchor_ratios: height / width of the anchors.
        exact_anchors: see :class:`~visionkit_rcnn.rpn.RPN`.
        rpn_convs: 3 x 3 convolutions of the proposal network.
        rpn_iou: an anchor below the first is background, from the second on an object.
        rpn_samples: anchors an image that the proposal network learns from.
        rpn_positives: largest share of them that lies on objects.
        rpn_beta: where the proposals' smooth L1 turns from square to linear.
        rpn_nms: IoU from which the weaker of two proposals of one level is dropped.
        rpn_score: proposals below it are dropped.
        rpn_before_nms, rpn_after_nms: proposals kept before (a level) and after (an image) suppression, for detections.
        rpn_before_nms_train, rpn_after_nms_train: the same, for samples to learn from.
        pool_levels: levels that the box branch reads, finest first.
        pool_size, sampling_ratio, aligned, canonical_size: see :class:`~visionkit.layers.roi.RegionPool`.
        convs: widths of 3 x 3 convolutions of the box branch.
        norm: normalisation after each of them.
        fcs: widths of its fully connected layers.
        class_agnostic: one box a region instead of one a class.
        background: the background too has deltas, which never learn (torchvision's weights).
        iou: IoU with an object from which a region is one.
        cascade: the same for further stages, each of which starts from the boxes of the one before (Cascade R-CNN, Cai
            and Vasconcelos, CVPR 2018, has 0.6 and 0.7); scores are the mean over the stages. Needs ``class_agnostic``.
        samples: regions an image that the box branch (and every head that reads its samples) learns from.
        positives: largest share of them that lies on objects.
        box_weights: factors of dx, dy, dw, dh; those of stage n are n times as large.
        beta: where the boxes' smooth L1 turns from square to linear.
        score: detections up to it are dropped.
        nms: IoU from which the weaker of two detections of a class is dropped.
        soft_nms: lower its score instead, by one of the rules of :func:`~visionkit.layers.boxes.soft_nms`.
        sigma: of the Gaussian rule.
        detections: the most an image.
    """

    task = "boxes"
    check_args = {"fcs": [32, 32]}
    makes = BoxPrediction
    output = Regions
    loss_names = ("rpn_objectness", "rpn_box", "box_class", "box_delta")
    evaluators = ("coco_bbox",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        # anchors
        levels: tuple[str, ...] = ("p2", "p3", "p4", "p5", "p6"),
        anchor_sizes: AnchorSizes = ((32,), (64,), (128,), (256,), (512,)),
        anchor_ratios: Factors = (0.5, 1.0, 2.0),
        exact_anchors: bool = False,
        # proposals
        rpn_convs: Positive = 1,
        rpn_iou: FractionRange = (0.3, 0.7),
        rpn_samples: Positive = 256,
        rpn_positives: PositiveFraction = 0.5,
        rpn_beta: NonNegative = 1 / 9,
        rpn_nms: Fraction = 0.7,
        rpn_score: FractionBelowOne = 0.0,
        rpn_before_nms: Positive = 1000,
        rpn_after_nms: Positive = 1000,
        rpn_before_nms_train: Positive = 2000,
        rpn_after_nms_train: Positive = 2000,
        # the box branch
        pool_levels: tuple[str, ...] = ("p2", "p3", "p4", "p5"),
        pool_size: Positive = 7,
        sampling_ratio: Count = 2,
        aligned: bool = False,
        canonical_size: PositiveFloat = 224.0,
        convs: Widths = (),
        norm: Annotated[NormName | None, OnlyWith("convs")] = None,
        fcs: Widths = (1024, 1024),
        class_agnostic: bool = False,
        background: bool = True,
        # what it learns from
        iou: PositiveFraction = 0.5,
        cascade: tuple[PositiveFraction, ...] = (),
        samples: Positive = 512,
        positives: PositiveFraction = 0.25,
        box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (10.0, 10.0, 5.0, 5.0),
        beta: NonNegative = 1 / 9,
        # detections
        score: FractionBelowOne = 0.05,
        nms: Fraction = 0.5,
        soft_nms: SoftNMS | None = None,
        sigma: Annotated[PositiveFloat, OnlyWith(soft_nms="gaussian")] = 0.5,
        detections: Positive = 100,
    ) -> None:
        super().__init__(spec, labels)
        self.levels = tuple(dict.fromkeys((*levels, *pool_levels)))
        self.rpn = RPN(
            spec, levels, anchor_sizes, anchor_ratios, convs=rpn_convs, iou=rpn_iou, samples=rpn_samples,
            positives=rpn_positives, beta=rpn_beta, nms=rpn_nms, score=rpn_score, exact_anchors=exact_anchors,
        )  # fmt: skip
        self.pool = RegionPool(
            spec, pool_levels, pool_size, sampling_ratio=sampling_ratio, aligned=aligned, canonical_size=canonical_size
        )
        if cascade and not class_agnostic:
            raise ValueError("a cascade hands one box a region on to the next stage, so it needs class_agnostic: true")
        classes, boxes = len(labels) + 1, 1 if class_agnostic else len(labels) + background
        self.branch, *later = [
            BoxBranch(self.pool.channels, pool_size, convs=convs, norm=norm, fcs=fcs, classes=classes, boxes=boxes)
            for _ in (iou, *cascade)
        ]
        self.later, self.ious = nn.ModuleList(later), (iou, *cascade)
        self.proposals = {"before_nms": rpn_before_nms, "after_nms": rpn_after_nms}
        self.proposals_train = {"before_nms": rpn_before_nms_train, "after_nms": rpn_after_nms_train}
        self.class_agnostic, self.background = class_agnostic, background
        self.box_weights, self.beta = tuple(box_weights), beta
        self.iou, self.sample_count, self.positives = iou, samples, positives
        self.score, self.nms, self.soft_nms, self.sigma = score, nms, soft_nms, sigma
        self.max_detections = detections

    @property
    def stages(self) -> list[Stage]:
        """The stages in the order in which boxes go through them; the factors of the deltas grow with each."""
        return [
            Stage(branch, iou, tuple(w * i for w in self.box_weights))
            for i, (branch, iou) in enumerate(zip((self.branch, *self.later), self.ious), start=1)
        ]

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> Regions:
        height, width = batch.images.shape[-2:]
        rpn = self.rpn(features, (height, width), batch.info)
        pooled = {level: features[level] for level in self.pool.levels}
        return Regions(self.labels, self, pooled, rpn, [Answer() for _ in batch.info])

    def losses(self, output: Regions, batch: Batch[InstanceTarget]) -> dict[str, Tensor | Mean]:
        objectness, rpn_box = self.rpn.losses(output.rpn, batch.targets)
        samples = output.samples(batch.targets)
        count = sum(len(s.boxes) for s in samples)
        of_class, of_delta = [], []
        for stage, after in zip(self.stages, (*self.stages[1:], None)):
            boxes = [s.boxes for s in samples]
            logits, deltas = stage.branch(self.pool(output.features, boxes))
            of_class.append(F.cross_entropy(logits, torch.cat([s.labels for s in samples]) + 1, reduction="sum"))
            of_delta.append(self._delta_loss(deltas, samples, batch.targets, stage))
            if after is not None:
                moved = stage.move(deltas, boxes, output.rpn.info)
                samples = self.match(moved, batch.targets, after.iou)
        return {
            "rpn_objectness": objectness,
            "rpn_box": rpn_box,
            "box_class": Mean(torch.stack(of_class).sum(), count),
            "box_delta": Mean(torch.stack(of_delta).sum(), count),
        }

    def _delta_loss(
        self, deltas: Tensor, samples: Sequence[RegionSamples], targets: Sequence[InstanceTarget], stage: Stage
    ) -> Tensor:
        labels = torch.cat([s.labels for s in samples])
        on = (labels >= 0)[:, None]
        aims = torch.cat([
            encode(target.boxes[s.matched.clamp(min=0)], s.boxes, stage.weights) if len(target) else s.boxes
            for s, target in zip(samples, targets)
        ])  # fmt: skip
        said = deltas[torch.arange(len(labels), device=labels.device), self._box_of(labels.clamp(min=0))]
        # Regions of the background are zeroed rather than selected, so that the host need not wait for their number.
        said, aims = torch.where(on, said, 0.0), torch.where(on, aims, 0.0)
        return F.smooth_l1_loss(said, aims, beta=self.beta, reduction="sum")

    @torch.no_grad()
    def predict(self, output: Regions, batch: Batch) -> list[BoxPrediction]:
        return [
            BoxPrediction(info.boxes_to_original(found.boxes), found.scores, found.labels)
            for info, found in zip(batch.info, output.detections())
        ]

    @torch.no_grad()
    def choose(self, rpn: RPNOutput, targets: Sequence[InstanceTarget]) -> list[Tensor]:
        """Boxes (n, 4) of each image to learn from: drawn from the proposals and from the objects themselves."""
        candidates, matches = [], []
        for (proposals, valid), target in zip(self.rpn.rank(rpn, **self.proposals_train), targets):
            boxes = torch.cat((proposals, target.boxes))
            matched = match(boxes, target.boxes, target.crowd, low=self.iou, high=self.iou)
            candidates.append(boxes)
            matches.append(matched.masked_fill(torch.cat((~valid, target.crowd)), IGNORED))
        chosen = sample_images(matches, self.sample_count, self.positives)
        return [boxes[torch.cat(index)] for boxes, index in zip(candidates, chosen)]

    def match(
        self, boxes: Sequence[Tensor], targets: Sequence[InstanceTarget], iou: float | None = None
    ) -> list[RegionSamples]:
        """Boxes of each image with the objects of its target that they lie on, by the first stage's IoU unless another
        is given.

        Boxes in crowds are left out.
        """
        iou = self.iou if iou is None else iou
        samples = []
        for own, target in zip(boxes, targets):
            matched = match(own, target.boxes, target.crowd, low=iou, high=iou)
            samples.append(RegionSamples(own, matched, labels_of(matched, target.labels)))
        return select_samples(samples, [s.matched != IGNORED for s in samples])

    @torch.no_grad()
    def detect(self, output: Regions) -> list[Detections]:
        """Final boxes of each image: every class of every proposal on its own, suppressed class by class."""
        regions = self.rpn.propose(output.rpn, **self.proposals)
        *before, last = self.stages
        said = []
        for stage in before:
            logits, deltas = stage.branch(self.pool(output.features, regions))
            said.append(logits.softmax(1))
            regions = stage.move(deltas, regions, output.rpn.info)
        logits, deltas = last.branch(self.pool(output.features, regions))
        scores = torch.stack((*said, logits.softmax(1))).mean(0)[:, 1:]
        sizes = [len(r) for r in regions]
        rows = true_rows([own.flatten() > self.score for own in scores.split(sizes)])
        parts = zip(regions, scores.split(sizes), deltas.split(sizes), output.rpn.info, rows)
        found = [self._decode(boxes, own, moves, info.size, index) for boxes, own, moves, info, index in parts]
        full = true_rows([(f.boxes[:, 2:] - f.boxes[:, :2] >= 1e-2).all(1) for f in found])
        return [self._thin_out(Detections(f.boxes[i], f.scores[i], f.labels[i])) for f, i in zip(found, full)]

    def _decode(
        self, regions: Tensor, scores: Tensor, deltas: Tensor, size: tuple[int, int], index: Tensor
    ) -> Detections:
        """The boxes of some of the scores (regions, classes), whose flat indices are given."""
        region, label = index // scores.shape[1], index % scores.shape[1]
        boxes = decode(deltas[region, self._box_of(label)], regions[region], self.stages[-1].weights)
        return Detections(clip_boxes_to_image(boxes, size), scores[region, label], label)

    def _thin_out(self, found: Detections) -> Detections:
        if self.soft_nms:
            keep, scores = soft_nms(
                found.boxes, found.scores, found.labels, method=self.soft_nms, iou=self.nms, sigma=self.sigma,
                floor=self.score, most=self.max_detections,
            )  # fmt: skip
            return Detections(found.boxes[keep], scores, found.labels[keep])
        keep = batched_nms(found.boxes, found.scores, found.labels, self.nms)[: self.max_detections]
        return Detections(found.boxes[keep], found.scores[keep], found.labels[keep])

    def _box_of(self, labels: Tensor) -> Tensor:
        """Which of a region's boxes belongs to each label."""
        return torch.zeros_like(labels) if self.class_agnostic else labels + self.background
