"""UPSNet's parameter-free panoptic head (Xiong et al., CVPR 2019, section 3.3), as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.types.device import constant, to_device


@dataclass(frozen=True)
class Pasted:
    """Mask logits at the size of their box: ``values`` (h, w), whose first pixel is (``left``, ``top``)."""

    left: int
    top: int
    values: Tensor


def paste(mask: Tensor, box: Sequence[float], size: tuple[int, int]) -> Pasted:
    """A mask (M, M) resized bilinearly to a box whose corners are cut to whole pixels, both of them covered; what lies
    outside the image of ``size`` (height, width) is cut off."""
    left, top, right, bottom = (int(value) for value in box)
    height, width = max(bottom - top + 1, 1), max(right - left + 1, 1)
    values = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", align_corners=False)[0, 0]
    values = values[max(-top, 0) : max(size[0] - top, 0), max(-left, 0) : max(size[1] - left, 0)]
    return Pasted(max(left, 0), max(top, 0), values)


def window(box: Sequence[float]) -> tuple[slice, slice]:
    """Rows and columns in which an object has its semantic logits: lower corner cut, upper one rounded and covered."""
    left, top, right, bottom = box
    return slice(max(int(top), 0), max(round(bottom) + 1, 0)), slice(max(int(left), 0), max(round(right) + 1, 0))


def remove_hidden(masks: Sequence[Pasted], labels: Sequence[int], size: tuple[int, int], overlap: float) -> list[int]:
    """Which of the objects, best first, are not hidden by better ones *of their own class*: those of which no larger
    share than ``overlap`` is covered already. Other classes hide nothing."""
    canvases: dict[int, Tensor] = {}
    kept = []
    for i, (mask, label) in enumerate(zip(masks, labels)):
        on = mask.values > 0
        if label not in canvases:
            canvases[label] = torch.zeros(size, dtype=torch.bool, device=on.device)
        covered = canvases[label][mask.top : mask.top + on.shape[0], mask.left : mask.left + on.shape[1]]
        area = int(on.sum())
        if area == 0 or int((on & covered).sum()) > overlap * area:
            continue
        covered |= on
        kept.append(i)
    return kept


def panoptic_logits(
    semantic: Tensor,
    stuff: Sequence[int],
    things: Sequence[int],
    classes: Sequence[int],
    boxes: Sequence[Sequence[float]],
    masks: Sequence[Pasted],
    *,
    top: int = 0,
) -> Tensor:
    """A channel for every class of stuff, for every object, and for what is unknown (equations 3 and 4).

    An object's is the semantic logit of its class inside its box plus its mask logit, and 0 elsewhere. The unknown's is
    how far the largest semantic logit of any thing exceeds the largest that the objects have *in their boxes*; masks
    have no part in it.

    Args:
        semantic: (classes, h, w) logits; of a part of the image, if ``top`` is given.
        stuff, things: channels of ``semantic``.
        classes: K channels, the class of each object.
        boxes: K boxes, in pixels of the whole map.
        masks: K masks, in pixels of the whole map.
        top: the row of the map that is the first of ``semantic``.

    Returns:
        (len(stuff) + K + 1, h, w).
    """
    height, width = semantic.shape[-2:]
    parts, inside, best = [semantic[constant(list(stuff), semantic, torch.int64)]], [], []
    for channel, box, mask in zip(classes, boxes, masks):
        rows, columns = window(box)
        rows = slice(min(max(rows.start - top, 0), height), min(max(rows.stop - top, 0), height))
        own = semantic.new_zeros(height, width)
        own[rows, columns] = semantic[channel, rows, columns]
        best.append(own)
        first, last = max(mask.top - top, 0), min(max(mask.top - top + len(mask.values), 0), height)
        pasted = semantic.new_zeros(height, width)
        if first < last:
            values = mask.values[first + top - mask.top : last + top - mask.top]
            pasted[first:last, mask.left : mask.left + values.shape[1]] = values
        inside.append(own + pasted)
    unknown = semantic[constant(list(things), semantic, torch.int64)].amax(0)
    if best:
        parts.append(torch.stack(inside))
        unknown = unknown - torch.stack(best).amax(0)
    return torch.cat((*parts, unknown[None]))


def unify(
    semantic: Tensor, panoptic: Tensor, stuff: Sequence[int], classes: Sequence[int], stuff_area: int
) -> tuple[Tensor, list[int], list[int]]:
    """The panoptic map corrected by the semantic one (section 3.4).

    An object stays where most of its pixels have its class in the semantic map. Else, where half of them or more are
    one class of stuff, it becomes that; else it stays as well. Stuff of less than ``stuff_area`` pixels, and what is
    unknown, is void.

    Args:
        semantic: (H, W) channel of the largest semantic logit.
        panoptic: (H, W) index of the largest of :func:`panoptic_logits`.
        stuff: semantic channels of the classes of stuff.
        classes: semantic channel of each object.
        stuff_area: in pixels.

    Returns:
        Segments (H, W) int32 from 1, 0 for void; the objects that the first numbers are; the classes of stuff, as
        indices into ``stuff``, that the others are.
    """
    first, unknown = len(stuff), len(stuff) + len(classes)
    number = torch.zeros(unknown + 1, dtype=torch.int32)
    channels = max((int(semantic.max()), *stuff, *classes)) + 1
    together = (
        torch.bincount(
            panoptic.flatten().long() * channels + semantic.flatten().long(), minlength=(unknown + 1) * channels
        )
        .view(unknown + 1, channels)
        .cpu()
    )  # what follows is decided object by object
    into = {channel: i for i, channel in enumerate(stuff)}
    areas = together.sum(1)
    things, becomes = [], {}
    for i, channel in enumerate(classes):
        votes = together[first + i]
        if not int(areas[first + i]):
            continue
        most = int(votes.argmax())
        if most != channel and most in into and 2 * int(votes[most]) >= int(areas[first + i]):
            becomes[i] = into[most]
            areas[into[most]] += areas[first + i]
        else:
            things.append(i)
            number[first + i] = len(things)
    kept = [c for c in range(first) if int(areas[c]) >= max(stuff_area, 1)]
    for place, c in enumerate(kept, len(things) + 1):
        number[c] = place
    for i, c in becomes.items():
        number[first + i] = number[c]
    return to_device([number], panoptic.device)[0][panoptic.long()], things, kept
