"""Other heads on the anchors and boxes of RetinaNet: a further tower on its pyramid, masks in its boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from tests.unit.backbones import Levels
from tests.unit.retinanet_objects import (
    LABELS,
    NOTHING,
    OBJECTS,
    ONE,
    SIZE,
    SPEC,
    WIDTH,
    batch_of,
    objects,
    output_of,
    small,
)
from visionkit import Head
from visionkit.layers.towers import AnchorValues, Tower
from visionkit.model import MultiTaskModel
from visionkit.types import (
    FeatureSpec,
    KeypointPrediction,
    LabelSet,
    Mean,
    MixedBatch,
    Output,
    PyramidOutput,
)
from visionkit_rcnn.roi_mask import RoIMask


@dataclass
class PointOutput(Output):
    pyramid: PyramidOutput
    offsets: Tensor  # (B, anchors, keypoints, 2) from the anchor's centre, in its sides


class PointTower(Head):
    """A further tower on the same pyramid: where the keypoints of an object lie, seen from each anchor."""

    task, makes, output = "keypoints", KeypointPrediction, PointOutput
    needs, labels_from = {"pyramid": PyramidOutput}, "pyramid"
    loss_names = ("point",)

    def __init__(self, spec: FeatureSpec, labels: LabelSet, *, levels: tuple[str, ...] = tuple(SPEC)) -> None:
        super().__init__(spec, labels)
        self.levels, self.tower = levels, Tower(WIDTH, WIDTH, 1)
        self.offsets = AnchorValues(WIDTH, anchors=9, values=2 * len(labels.keypoints))

    def forward(self, features: Any, batch: Any, upstream: Any) -> PointOutput:
        said = self.offsets.of_anchors(self.tower([features[level] for level in self.levels]))
        return PointOutput(upstream["pyramid"], torch.cat(said, 1).unflatten(2, (-1, 2)))

    def losses(self, output: PointOutput, batch: Any) -> dict[str, Mean]:
        errors = []
        for offsets, matched, target in zip(output.offsets, output.pyramid.matched(batch.targets), batch.targets):
            points = self.points(offsets, output.pyramid.anchors.all(), matched >= 0)
            errors.append((points - target.keypoints[matched[matched >= 0], :, :2]).abs().flatten())
        return {"point": Mean(torch.cat(errors).sum(), sum(map(len, errors)))}

    def predict(self, output: PointOutput, batch: Any) -> list[KeypointPrediction]:
        predictions = []
        pyramid = output.pyramid
        for offsets, found, at, info in zip(output.offsets, pyramid.detections(), pyramid.found_at(), batch.info):
            points = info.points_to_original(self.points(offsets, pyramid.anchors.all(), at))
            points = torch.cat((points, found.scores[:, None, None].expand(-1, points.shape[1], 1)), 2)
            boxes = info.boxes_to_original(found.boxes)
            predictions.append(KeypointPrediction(boxes, found.scores, found.labels, keypoints=points))
        return predictions

    def points(self, offsets: Tensor, anchors: Tensor, which: Tensor) -> Tensor:
        own = anchors[which][:, None]
        return (own[..., :2] + own[..., 2:]) / 2 + offsets[which] * (own[..., 2:] - own[..., :2])


def test_another_head_adds_a_tower_to_the_pyramid() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(
        Levels(SPEC), None, {"boxes": small(norm="group", prior=0.1), "points": PointTower(SPEC, LABELS)}
    )
    assert model.reads["points"] == {"pyramid": "boxes"}
    # Positions can be told from these images.
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE[0]), torch.linspace(-1, 1, SIZE[1]), indexing="ij")
    target = objects([[20, 20, 70, 70]], [1])
    batch = MixedBatch(torch.stack((x, y, x * y))[None], batch_of(ONE).info, {"boxes": [target], "points": [target]})
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    history = []
    for _ in range(80):
        losses, _ = model.losses(batch)
        total = losses["boxes"]["class"] + losses["boxes"]["box"] + 0.1 * losses["points"]["point"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(losses["points"]["point"].item())
    assert history[-1] < 0.25 * history[0]
    with torch.no_grad():
        found = model.predict(batch)
    points, boxes = found["points"][0], found["boxes"][0]
    assert torch.equal(points.boxes, boxes.boxes)
    assert box_iou(boxes.boxes[:1], target.boxes) > 0.7
    assert boxes.labels[0] == 1
    assert (points.keypoints[0, :, :2] - target.keypoints[0, :, :2]).abs().max() < 8


def test_a_mask_branch_reads_its_boxes() -> None:
    torch.manual_seed(0)
    heads = {"boxes": small(), "masks": RoIMask(SPEC, LABELS, levels=("p3", "p4", "p5"), convs=(WIDTH,), hidden=WIDTH)}
    model = MultiTaskModel(Levels(SPEC), None, heads)
    batch = batch_of(OBJECTS, NOTHING, heads=("boxes", "masks"))
    losses, outputs = model.losses(batch)
    assert losses["masks"]["mask"] > 0
    samples = outputs["boxes"].samples([OBJECTS, NOTHING])
    assert torch.equal(samples[0].boxes, OBJECTS.boxes)  # nothing is found yet, so only the objects
    assert samples[0].matched.tolist() == [0, 1, 2]
    assert torch.equal(samples[0].labels, OBJECTS.labels)
    assert not len(samples[1].boxes)

    heads["boxes"].score = 0.0
    with torch.no_grad():
        found = model.predict(batch)
    assert len(found["masks"][0]) == len(found["boxes"][0]) == 100
    output = output_of(model, batch)
    sample = output.samples([OBJECTS, NOTHING])[0]
    assert len(sample.boxes) == 103
    on = sample.matched >= 0
    assert torch.equal(on, box_iou(sample.boxes, OBJECTS.boxes).amax(1) >= 0.5)
