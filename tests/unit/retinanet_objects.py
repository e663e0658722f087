"""A small RetinaNet for tests, and objects for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.unit.backbones import Levels
from visionkit.model import MultiTaskModel
from visionkit.types import (
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    LabelSet,
    Level,
    MixedBatch,
)
from visionkit_dense_detection.retinanet import RetinaNet

WIDTH = 8
SPEC = FeatureSpec({f"p{k}": Level(WIDTH, 2**k) for k in range(3, 8)})
LABELS = LabelSet(tuple("abcd"), keypoints=("corner", "centre"))
SIZE = (96, 128)


def small(**options: Any) -> RetinaNet:
    return RetinaNet(SPEC, LABELS, **{"channels": WIDTH, "convs": 1, **options})


def model_of(**options: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(Levels(SPEC), None, {"boxes": small(**options)})


def objects(boxes: Sequence[Sequence[float]], labels: Sequence[int], crowd: Sequence[bool] = ()) -> InstanceTarget:
    """Objects with a filled mask, and keypoints at the left top corner and in the centre."""
    b = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(b), *SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, b.int().tolist()):
        mask[top:bottom, left:right] = 1
    points = torch.stack((b[:, :2], (b[:, :2] + b[:, 2:]) / 2), 1)
    keypoints = torch.cat((points, torch.full((len(b), 2, 1), 2.0)), 2)
    crowds = torch.tensor(crowd or [False] * len(b), dtype=torch.bool)
    return InstanceTarget(b, torch.tensor(labels).long(), crowds, b[:, 2], torch.arange(len(b)), masks, keypoints)


def batch_of(*targets: InstanceTarget, heads: Sequence[str] = ("boxes",)) -> MixedBatch:
    info = tuple(ImageInfo(i, "", SIZE, SIZE) for i in range(len(targets)))
    images = torch.rand(len(targets), 3, *SIZE, generator=torch.Generator().manual_seed(3))
    return MixedBatch(images, info, {head: list(targets) for head in heads})


OBJECTS = objects([[4, 8, 60, 70], [50, 20, 122, 90], [70, 10, 90, 30]], [1, 3, 0])
ONE = objects([[30, 30, 90, 80]], [2])
NOTHING = InstanceTarget.empty(SIZE, 2, masks=True)


def output_of(model: MultiTaskModel, batch: MixedBatch) -> Any:
    rows = {name: list(range(len(batch))) for name in model.order}
    return model.run_heads(model.branches(model.features(batch.images)), batch, rows)["boxes"]
