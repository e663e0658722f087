"""CenterNet's poses: targets, losses and decoding, against the authors' figures and against one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.types import Batch, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level
from visionkit_points.centernet import centres_of
from visionkit_points.centernet_pose import NEARLY, CenterNetPose, decode_poses, joints_of, without

SPEC = FeatureSpec({"p2": Level(8, 4)})
LABELS = LabelSet(("person",), keypoints=("head", "hand"))
SIDE = 96


@pytest.fixture(scope="module")
def reference(repository: Path) -> dict[str, Tensor]:
    with np.load(repository / "tests/data/centernet_decode/io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def target_of(boxes: list[list[float]], keypoints: list[list[list[float]]] | None) -> InstanceTarget:
    n = len(boxes)
    return InstanceTarget(
        boxes=torch.tensor(boxes).view(n, 4),
        labels=torch.zeros(n, dtype=torch.int64),
        crowd=torch.zeros(n, dtype=torch.bool),
        areas=torch.ones(n),
        ids=torch.arange(n),
        keypoints=None if keypoints is None else torch.tensor(keypoints).view(n, 2, 3),
    )


# The second one's hand is not labelled, and the third one has no keypoint at all.
THREE = target_of(
    [[8.0, 12.0, 41.0, 50.0], [30.0, 33.0, 90.0, 70.0], [60.0, 4.0, 80.0, 24.0]],
    [[[10.0, 15.0, 2], [39.0, 41.0, 1]], [[50.0, 60.0, 2], [0.0, 0.0, 0]], [[70.0, 10.0, 0], [70.0, 20.0, 0]]],
)


def batch_of(*targets: InstanceTarget) -> Batch[InstanceTarget]:
    info = tuple(ImageInfo(i, "", (SIDE, SIDE), (SIDE, SIDE)) for i in range(len(targets)))
    return Batch(torch.zeros(len(targets), 3, SIDE, SIDE), info, targets)


def output_of(head: CenterNetPose, batch: Batch) -> tuple[object, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    output = head({"p2": torch.randn(len(batch), 8, SIDE // 4, SIDE // 4, generator=random)}, batch, {})
    for values in output.stacks[0].values():
        values.retain_grad()
    return output, output.stacks[0]


@pytest.mark.parametrize("snaps", [True, False])
def test_decoding_is_that_of_the_authors(reference: dict[str, Tensor], snaps: bool) -> None:
    maps = {"heat": reference["pose_hm"].logit(), "size": reference["wh"], "offset": reference["reg"]}
    maps["joints"] = reference["pose_hps"]
    if snaps:
        maps |= {"joint_heat": reference["pose_hm_hp"].logit(), "joint_offset": reference["pose_hp_offset"]}
    boxes, scores, labels, keypoints = decode_poses(maps, 12)
    points = keypoints[0, :, :, :2].flatten(1)
    rows = torch.cat((boxes[0], scores[0, :, None], points, labels[0, :, None]), 1)
    expected = reference["pose_dets" if snaps else "pose_dets_regress_only"]
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-3)
    assert (keypoints[..., 2] != scores[..., None]).any() == snaps


def test_keypoints_come_back_from_their_own_maps() -> None:
    batch = batch_of(THREE)
    centres, joints = centres_of(batch.targets, 4, (1, 24, 24)), joints_of(batch.targets, 4, (24, 24), 2)
    filled = {"size": centres.sizes, "offset": centres.offsets, "joints": joints.moves.flatten(2)}
    maps = {"heat": centres.heat.logit(eps=1e-6)}
    for name, values in filled.items():
        flat = torch.zeros(1, values.shape[2], 24 * 24)
        flat[0, :, centres.cells[0]] = values[0].T
        maps[name] = flat.view(1, -1, 24, 24)
    boxes, _, _, keypoints = decode_poses(maps, 3)
    order = boxes[0, :, 1].argsort()
    seen = THREE.keypoints[..., 2] > 0
    own = keypoints[0, order][[1, 2, 0]]  # by their upper edges
    torch.testing.assert_close(own[..., :2][seen] * 4, THREE.keypoints[..., :2][seen])


def test_what_is_not_labelled_costs_nothing() -> None:
    head, batch = CenterNetPose(SPEC, LABELS, hidden=8), batch_of(THREE)
    output, maps = output_of(head, batch)
    losses = head.losses(output, batch)
    assert int(losses["joints"].count) == 2 * 3
    assert int(losses["joint_heat"].count) == int(losses["joint_offset"].count) // 2 == 3
    sum(loss.value() for loss in losses.values()).backward()
    grad = maps["joints"].grad[0].unflatten(0, (2, 2)).abs().sum(1)
    assert [sorted(map(tuple, g.nonzero().tolist())) for g in grad] == [[(7, 6), (12, 15)], [(7, 6)]]
    assert maps["joint_offset"].grad[0].abs().sum(0).nonzero().tolist() == [[3, 2], [10, 9], [15, 12]]


def test_without_any_keypoint_an_object_is_neither_object_nor_background() -> None:
    head, batch = CenterNetPose(SPEC, LABELS, hidden=8), batch_of(THREE)
    output, maps = output_of(head, batch)
    losses = head.losses(output, batch)
    assert int(losses["heat"].count) == 2
    assert int(losses["size"].count) == 2 * 2
    losses["heat"].value().backward()
    grad = maps["heat"].grad[0, 0]
    assert abs(float(grad[3, 17])) < 1e-9 < abs(float(grad[20, 20]))


def test_a_known_object_keeps_the_cell_that_it_shares_with_an_unknown_one() -> None:
    twins = target_of([[8.0, 12.0, 41.0, 50.0]] * 2, [[[10.0, 15.0, 2], [39.0, 41.0, 1]], [[0.0, 0.0, 0]] * 2])
    centres = centres_of([twins], 4, (1, 24, 24))
    assert without(centres, torch.tensor([[False, True]])).heat[0, 0, 7, 6] == 1
    assert without(centres, torch.tensor([[True, True]])).heat[0, 0, 7, 6] == pytest.approx(NEARLY)


def test_where_keypoints_are_not_annotated_there_is_nothing_to_learn() -> None:
    head, batch = CenterNetPose(SPEC, LABELS, hidden=8), batch_of(target_of([[8.0, 12.0, 41.0, 50.0]], None))
    output, _ = output_of(head, batch)
    losses = head.losses(output, batch)
    assert [int(losses[name].count) for name in ("heat", "size", "joints", "joint_offset")] == [0, 0, 0, 0]


def test_predictions_have_keypoints_in_original_coordinates() -> None:
    head = CenterNetPose(SPEC, LABELS, hidden=8, detections=5)
    info = (ImageInfo(0, "", (192, 192), (SIDE, SIDE), (0.5, 0, 0, 0, 0.5, 0)),)
    batch = Batch(torch.zeros(1, 3, SIDE, SIDE), info)
    output, maps = output_of(head, batch)
    with torch.no_grad():
        maps["size"].fill_(6.0)
    (found,) = output.detections()
    (prediction,) = head.predict(output, batch)
    assert prediction.keypoints.shape == (5, 2, 3)
    torch.testing.assert_close(prediction.keypoints[..., :2], found.keypoints[..., :2] * 2)


def test_labels_without_keypoints_are_refused() -> None:
    with pytest.raises(UserError, match="must name keypoints"):
        CenterNetPose(SPEC, LabelSet(("person",)))
