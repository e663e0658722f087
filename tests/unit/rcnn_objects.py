"""Sizes of the small R-CNNs in tests, and objects for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from visionkit.types import FeatureSpec, InstanceTarget, LabelSet, Level

WIDTH, HIDDEN, CLASSES = 8, 16, 6
SPEC = FeatureSpec({f"p{k}": Level(WIDTH, 2**k) for k in range(2, 7)})
LABELS = LabelSet(tuple("abcdef"), keypoints=("left", "right", "top"))
PERSON = LabelSet(("person",), keypoints=("left", "right", "top"))
BIG = 10**6


def instances(
    boxes: Sequence[Sequence[float]], labels: Sequence[int], size: tuple[int, int] = (96, 128)
) -> InstanceTarget:
    """Objects with filled boxes as masks and three keypoints each."""
    b = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(b), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, b.int().tolist()):
        mask[top:bottom, left : (left + right) // 2] = 1
    centre = (b[:, :2] + b[:, 2:]) / 2
    keypoints = torch.stack((b[:, :2], centre, b[:, 2:]), 1)
    visible = torch.tensor((2.0, 1.0, 2.0)).expand(len(b), 3)[..., None]
    return InstanceTarget(
        b,
        torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(b), dtype=torch.bool),
        masks.flatten(1).sum(1).float(),
        torch.arange(len(b)),
        masks,
        torch.cat((keypoints, visible), -1),
    )
