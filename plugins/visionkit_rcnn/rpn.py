"""Region proposal network (Ren et al., NeurIPS 2015) on a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image

from visionkit.layers.anchors import PyramidAnchors
from visionkit.layers.boxes import batched_nms, decode, encode, match, sample_images
from visionkit.layers.roi import common_channels
from visionkit.types import Anchors, Features, FeatureSpec, ImageInfo, InstanceTarget, Mean, Output
from visionkit.types.device import true_rows


@dataclass
class RPNOutput(Output):
    """What the network says of every anchor, a level an item.

    Attributes:
        objectness: logits (B, A).
        deltas: (B, A, 4), from the anchor to the object.
        anchors: shared by the images.
        info: one an image.
    """

    objectness: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    anchors: Anchors
    info: list[ImageInfo]


class RPN(nn.Module):
    """Scores and regresses anchors on each level by the same small network.

    Args:
        spec: of the backbone and neck.
        levels: names of the levels.
        sizes: anchor sizes in pixels, a tuple for each level; all of one length.
        ratios: height / width of the anchors.
        convs: number of 3 x 3 convolutions.
        iou: below the first an anchor is background, from the second on it is an object.
        samples: anchors that are learnt from, an image.
        positives: largest share of them that lies on objects.
        beta: where the regression loss turns from square to linear.
        nms: IoU from which the weaker of two proposals of a level is dropped.
        score: proposals below it are dropped.
        exact_anchors: see :class:`~visionkit.layers.anchors.PyramidAnchors`; ``True`` for detectron2's weights.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        levels: Sequence[str],
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        *,
        convs: int,
        iou: tuple[float, float],
        samples: int,
        positives: float,
        beta: float,
        nms: float,
        score: float,
        exact_anchors: bool = False,
    ) -> None:
        super().__init__()
        self.make_anchors = PyramidAnchors(spec, levels, sizes, ratios, exact=exact_anchors)
        channels = common_channels(spec, levels)
        self.conv = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.objectness = nn.Conv2d(channels, self.make_anchors.of_a_cell, 1)
        self.deltas = nn.Conv2d(channels, self.make_anchors.of_a_cell * 4, 1)
        for layer in (*self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.levels = tuple(levels)
        self.iou, self.samples, self.positives, self.beta = iou, samples, positives, beta
        self.nms, self.score = nms, score

    def forward(self, features: Features, size: tuple[int, int], info: Sequence[ImageInfo]) -> RPNOutput:
        """Every level of ``features`` for images that are padded to ``size`` (height, width)."""
        objectness, deltas = [], []
        for name in self.levels:
            x = features[name]
            for conv in self.conv:
                x = F.relu(conv(x))
            objectness.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4).float())
        maps = [features[name] for name in self.levels]
        anchors = self.make_anchors([(x.shape[-2], x.shape[-1]) for x in maps], size, maps[0].device)
        return RPNOutput(tuple(objectness), tuple(deltas), anchors, list(info))

    @torch.no_grad()
    def propose(self, out: RPNOutput, *, before_nms: int, after_nms: int) -> list[Tensor]:
        """Boxes (n, 4) of each image in input pixels, clipped to it, best first.

        Args:
            before_nms: the best anchors of each level that are looked at.
            after_nms: the best proposals of all levels together that are kept.
        """
        ranked = self.rank(out, before_nms=before_nms, after_nms=after_nms)
        rows = true_rows([valid for _, valid in ranked])
        return [boxes[index] for (boxes, _), index in zip(ranked, rows)]

    @torch.no_grad()
    def rank(self, out: RPNOutput, *, before_nms: int, after_nms: int) -> list[tuple[Tensor, Tensor]]:
        """What :meth:`propose` returns, without a wait for the number of proposals: boxes (n, 4) of each image, and
        which of them are proposals, (n,) bool. Those that are not come last."""
        found = []
        for level, (objectness, deltas, anchors) in enumerate(zip(out.objectness, out.deltas, out.anchors.levels)):
            score, index = objectness.topk(min(before_nms, objectness.shape[1]), dim=1)
            boxes = decode(deltas.gather(1, index[..., None].expand(-1, -1, 4)), anchors[index])
            found.append((boxes, score, torch.full_like(index, level)))
        all_boxes, all_scores, all_levels = (torch.cat(part, 1) for part in zip(*found))
        proposals = []
        for info, boxes, scores, levels in zip(out.info, all_boxes, all_scores, all_levels):
            boxes = clip_boxes_to_image(boxes, info.size)
            valid = (boxes[:, 2:] - boxes[:, :2] >= 1e-3).all(1) & (scores.sigmoid() >= self.score)
            # What is no proposal ranks last, where it suppresses nothing.
            keep = batched_nms(boxes, scores.masked_fill(~valid, -math.inf), levels, self.nms)[:after_nms]
            proposals.append((boxes[keep], valid[keep]))
        return proposals

    def losses(self, out: RPNOutput, targets: Sequence[InstanceTarget]) -> tuple[Mean, Mean]:
        """Objectness (binary cross-entropy) and regression (smooth L1 of the positives), as means over all samples."""
        anchors = torch.cat(out.anchors.levels)
        logits, truths, deltas, aims = [], [], [], []
        low, high = self.iou
        matches = [match(anchors, t.boxes, t.crowd, low=low, high=high, best_of_each=True) for t in targets]
        images = zip(
            torch.cat(out.objectness, 1), torch.cat(out.deltas, 1), targets, matches,
            sample_images(matches, self.samples, self.positives),
        )  # fmt: skip
        for objectness, delta, target, matched, (positive, negative) in images:
            logits.append(objectness[torch.cat((positive, negative))])
            truths.append(torch.cat((torch.ones_like(objectness[positive]), torch.zeros_like(objectness[negative]))))
            deltas.append(delta[positive])
            aims.append(encode(target.boxes[matched[positive]], anchors[positive]))
        count = sum(map(len, logits))
        objectness_loss = F.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(truths), reduction="sum")
        delta_loss = F.smooth_l1_loss(torch.cat(deltas), torch.cat(aims), beta=self.beta, reduction="sum")
        return Mean(objectness_loss, count), Mean(delta_loss, count)
