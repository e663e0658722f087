"""The heatmap head: losses by definition, coordinates there and back, boxes of another head, the mirror test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.backbones import Small
from visionkit.data.geometry import Geometry
from visionkit.errors import UserError
from visionkit.layers.keypoint_maps import keypoint_maps
from visionkit.model import MultiTaskModel
from visionkit.types import Batch, Crop, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level, Mean, MixedBatch
from visionkit_keypoints.crops import CropOutput
from visionkit_keypoints.heatmap import KeypointHeatmap
from visionkit_keypoints.persons import in_whole_images
from visionkit_points.centernet import CenterNet

SPEC = FeatureSpec({"p2": Level(8, 4), "stack1": Level(3, 4), "stack2": Level(3, 4), "c4": Level(8, 16)})
LABELS = LabelSet(("person",), keypoints=("nose", "left", "right"), swaps=((1, 2),))
SIZE = (64, 48)


def target_of(*keypoints: list[list[float]], side: float = 40.0) -> InstanceTarget:
    """Objects of growing size, with these keypoints."""
    n = len(keypoints)
    boxes = torch.tensor([[2.0, 3.0, 2.0 + side - 10 * (n - 1 - i), 3.0 + side] for i in range(n)]).view(n, 4)
    return InstanceTarget(
        boxes=boxes,
        labels=torch.zeros(n, dtype=torch.int64),
        crowd=torch.zeros(n, dtype=torch.bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        ids=torch.arange(n),
        keypoints=torch.tensor(keypoints).view(n, 3, 3),
    )


def batch_of(*targets: InstanceTarget, size: tuple[int, int] = SIZE) -> Batch[InstanceTarget]:
    info = tuple(ImageInfo(i, "", size, size) for i in range(len(targets)))
    return Batch(torch.zeros(len(targets), 3, *size), info, targets)


def value(loss: Tensor | Mean) -> Tensor:
    return loss.value() if isinstance(loss, Mean) else loss


def moved(tensor: Tensor) -> bool:
    return tensor.grad is not None and float(tensor.grad.abs().sum()) > 0


POINTS = [[10.0, 12.0, 2.0], [30.5, 40.2, 1.0], [25.0, 50.0, 0.0]]


def test_the_loss_is_half_the_mean_squared_error_of_labelled_keypoints_added_up_over_stacks() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("stack1", "stack2"), deconvs=(), last=False, sigma=1.0)
    maps = tuple(torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(i)) for i in range(2))
    batch = batch_of(target_of(POINTS), target_of(POINTS[::-1]))

    loss = value(head.losses(CropOutput(maps), batch)["heatmap"])

    expected = 0.0
    for row, points in enumerate((POINTS, POINTS[::-1])):
        for k, (x, y, seen) in enumerate(points):
            wanted, _ = keypoint_maps(torch.tensor([[[x / 4, y / 4, seen]]]), (16, 12), 1.0)
            for stack in maps:
                expected += 0.5 * float((stack[row, k] - wanted[0, 0]).square().mean()) * (seen > 0) / 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_a_keypoint_that_is_not_labelled_costs_nothing_and_moves_nothing() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("stack1",), deconvs=(), last=False)
    maps = torch.rand(1, 3, 16, 12, requires_grad=True)

    value(head.losses(CropOutput((maps,)), batch_of(target_of(POINTS)))["heatmap"]).backward()

    assert maps.grad is not None
    assert maps.grad[0].abs().amax((1, 2)).gt(0).tolist() == [True, True, False]
    nothing = [[x, y, 0.0] for x, y, _ in POINTS]
    assert value(head.losses(CropOutput((maps,)), batch_of(target_of(nothing)))["heatmap"]).item() == 0.0


def test_every_stack_gets_a_gradient() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("stack1", "stack2"), deconvs=(16,))
    features = {level: torch.rand(1, 3, 16, 12, requires_grad=True) for level in head.levels}
    batch = batch_of(target_of(POINTS))

    value(head.losses(head(features, batch, {}), batch)["heatmap"]).backward()

    for level in head.levels:
        assert moved(features[level])
    assert all(moved(p) for p in head.parameters())


def test_of_several_objects_the_largest_with_labelled_keypoints_is_learnt() -> None:
    small, large = [[10.0, 12.0, 2.0]] * 3, [[20.0, 22.0, 2.0]] * 3
    unlabelled = [[30.0, 30.0, 0.0]] * 3

    learnt = in_whole_images(batch_of(target_of(small, large, unlabelled), target_of()), 3)

    assert learnt.rows.tolist() == [0]
    assert learnt.keypoints[0, 0].tolist() == pytest.approx([20 / 48, 22 / 64, 2.0])


@pytest.mark.parametrize(("decoding", "encoding", "worst"), [("quarter", "nearest", 2.0), ("dark", "unbiased", 0.05)])
def test_perfect_heatmaps_give_the_keypoints_back_in_original_pixels(
    decoding: Any, encoding: Any, worst: float
) -> None:
    head = KeypointHeatmap(
        SPEC, LABELS, levels=("stack1",), deconvs=(), last=False, encoding=encoding, decoding=decoding
    )
    points = torch.tensor([[[30.3, 20.7, 2.0], [21.9, 33.0, 2.0], [28.4, 40.6, 2.0]]])
    maps, _ = keypoint_maps(points * torch.tensor((0.25, 0.25, 1)), (16, 12), 2.0, encoding)
    crop = Crop(3, (80.0, 60.0, 200.0, 220.0), "person", score=0.5)
    info = ImageInfo(7, "", (300, 400), SIZE, affine=(0.0, 0.25, -10.0, -0.25, 0.0, 70.0), crop=crop)  # turned

    made = head.predict(CropOutput((maps,)), Batch(torch.zeros(1, 3, *SIZE), (info,)))[0]

    there = info.points_to_original(points[0, :, :2])
    assert float((made.keypoints[0, :, :2] - there).abs().max()) <= worst * 4
    assert made.boxes.tolist() == [list(crop.box)]
    assert float(made.scores[0]) == pytest.approx(0.5 * float(maps.amax((2, 3)).mean()), rel=1e-5)


def test_nothing_is_found_in_the_padding() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("stack1",), deconvs=(), last=False)
    maps = torch.zeros(1, 3, 16, 12)
    maps[:, :, 15, 11], maps[:, :, 3, 2] = 9.0, 0.5
    batch = Batch(torch.zeros(1, 3, *SIZE), (ImageInfo(1, "", (40, 32), (40, 32)),))

    assert head.predict(CropOutput((maps,)), batch)[0].keypoints[0, :, :2].tolist() == [[10.0, 14.0]] * 3


def test_a_mirror_test_of_what_keeps_left_and_right_apart_changes_nothing() -> None:
    """Channels 1 and 2 of the backbone are made to change places in a mirror, as a network that has learnt would."""

    class Exact(Small):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            mirrored = bool(images[0, 0, 0, 0] < images[0, 0, 0, -1])
            return super().forward(images[:, [0, 2, 1]] if mirrored else images)

    heads = {
        name: KeypointHeatmap(Small.spec, LABELS, levels=("p2",), deconvs=(), last=False, flip_test=flip)
        for name, flip in (("plain", False), ("flipped", True))
    }
    model = MultiTaskModel(Exact(), None, heads)
    images = torch.rand(1, 3, *SIZE)
    images[0, 0, 0, 0], images[0, 0, 0, -1] = 1.0, 0.0
    batch = MixedBatch(images, (ImageInfo(1, "", SIZE, SIZE),), {})

    made = model.predict(batch)

    torch.testing.assert_close(made["plain"][0].keypoints, made["flipped"][0].keypoints)  # type: ignore[attr-defined]


def test_a_mirror_test_is_the_mean_of_both_looks() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("stack1",), deconvs=(), last=False, flip_test=True)
    one, other = torch.rand(1, 3, 16, 12), torch.rand(1, 3, 16, 12)

    joined = head.join_mirrored(CropOutput((one,)), CropOutput((other,)), batch_of(target_of(POINTS)))

    torch.testing.assert_close(joined.made[-1], (one + other[:, [0, 2, 1]].flip(-1)) / 2)


def in_boxes(**options: Any) -> tuple[MultiTaskModel, KeypointHeatmap]:
    torch.manual_seed(0)
    spec = Small.spec
    head = KeypointHeatmap(spec, LABELS, levels=("p2", "p3"), deconvs=(8,), pool_size=7, **options)
    boxes: Any = CenterNet(spec, LabelSet(("person",)), hidden=8, detections=5)
    nn.init.constant_(boxes.maps[0]["size"][-1].bias, 4.0)
    heads = {"boxes": boxes, "keypoints": head}
    return MultiTaskModel(Small(), None, heads, {"keypoints": {"regions": "boxes"}}), head


def test_heatmaps_of_the_boxes_of_another_head_lie_in_their_boxes() -> None:
    model, head = in_boxes(padding=1.0)
    images = torch.rand(2, 3, *SIZE)
    target = target_of(POINTS)
    targets = {name: [target, target] for name in ("boxes", "keypoints")}
    batch = MixedBatch(images, tuple(ImageInfo(i, "", SIZE, SIZE) for i in range(2)), targets)

    losses, _ = model.losses(batch)
    made = model.eval().predict(batch)["keypoints"]

    assert losses["keypoints"]["heatmap"].item() > 0
    losses["keypoints"]["heatmap"].backward()
    assert all(p.grad is not None for p in head.parameters())
    for prediction in made:
        assert len(prediction.boxes) == 5  # type: ignore[attr-defined]
        low, high = prediction.boxes[:, None, :2], prediction.boxes[:, None, 2:]  # type: ignore[attr-defined]
        points = prediction.keypoints[..., :2]  # type: ignore[attr-defined]
        assert bool(((points >= low - 1e-3) & (points <= high + 1e-3)).all())


def test_mirrored_looks_at_boxes_fall_onto_the_same_cells() -> None:
    """A tower of convolutions that are their own mirror images sees the same in both."""
    model, head = in_boxes(flip_test=True)
    for tower in head.towers:
        for layer in tower:
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.weight.data += layer.weight.data.flip(-1)
    last: Any = head.towers[0][-1]
    last.weight.data[2], last.bias.data[2] = last.weight.data[1], last.bias.data[1]  # left and right look alike
    model.eval()
    batch = MixedBatch(torch.rand(1, 3, *SIZE), (ImageInfo(1, "", SIZE, SIZE),), {})

    flipped = model.predict(batch)["keypoints"][0]
    head.mirrors = False
    plain = model.predict(batch)["keypoints"][0]

    torch.testing.assert_close(flipped.scores, plain.scores, rtol=1e-4, atol=1e-6)  # type: ignore[attr-defined]


def test_levels_of_several_strides_ask_for_boxes() -> None:
    head = KeypointHeatmap(Small.spec, LABELS, levels=("p2", "p3"), deconvs=())
    with pytest.raises(UserError, match=r"reads: \{regions: HEAD\}.*p2 4, p3 8"):
        MultiTaskModel(Small(), None, {"keypoints": head})


def test_features_that_are_to_be_heatmaps_must_be_as_many_as_keypoints() -> None:
    head = KeypointHeatmap(SPEC, LABELS, levels=("c4",), deconvs=(), last=False)
    with pytest.raises(UserError, match="8 channels for 3 keypoints"):
        head.losses(CropOutput((torch.zeros(1, 8, 4, 3),)), batch_of(target_of(POINTS)))


def test_labels_without_keypoints_are_refused() -> None:
    with pytest.raises(ValueError, match="must name keypoints"):
        KeypointHeatmap(SPEC, LabelSet(("person",)), levels=("c4",))


def test_left_and_right_change_places_with_their_image() -> None:
    target = target_of(POINTS)
    seen = Geometry((0, 0, SIZE[1], SIZE[0]), SIZE, mirror=True, swaps=LABELS.swaps).target(target)
    assert seen.keypoints[0, 2].tolist() == pytest.approx([SIZE[1] - 30.5, 40.2, 1.0])
    assert replace(target).keypoints is target.keypoints
