"""UPSNet's panoptic head, against the reference's numbers and the rules of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visionkit_panoptic.panoptic_logits import panoptic_logits, paste, remove_hidden, unify

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
