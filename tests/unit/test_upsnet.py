"""UPSNet's panoptic head, against the reference's numbers and the rules of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visionkit.errors import UserError
from visionkit.types import (
    Batch,
    FeatureSpec,
    ImageInfo,
    LabelSet,
    MaskPrediction,
    Mean,
    PanopticTarget,
    RegionMaskOutput,
    RegionOutput,
    SemanticOutput,
)
from visionkit_panoptic.panoptic_logits import panoptic_logits, paste, remove_hidden, unify
from visionkit_panoptic.upsnet import UPSNet

FACTS = {
    name: torch.from_numpy(value)
    for name, value in np.load(Path(__file__).parents[1] / "data" / "upsnet_panoptic_head" / "io.npz").items()
}
SIZE = (48, 64)
STUFF, THINGS = [0, 1, 2, 3, 4], [5, 6, 7]
BEST_FIRST = FACTS["cls_prob"].argsort(descending=True).tolist()
BOXES = FACTS["rois"][:, 1:].tolist()
CLASSES = (FACTS["cls_idx"] + 4).tolist()


def kept() -> list[int]:
    masks = [paste(FACTS["mask_logits_in"][i, 0], BOXES[i], SIZE) for i in BEST_FIRST]
    return [BEST_FIRST[k] for k in remove_hidden(masks, [CLASSES[i] for i in BEST_FIRST], SIZE, 0.3)]


def logits_of(rows: list[int]) -> Tensor:
    masks = [paste(FACTS["mask_logits_in"][i, 0], BOXES[i], SIZE) for i in rows]
    boxes, classes = [BOXES[i] for i in rows], [CLASSES[i] for i in rows]
    return panoptic_logits(FACTS["seg_logits_in"][0], STUFF, THINGS, classes, boxes, masks)


def test_masks_that_better_ones_of_their_class_hide_are_removed_as_in_the_reference() -> None:
    assert kept() == FACTS["keep_inds"].tolist()


def test_another_class_hides_nothing() -> None:
    whole = paste(torch.ones(28, 28), (0, 0, 9, 9), (10, 10))
    assert remove_hidden([whole, whole], [3, 3], (10, 10), 0.3) == [0]
    assert remove_hidden([whole, whole], [3, 4], (10, 10), 0.3) == [0, 1]


def test_the_channels_are_those_of_the_reference() -> None:
    said = logits_of(kept())
    energy = FACTS["mask_energy_half"][0] + FACTS["seg_inst_half"][0]
    torch.testing.assert_close(said[:5], FACTS["seg_logits_in"][0, :5])
    torch.testing.assert_close(said[5:-1, ::2, ::2], energy, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(said[-1:, ::2, ::2], FACTS["void_half"][0], rtol=1e-5, atol=1e-5)
    best = said.argmax(0)
    np.testing.assert_array_equal(torch.where(best == len(said) - 1, 255, best), FACTS["panoptic_void"])
    np.testing.assert_array_equal(said[:-1].argmax(0), FACTS["panoptic_novoid"])


def test_a_band_of_rows_has_the_channels_of_the_whole() -> None:
    rows = kept()
    masks = [paste(FACTS["mask_logits_in"][i, 0], BOXES[i], SIZE) for i in rows]
    boxes, classes = [BOXES[i] for i in rows], [CLASSES[i] for i in rows]
    bands = [
        panoptic_logits(FACTS["seg_logits_in"][0, :, top : top + 7], STUFF, THINGS, classes, boxes, masks, top=top)
        for top in range(0, 48, 7)
    ]
    torch.testing.assert_close(torch.cat(bands, 1), logits_of(rows), rtol=0, atol=0)


def test_the_unknown_is_told_from_semantic_logits_alone() -> None:
    """Masks have no part in it, and it is a difference of logits, not of probabilities."""
    semantic = torch.zeros(3, 6, 6)
    semantic[2, 1:5, 1:5] = 4.0  # a thing that nobody found but for a corner
    box = (1, 1, 2, 2)
    for mask in (torch.full((28, 28), -9.0), torch.full((28, 28), 9.0)):
        said = panoptic_logits(semantic, [0], [1, 2], [2], [box], [paste(mask, box, (6, 6))])
        assert said.shape == (3, 6, 6)
        assert said[-1, 1:3, 1:3].eq(0).all()
        assert said[-1, 4, 4] == 4
    assert panoptic_logits(semantic, [0], [1, 2], [], [], []).argmax(0)[2, 2] == 1


def test_the_merge_is_that_of_the_reference() -> None:
    rows = kept()
    best = logits_of(rows).argmax(0)

    segments, things, stuff = unify(FACTS["semantic_argmax"], best, STUFF, [CLASSES[i] for i in rows], 120)

    semantic = torch.tensor([255, *(CLASSES[rows[i]] for i in things), *(STUFF[c] for c in stuff)])[segments.long()]
    np.testing.assert_array_equal(semantic, FACTS["unified_semantic"])
    instance = torch.where((segments > 0) & (segments <= len(things)), segments, 0)
    pairs = torch.stack((instance.flatten(), FACTS["unified_instance"].flatten()), 1).unique(dim=0)
    assert len(pairs) == len(things) + 1  # the same regions, whatever their numbers
    assert pairs[:, 1].unique().numel() == len(pairs)


def test_the_majority_of_the_semantic_map_decides() -> None:
    semantic = torch.zeros(4, 4, dtype=torch.long)
    semantic[:2] = 2
    panoptic = torch.full((4, 4), 1)  # one object all over, of channel 2, beside one class of stuff
    whole = torch.ones(4, 4, dtype=torch.int32)
    for rows, thing in ((3, True), (2, False), (1, False)):
        semantic[:] = 0
        semantic[:rows] = 2
        segments, things, stuff = unify(semantic, panoptic, [0], [2], 1)
        assert (things, stuff) == (([0], []) if thing else ([], [0]))
        torch.testing.assert_close(segments, whole)
    semantic[:] = 1  # another thing: no reason to change
    assert unify(semantic, panoptic, [0], [2], 1)[1] == [0]
    assert unify(torch.zeros(4, 4).long(), torch.zeros(4, 4).long(), [0], [2], 17)[0].sum() == 0


# The head: what it learns from.


@dataclass
class Constant(RegionMaskOutput):
    """Every mask has the same logit everywhere; the boxes asked for are noted."""

    logit: Tensor
    asked: list[tuple[list[Tensor], list[Tensor]]]

    def mask_logits(self, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        self.asked.append((list(boxes), list(labels)))
        return [self.logit.expand(len(own), 28, 28) for own in boxes]

    def instances(self, batch: Batch) -> list[MaskPrediction]:
        raise AssertionError("UPSNet merges logits, not finished masks")


LABELS = LabelSet(("sky", "cat", "dog"), things=(False, True, True))
INFO = (ImageInfo(id=1, path="", original_size=(32, 32), size=(32, 32)),)


def scene() -> PanopticTarget:
    """Sky; a cat and a dog of 16 x 16 pixels; a crowd of dogs; a void corner."""
    segments = torch.ones(32, 32, dtype=torch.int32)
    segments[:16, :16], segments[16:, :16], segments[:16, 16:], segments[28:, 28:] = 2, 3, 4, 0
    return PanopticTarget(
        segments, torch.tensor([0, 1, 2, 2]), torch.tensor([False, False, False, True]), torch.arange(4)
    )


def learnt(drop: float, logits: Tensor, mask: float = 9.0) -> tuple[dict[str, Tensor], Constant, nn.Parameter]:
    head = UPSNet(FeatureSpec(), LABELS, drop=drop)
    head.connect({"semantic": LABELS, "masks": LabelSet(("dog", "cat"))})
    weights = nn.Parameter(logits)
    masks = Constant(regions=cast(RegionOutput, None), logit=torch.tensor(mask, requires_grad=True), asked=[])
    batch: Batch = Batch(torch.zeros(1, 3, 32, 32), INFO, (scene(),))
    output = head({}, batch, {"semantic": SemanticOutput(weights), "masks": masks})
    losses = {
        name: loss.value() if isinstance(loss, Mean) else loss for name, loss in head.losses(output, batch).items()
    }
    return losses, masks, weights


def truth(value: float) -> Tensor:
    """Logits of the right class."""
    table = torch.full((1, 3, 8, 8), -value)
    table[0, 0] = value
    table[0, :, :4, :4] = torch.tensor((-value, value, -value))[:, None, None]
    table[0, :, 4:, :4] = torch.tensor((-value, -value, value))[:, None, None]
    return table


def test_true_boxes_are_learnt_with_in_the_labels_of_the_mask_head_and_crowds_are_not() -> None:
    losses, masks, weights = learnt(0.0, truth(9.0))
    ((boxes, labels),) = masks.asked
    torch.testing.assert_close(boxes[0], torch.tensor([[0.0, 0, 16, 16], [0, 16, 16, 32]]))
    assert labels[0].tolist() == [1, 0]
    assert losses["panoptic"] < 0.1
    assert losses["semantic_roi"] < 0.5  # cells at the borders see both sides
    losses["panoptic"].backward()
    grad = weights.grad
    assert grad is not None
    assert grad[0, :, :4, 4:].eq(0).all()  # the crowd
    assert grad[0, :, 7, 7].eq(0).all()  # void
    assert masks.logit.grad is not None


def test_pixels_of_dropped_objects_are_the_unknowns() -> None:
    """With every object dropped the channels are sky and unknown, and the unknown is the largest logit of a thing."""
    losses, masks, _ = learnt(1.0, truth(3.0))
    assert masks.asked[0][0][0].shape == (0, 4)
    logits = truth(3.0)[0]
    said = torch.stack((logits[0], logits[1:].amax(0)))
    aim = torch.zeros(8, 8, dtype=torch.long)
    aim[:, :4] = 1
    aim[:4, 4:] = -100
    aim[7, 7] = -100
    torch.testing.assert_close(losses["panoptic"], F.cross_entropy(said[None], aim[None]))


def test_the_share_that_is_dropped() -> None:
    torch.manual_seed(0)
    dropped = [2 - len(learnt(0.5, truth(1.0))[1].asked[0][0][0]) for _ in range(5)]
    assert dropped == [1] * 5
    which = {tuple(learnt(0.5, truth(1.0))[1].asked[0][1][0].tolist()) for _ in range(20)}
    assert which == {(0,), (1,)}


def test_each_box_weighs_alike_in_the_semantic_loss() -> None:
    """The logits of a box are pooled to the same number of cells, however large it is."""
    wrong = truth(9.0)
    wrong[0, :, :4, :4] *= -1  # the cat
    losses, _, _ = learnt(0.0, wrong)
    assert 8 < losses["semantic_roi"] < 10  # half of the cells are wrong by 18


def test_a_class_that_the_semantic_head_does_not_know_is_named() -> None:
    head = UPSNet(FeatureSpec(), LABELS)
    with pytest.raises(UserError, match="'semantic' does not know 'dog'"):
        head.connect({"semantic": LabelSet(("sky", "cat")), "masks": LABELS})
