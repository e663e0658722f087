"""The regression head: its losses by definition, the flow of residual log-likelihood, coordinates there and back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace

from tests.unit.backbones import Small
from visionkit.errors import UserError
from visionkit.model import MultiTaskModel
from visionkit.types import Batch, Crop, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level, Mean, MixedBatch
from visionkit_keypoints.crops import CropOutput
from visionkit_keypoints.flow import RealNVP
from visionkit_keypoints.regression import KeypointRegression, residual_likelihood, wing_loss
from visionkit_points.centernet import CenterNet

SPEC = FeatureSpec({"c4": Level(8, 16)})
LABELS = LabelSet(("person",), keypoints=("nose", "left", "right"), swaps=((1, 2),))
SIZE = (64, 48)
POINTS = [[12.0, 16.0, 2.0], [36.0, 48.0, 1.0], [25.0, 50.0, 0.0]]


def batch_of(points: list[list[float]]) -> Batch[InstanceTarget]:
    target = InstanceTarget(
        boxes=torch.tensor([[2.0, 3.0, 42.0, 60.0]]),
        labels=torch.tensor([0]),
        crowd=torch.tensor([False]),
        areas=torch.tensor([100.0]),
        ids=torch.tensor([1]),
        keypoints=torch.tensor([points]),
    )
    return Batch(torch.zeros(1, 3, *SIZE), (ImageInfo(1, "", SIZE, SIZE),), (target,))


def loss_of(name: Any, values: Tensor, points: list[list[float]] = POINTS) -> Tensor:
    loss = KeypointRegression(SPEC, LABELS, levels=("c4",), loss=name).losses(CropOutput((values,)), batch_of(points))
    assert isinstance(loss["coordinates"], Mean)
    return loss["coordinates"].value()


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.1), ("l2", 0.01), ("wing", 25.6 - 10 + 10 * math.log(6))])
def test_losses_are_of_shares_of_the_box_and_of_labelled_keypoints_alone(name: str, expected: float) -> None:
    values = torch.tensor([[[12 / 48 + 0.1, 16 / 64 - 0.1], [36 / 48 - 0.1, 48 / 64 + 0.1], [9.0, 9.0]]])
    values.requires_grad_()

    loss = loss_of(name, values)
    loss.backward()

    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert values.grad is not None
    assert values.grad[0].abs().sum(1).gt(0).tolist() == [True, True, False]


@pytest.mark.parametrize("name", ["l1", "l2", "wing", "rle"])
def test_where_no_keypoint_is_labelled_nothing_is_learnt(name: str) -> None:
    values = torch.rand(1, 3, 4 if name == "rle" else 2, requires_grad=True)
    loss = loss_of(name, values, [[x, y, 0.0] for x, y, _ in POINTS])
    loss.backward()
    assert loss.item() == 0.0
    assert values.grad is not None
    assert float(values.grad.abs().sum()) == 0.0


def test_the_wing_is_continuous_and_steep_for_small_errors() -> None:
    apart = torch.tensor([0.0, 1.0, 9.999999, 10.000001, 20.0], requires_grad=True)
    loss = wing_loss(apart, 10.0, 2.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 10 * math.log(1.5), 17.91760, 17.91760, 27.91760], rel=1e-4)
    assert apart.grad is not None
    assert apart.grad.tolist() == pytest.approx([5.0, 10 / 3, 10 / 12, 1.0, 1.0], rel=1e-4)


def bent() -> RealNVP:
    torch.manual_seed(1)
    flow = RealNVP(hidden=8).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return flow


def test_the_flow_can_be_undone_and_its_volume_is_that_of_its_jacobian() -> None:
    flow = bent()
    points = torch.randn(20, 2, dtype=torch.float64)

    z, log_volume = flow.to_normal(points)

    torch.testing.assert_close(flow.from_normal(z), points)
    for point, expected in zip(points, log_volume):
        jacobian: Any = torch.autograd.functional.jacobian(lambda x: flow.to_normal(x)[0], point)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], expected)


def test_the_density_of_the_flow_sums_to_one() -> None:
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    with torch.no_grad():
        total = bent().log_density(grid).exp().sum() * 0.05**2
    assert float(total) == pytest.approx(1.0, abs=0.01)


def test_residual_likelihood_is_a_laplace_density_times_the_flow() -> None:
    flow = bent()
    error, scale = torch.randn(5, 3, 2, dtype=torch.float64), torch.rand(5, 3, 2, dtype=torch.float64) + 0.1

    found = residual_likelihood(error, scale, flow)

    laplace = -Laplace(torch.zeros_like(scale), scale).log_prob(error)
    expected = laplace + scale.log() - flow.log_density(error / scale)[..., None]
    torch.testing.assert_close(found, expected)


def test_parameters_are_those_of_the_published_heads() -> None:
    persons, spec = LabelSet(("person",), keypoints=tuple(map(str, range(17)))), FeatureSpec({"c5": Level(2048, 32)})
    for name, expected in {"l1": 69_666, "rle": 193_116}.items():
        head = KeypointRegression(spec, persons, loss=name)  # type: ignore[arg-type]
        assert sum(p.numel() for p in head.parameters()) == expected


def test_coordinates_come_back_in_original_pixels() -> None:
    head = KeypointRegression(SPEC, LABELS, levels=("c4",), loss="rle")
    info = ImageInfo(7, "", (300, 400), SIZE, affine=(0.5, 0.0, -10.0, 0.0, 0.5, -20.0),
                     crop=Crop(0, (30.0, 50.0, 90.0, 150.0), "person", 0.5))  # fmt: skip
    values = torch.tensor([[[0.25, 0.5, -20, -20], [0.5, 0.25, 0, 0], [1.0, 1.0, 20, 20]]])

    made = head.predict(CropOutput((values,)), Batch(torch.zeros(1, 3, *SIZE), (info,)))[0]

    assert made.keypoints[0].tolist() == [pytest.approx(row, abs=1e-4) for row in
                                          ([44, 104, 1.0], [68, 72, 0.5], [116, 168, 0.0])]  # fmt: skip
    assert made.boxes.tolist() == [[30.0, 50.0, 90.0, 150.0]]
    assert float(made.scores) == pytest.approx(0.5 * 0.75, rel=1e-4)  # of keypoints above 0.2


def test_the_mean_of_the_features_is_not_one_of_the_padding() -> None:
    head = KeypointRegression(SPEC, LABELS, levels=("c4",))
    level = torch.rand(2, 8, 4, 4)
    level[1] = level[0]
    level[1, :, :, 2:], level[1, :, 3:] = 9.0, 9.0
    level[0, :, :, 2:], level[0, :, 3:] = -9.0, 0.0
    info = tuple(ImageInfo(i, "", (48, 20), (48, 20)) for i in range(2))

    values = head({"c4": level}, Batch(torch.zeros(2, 3, 64, 64), info), {}).made[0]

    torch.testing.assert_close(values[0], values[1])


def test_a_mirror_test_exchanges_left_and_right() -> None:
    head = KeypointRegression(SPEC, LABELS, levels=("c4",), flip_test=True)
    values, seen = torch.rand(1, 3, 2), torch.rand(1, 3, 2)
    joined = head.join_mirrored(CropOutput((values,)), CropOutput((seen,)), batch_of(POINTS)).made[0]
    assert float(joined[0, 1, 0]) == pytest.approx((float(values[0, 1, 0]) + 1 - float(seen[0, 2, 0])) / 2)
    assert float(joined[0, 1, 1]) == pytest.approx((float(values[0, 1, 1]) + float(seen[0, 2, 1])) / 2)


def test_coordinates_in_the_boxes_of_another_head() -> None:
    torch.manual_seed(0)
    head = KeypointRegression(Small.spec, LABELS, levels=("p2", "p3"), loss="rle", padding=1.0, flip_test=True)
    boxes: Any = CenterNet(Small.spec, LabelSet(("person",)), hidden=8, detections=4)
    torch.nn.init.constant_(boxes.maps[0]["size"][-1].bias, 4.0)
    model = MultiTaskModel(Small(), None, {"boxes": boxes, "keypoints": head}, {"keypoints": {"regions": "boxes"}})
    target = batch_of(POINTS).targets[0]
    info = (ImageInfo(1, "", SIZE, SIZE),)
    batch = MixedBatch(torch.rand(1, 3, *SIZE), info, {"boxes": [target], "keypoints": [target]})

    loss = model.losses(batch)[0]["keypoints"]["coordinates"]
    made: Any = model.eval().predict(batch)["keypoints"][0]

    loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    assert made.keypoints.shape == (4, 3, 3)
    middles = (made.boxes[:, :2] + made.boxes[:, 2:]) / 2
    assert float((made.keypoints[..., :2] - middles[:, None]).abs().max()) < 8  # it starts from the middle of the box


def test_several_levels_ask_for_boxes() -> None:
    with pytest.raises(UserError, match=r"reads: \{regions: HEAD\}.*p2, p3"):
        MultiTaskModel(Small(), None, {"keypoints": KeypointRegression(Small.spec, LABELS, levels=("p2", "p3"))})
