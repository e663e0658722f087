"""UPSNet (Xiong et al., CVPR 2019): one softmax over stuff, objects and the unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from visionkit import Head
from visionkit.layers.semantic import cell_size, original_bands
from visionkit.numbers import Count, Fraction, FractionBelowOne, Positive
from visionkit.types import (
    IGNORE,
    Batch,
    Detections,
    Features,
    FeatureSpec,
    ImageInfo,
    LabelSet,
    Mean,
    PanopticPrediction,
    PanopticTarget,
    RegionMaskOutput,
    SemanticOutput,
)
from visionkit.types.device import constant, on_host, to_device, true_rows
from visionkit_panoptic.join import Both, demand, stuff_of, table, things_of
from visionkit_panoptic.panoptic_logits import panoptic_logits, paste, remove_hidden, unify

IGNORE_INDEX = -100
"""Channel of cells that nothing is learnt from; there may be more than 255 channels."""


class UPSNet(Head):
    """Things and stuff in one map, from a semantic and a mask head that learn from it too. It has no parameters.

    Learning takes the true objects, at the resolution of the semantic logits; some are dropped at random, and their
    pixels are the unknown's. Where objects are crowds or nothing is said, nothing is learnt. The true boxes are those
    of what is seen of each object.

    Args:
        spec, labels: as for every head; ``labels.things`` says which classes are things. The semantic head must know
            all classes, the mask head all things.
        drop: share of the objects of an image that are dropped in learning.
        roi_size: rows and columns at which the semantic logits of each true box are learnt once more.
        score, nms: of the detections, those below the score, and those that overlap a better one of *any* class by more
            than this, are left out.
        overlap: of the masks, those whose larger share lies under better ones of their class are left out.
        stuff_area: in pixels of the original image; less stuff of a class is void.
    """

    task = "panoptic"
    makes = PanopticPrediction
    output = Both
    needs = {"semantic": SemanticOutput, "masks": RegionMaskOutput}
    loss_names = ("panoptic", "semantic_roi")
    evaluators = ("pq",)
    exportable = True

    def __init__(
        self,
        spec: FeatureSpec,
        labels: LabelSet,
        *,
        drop: FractionBelowOne = 0.3,
        roi_size: Positive = 28,
        score: FractionBelowOne = 0.6,
        nms: Fraction = 0.5,
        overlap: Fraction = 0.3,
        stuff_area: Count = 4096,
    ) -> None:
        super().__init__(spec, labels)
        self.drop, self.roi_size = drop, roi_size
        self.score, self.nms, self.overlap, self.stuff_area = score, nms, overlap, stuff_area

    def connect(self, port_labels: Mapping[str, LabelSet]) -> None:
        super().connect(port_labels)
        semantic, masks = port_labels["semantic"], port_labels["masks"]
        self.stuff, self.things = stuff_of(self.labels), things_of(self.labels)
        demand(self.labels.names, semantic, "semantic")
        demand([self.labels.names[i] for i in self.things], masks, "masks")
        self.channel = table(self.labels, semantic)  # our label -> channel of the semantic logits
        self.mask_label = table(self.labels, masks)  # our label -> label of the mask head, or -1
        self.from_mask = table(masks, self.labels)  # and back

    def forward(self, features: Features, batch: Batch, upstream: Mapping[str, Any]) -> Both:
        return Both(upstream["semantic"], upstream["masks"])

    def losses(self, output: Both, batch: Batch[PanopticTarget]) -> dict[str, Tensor | Mean]:
        logits, stride = output.semantic.logits.float(), cell_size(output.semantic.logits, batch)
        objects = true_rows([self._is_object(target) for target in batch.targets])
        chosen = [torch.randperm(len(rows))[int(self.drop * len(rows)) :].sort()[0] for rows in objects]
        kept = [rows[index] for rows, index in zip(objects, to_device(chosen, logits.device))]
        boxes = [target.boxes() for target in batch.targets]
        mask_label = to_device([self.mask_label], logits.device)[0]
        masks = output.masks.mask_logits(
            [own[rows] for own, rows in zip(boxes, kept)],
            [mask_label[target.labels[rows]] for target, rows in zip(batch.targets, kept)],
        )
        total, count = logits.sum() * 0, logits.new_zeros(())
        on_map = [own[rows] / stride for own, rows in zip(boxes, kept)]
        known = on_host([*on_map, *(target.labels[rows] for target, rows in zip(batch.targets, kept))])
        known_boxes, known_labels = known[: len(kept)], known[len(kept) :]
        images = zip(logits, batch.targets, kept, masks, known_boxes, known_labels)
        for one, target, rows, found, own, labels in images:
            said = self._logits(one, labels, own.tolist(), found)
            aim = self._aim(target, rows, (one.shape[-2], one.shape[-1]), stride)
            total = total + F.cross_entropy(said[None], aim[None], ignore_index=IGNORE_INDEX, reduction="sum")
            count = count + (aim != IGNORE_INDEX).sum()
        return {
            "panoptic": Mean(total, count),
            "semantic_roi": self._roi_loss(logits, batch.targets, boxes, objects, stride),
        }

    def _is_object(self, target: PanopticTarget) -> Tensor:
        """(N,) bool: the segments that are objects and seen in the image."""
        things = torch.isin(target.labels, constant(self.things, target.labels))
        return things & target.visible() & ~target.crowd

    def _logits(self, semantic: Tensor, labels: Tensor, boxes: Sequence[Sequence[float]], masks: Tensor) -> Tensor:
        size = (semantic.shape[-2], semantic.shape[-1])
        pasted = [paste(mask, box, size) for mask, box in zip(masks, boxes)]
        return panoptic_logits(
            semantic, self._channels(self.stuff), self._channels(self.things), self._channels(labels.tolist()),
            boxes, pasted,
        )  # fmt: skip

    def _channels(self, labels: Sequence[int]) -> list[int]:
        return [int(self.channel[label]) for label in labels]

    def _aim(self, target: PanopticTarget, kept: Tensor, size: tuple[int, int], stride: int) -> Tensor:
        """(h, w) the right channel of every cell: that of the pixel in its middle."""
        channel = torch.full((len(target) + 1,), IGNORE_INDEX, device=target.labels.device)
        for place, label in enumerate(self.stuff):
            channel[1:][target.labels == label] = place
        channel[1:][self._is_object(target)] = len(self.stuff) + len(kept)
        channel[1 + kept] = len(self.stuff) + torch.arange(len(kept), device=kept.device)
        channel[1:][target.crowd] = IGNORE_INDEX
        cells = channel[target.segments.long()[stride // 2 :: stride, stride // 2 :: stride]]
        return F.pad(cells, (0, size[1] - cells.shape[1], 0, size[0] - cells.shape[0]), value=IGNORE_INDEX)

    def _roi_loss(
        self,
        logits: Tensor,
        targets: Sequence[PanopticTarget],
        boxes: Sequence[Tensor],
        objects: Sequence[Tensor],
        stride: int,
    ) -> Mean:
        """Cross-entropy of the semantic logits in the true boxes, so that small objects weigh as much as large ones.

        The classifier is linear, so pooling its logits is pooling the features before it.
        """
        rois = [own[rows] for own, rows in zip(boxes, objects)]
        said = roi_align(logits, rois, self.roi_size, 1 / stride, sampling_ratio=2, aligned=True)
        aims = []
        for target, own in zip(targets, rois):
            full = target.semantic().labels.long()
            share = (torch.arange(self.roi_size, device=own.device) + 0.5) / self.roi_size
            x = (own[:, :1] + share * (own[:, 2:3] - own[:, :1])).long().clamp(max=full.shape[1] - 1)
            y = (own[:, 1:2] + share * (own[:, 3:] - own[:, 1:2])).long().clamp(max=full.shape[0] - 1)
            aims.append(full[y[:, :, None], x[:, None, :]])
        aim = torch.cat(aims)
        channel = torch.full((IGNORE + 1,), IGNORE_INDEX, device=aim.device)
        channel[: len(self.labels)] = to_device([self.channel], aim.device)[0]
        aim = channel[aim]
        total = F.cross_entropy(said, aim, ignore_index=IGNORE_INDEX, reduction="sum")
        return Mean(total, (aim != IGNORE_INDEX).sum())

    @torch.no_grad()
    def predict(self, output: Both, batch: Batch) -> list[PanopticPrediction]:
        stride = cell_size(output.semantic.logits, batch)
        found = [self._select(one) for one in output.masks.regions.detections_for(self.port_labels["masks"])]
        masks = output.masks.mask_logits([f.boxes for f in found], [f.labels for f in found])
        return [
            self._predict(logits, one, own, info, stride)
            for logits, one, own, info in zip(output.semantic.logits, found, masks, batch.info)
        ]

    def _select(self, found: Detections) -> Detections:
        """Detections that are sure enough and of our classes, and that no better one covers."""
        keep = (found.scores >= self.score) & (to_device([self.from_mask], found.labels.device)[0][found.labels] >= 0)
        rows = keep.nonzero()[:, 0]
        rows = rows[nms(found.boxes[rows].float(), found.scores[rows].float(), self.nms)]
        return Detections(found.boxes[rows], found.scores[rows], found.labels[rows])

    def _predict(
        self, logits: Tensor, found: Detections, masks: Tensor, info: ImageInfo, stride: int
    ) -> PanopticPrediction:
        size = info.original_size
        # What follows is decided object by object, on the host.
        labels, corners, scores = on_host((found.labels, info.boxes_to_original(found.boxes), found.scores.float()))
        labels, boxes = self.from_mask[labels], corners.tolist()
        pasted = [paste(mask, box, size) for mask, box in zip(masks, boxes)]
        kept = remove_hidden(pasted, labels.tolist(), size, self.overlap)
        boxes, pasted = [boxes[i] for i in kept], [pasted[i] for i in kept]
        stuff, things = self._channels(self.stuff), self._channels(self.things)
        classes = self._channels(labels[kept].tolist())
        semantic = torch.empty(size, dtype=torch.int64, device=logits.device)
        panoptic = torch.empty_like(semantic)
        for band, rows in original_bands(logits, info, stride):
            part = rows.transpose(0, 1)
            semantic[band] = part.argmax(0)
            panoptic[band] = panoptic_logits(part, stuff, things, classes, boxes, pasted, top=band.start).argmax(0)
        segments, objects, areas = unify(semantic, panoptic, stuff, classes, self.stuff_area)
        best = [kept[i] for i in objects]
        return PanopticPrediction(
            segments.cpu(),
            torch.cat((labels[best], torch.tensor([self.stuff[c] for c in areas], dtype=torch.int64))),
            torch.cat((scores[best], torch.ones(len(areas)))),
        )
