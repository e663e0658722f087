"""CornerNet and CenterNet's triplets: pooling, pairing, losses and decoding, against the authors' figures and loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.layers.corner_pool import Side, centre_pool, corner_pool
from visionkit.types import Batch, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level
from visionkit_points.centernet_triplet import CenterNetTriplet, confirm
from visionkit_points.cornernet import CornerNet
from visionkit_points.corners import decode_pairs, decode_points, offset_sum, point_losses, points_of, pull_push

SPEC = FeatureSpec({"stack1": Level(8, 4), "stack2": Level(8, 4)})
LABELS = LabelSet(("a", "b"))
SIDE = 96
SIDES: tuple[Side, ...] = ("top", "bottom", "left", "right")
BOTH = {"tl": 6.0, "br": 6.0}


def arrays_of(folder: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "data" / folder / "io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def cornernet() -> dict[str, Tensor]:
    return arrays_of("cornernet_decode")


@pytest.fixture(scope="module")
def triplet() -> dict[str, Tensor]:
    return arrays_of("centernet_triplet_decode")


def target_of(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> InstanceTarget:
    n = len(boxes)
    return InstanceTarget(
        boxes=torch.tensor(boxes).view(n, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        crowd=torch.tensor(crowd or [False] * n, dtype=torch.bool),
        areas=torch.ones(n),
        ids=torch.arange(n),
    )


TWO = target_of([[8.0, 13.0, 41.0, 50.0], [30.5, 33.0, 90.0, 70.0]], [0, 1])


def batch_of(*targets: InstanceTarget) -> Batch[InstanceTarget]:
    info = tuple(ImageInfo(i, "", (SIDE, SIDE), (SIDE, SIDE)) for i in range(len(targets)))
    return Batch(torch.zeros(len(targets), 3, SIDE, SIDE), info, targets)


def features_of(batch: Batch) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(len(batch), 8, SIDE // 4, SIDE // 4, generator=random) for name in SPEC}


# -- pooling


def test_the_example_of_the_paper() -> None:
    line = torch.tensor([0.0, 2.0, 1.0, 3.0, 0.0])
    assert corner_pool(line.view(1, 1, 1, 5), "left").flatten().tolist() == [3, 3, 3, 3, 0]
    assert corner_pool(line.view(1, 1, 5, 1), "top").flatten().tolist() == [3, 3, 3, 3, 0]
    assert corner_pool(line.view(1, 1, 1, 5), "right").flatten().tolist() == [0, 2, 2, 3, 3]


@pytest.mark.parametrize("side", SIDES)
def test_corner_pooling_is_that_of_the_authors(cornernet: dict[str, Tensor], side: Side) -> None:
    assert torch.equal(corner_pool(cornernet["pool_in"], side), cornernet[f"pool_{side}"])


@pytest.mark.parametrize("side", SIDES)
def test_corner_pooling_has_the_gradient_of_a_loop(side: Side) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 6, generator=random, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 5, 6, generator=random, dtype=torch.float64)
    dim = 2 if side in ("top", "bottom") else 3
    n = x.shape[dim]
    parts = [
        x.narrow(dim, i, n - i).amax(dim) if side in ("top", "left") else x.narrow(dim, 0, i + 1).amax(dim)
        for i in range(n)
    ]
    slow = torch.stack(parts, dim)
    pooled = corner_pool(x, side)
    assert torch.equal(pooled, slow)
    (own,) = torch.autograd.grad((pooled * weights).sum(), x)
    (want,) = torch.autograd.grad((slow * weights).sum(), x)
    torch.testing.assert_close(own, want)
    assert torch.autograd.gradcheck(lambda values: corner_pool(values, side), x[:1, :1])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 7), (33, 16)])
def test_corner_pooling_is_the_same_with_and_without_a_gradient(side: Side, size: tuple[int, int]) -> None:
    x = torch.randint(0, 9, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()  # with ties
    before = x.clone()
    for laid_out in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(corner_pool(laid_out, side), corner_pool(x.clone().requires_grad_(), side).detach())
    assert torch.equal(x, before)


def test_centre_pooling_is_that_of_the_authors(triplet: dict[str, Tensor]) -> None:
    torch.testing.assert_close(centre_pool(triplet["pool_in"], triplet["pool_in"]), triplet["center_pool"])


# -- pairs


def rows_of(maps: dict[str, Tensor], count: int, **options: float) -> Tensor:
    pairs = decode_pairs(maps, count, **options)
    rows = torch.cat((pairs.boxes, pairs.scores[..., None], pairs.labels[..., None]), 2)[0]
    return rows[rows[:, 4] >= 0]


def maps_of(arrays: dict[str, Tensor], *, offsets: bool = True) -> dict[str, Tensor]:
    names = {"heat": "heat", "tag": "tag"} | ({"offset": "regr"} if offsets else {})
    return {f"{at}_{ours}": arrays[f"{at}_{theirs}"] for at in ("tl", "br") for ours, theirs in names.items()}


def same_rows(own: Tensor, want: Tensor) -> None:
    """The same rows, in whatever order equal scores have."""
    assert own.shape == want.shape
    assert float((own[:, None] - want).abs().amax(2).amin(0).max()) < 1e-3
    torch.testing.assert_close(own[:, 4], want[:, 4], rtol=0, atol=1e-5)


def test_pairs_are_those_of_the_authors(cornernet: dict[str, Tensor], triplet: dict[str, Tensor]) -> None:
    columns = [0, 1, 2, 3, 4, 7]
    same_rows(rows_of(maps_of(cornernet), 40), cornernet["dets"][:, columns])
    plain = rows_of(maps_of(cornernet, offsets=False), 40, peak=1, distance=0.2)
    same_rows(plain, cornernet["dets_noregr_k1_t02"][:, columns])
    same_rows(rows_of(maps_of(triplet), 45), triplet["dets"][:, columns])


def test_centres_are_those_of_the_authors(triplet: dict[str, Tensor]) -> None:
    points, scores, labels, _ = decode_points(
        {"ct_heat": triplet["ct_heat"], "ct_offset": triplet["ct_regr"]}, "ct", 45, 3
    )
    rows = torch.cat((points, labels[..., None], scores[..., None]), 2)[0]
    assert float((rows[:, None] - triplet["centers"]).abs().amax(2).amin(0).max()) < 1e-3


def test_boxes_come_back_from_their_own_corners() -> None:
    aim = points_of([TWO], 4, (2, 24, 24), 0.3, "corrected", BOTH)
    maps = {}
    for at, own in aim.points.items():
        offset, tag = torch.zeros(1, 2, 24 * 24), torch.zeros(1, 1, 24 * 24)
        offset[0, :, own.cells[0]] = own.offsets[0].T
        tag[0, 0, own.cells[0]] = torch.tensor([-3.0, 3.0])
        maps |= {f"{at}_heat": own.heat.logit(eps=1e-6), f"{at}_offset": offset.view(1, 2, 24, 24)}
        maps[f"{at}_tag"] = tag.view(1, 1, 24, 24)
    pairs = decode_pairs(maps, 2)
    order = pairs.labels[0, :2].argsort()
    torch.testing.assert_close(pairs.boxes[0, order] * 4, TWO.boxes)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, 1),
        ({"tag": 0.51}, 0),
        ({"label": 1}, 0),
        ({"cell": (1, 2)}, 0),  # above the top left corner
        ({"cell": (5, 2)}, 0),  # left of it
    ],
)
def test_what_is_no_pair(change: dict[str, object], found: int) -> None:
    maps = {f"{at}_{what}": torch.zeros(1, n, 8, 8) for at in BOTH for what, n in (("heat", 2), ("tag", 1))}
    for at in BOTH:
        maps[f"{at}_heat"] -= 20
    maps["tl_heat"][0, 0, 3, 3] = 4.0
    y, x = change.get("cell", (6, 7))
    maps["br_heat"][0, change.get("label", 0), y, x] = 4.0
    maps["br_tag"] += float(change.get("tag", 0.5))
    scores = decode_pairs(maps, 1).scores
    assert int((scores > 0.9).sum()) == found


# -- losses


def test_offsets_cost_what_they_cost_the_authors(cornernet: dict[str, Tensor]) -> None:
    real = cornernet["ae_mask"]
    loss = offset_sum(cornernet["regr_pred"], cornernet["regr_gt"], real) / real.sum()
    assert float(loss) == pytest.approx(float(cornernet["regr_loss"]), rel=1e-3)


def test_corners_of_an_object_are_pulled_together_as_the_authors_do(cornernet: dict[str, Tensor]) -> None:
    pull, _ = pull_push(cornernet["ae_tag0"][..., 0], cornernet["ae_tag1"][..., 0], cornernet["ae_mask"])
    assert float(pull.sum()) == pytest.approx(float(cornernet["ae_pull"]), rel=1e-3)


def test_different_objects_are_pushed_apart(cornernet: dict[str, Tensor]) -> None:
    first, second, real = cornernet["ae_tag0"][..., 0], cornernet["ae_tag1"][..., 0], cornernet["ae_mask"]
    _, push = pull_push(first, second, real)
    for row in range(len(real)):
        means = ((first + second) / 2)[row][real[row]].tolist()
        pairs = [max(0.0, 1 - abs(a - b)) for i, a in enumerate(means) for j, b in enumerate(means) if i != j]
        assert float(push[row]) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert (push > 0.1).all()  # the authors' own is 0 with these masks
    assert float(cornernet["ae_push"]) == 0


def test_one_object_is_pushed_by_nothing() -> None:
    pull, push = pull_push(
        torch.tensor([[1.0, 5.0], [0.0, 0.0]]), torch.zeros(2, 2), torch.tensor([[1, 0], [0, 0]]) > 0
    )
    assert pull.tolist() == [0.5, 0]
    assert push.tolist() == [0, 0]


def test_gaussians_reach_as_far_as_boxes_still_overlap() -> None:
    aim = points_of([TWO], 4, (2, 24, 24), 0.3, "corrected", {**BOTH, "ct": 5.0})
    assert aim.points["tl"].heat[0, 0, 3, 2] == aim.points["br"].heat[0, 0, 12, 10] == 1
    torch.testing.assert_close(aim.points["tl"].offsets[0], torch.tensor([[0.0, 0.25], [0.625, 0.25]]))
    row = aim.points["tl"].heat[0, 0, 3]
    assert int((row > 0).sum()) == 5  # the radius is 2; the map begins at column 0
    wider, narrow = aim.points["ct"].heat[0, 0, 7, 7], row[3]
    assert wider > narrow


@pytest.mark.parametrize(
    ("head", "kinds"), [(CornerNet(SPEC, LABELS, hidden=4), 2), (CenterNetTriplet(SPEC, LABELS, hidden=4), 3)]
)
def test_every_stack_and_every_kind_of_point_is_supervised(head: CornerNet | CenterNetTriplet, kinds: int) -> None:
    batch = batch_of(TWO, target_of([], []))
    features = {name: value.requires_grad_() for name, value in features_of(batch).items()}
    output = head.eval()(features, batch, {})
    losses = head.losses(output, batch)
    assert set(losses) == set(head.loss_names)
    assert int(losses["heat"].count) == 2
    sum(loss.value() for loss in losses.values()).backward()
    assert all(features[name].grad.abs().sum() > 0 for name in SPEC)
    modules = [head.top_left, head.bottom_right] + ([head.centre] if kinds == 3 else [])
    for stacks in modules:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for s in stacks for p in s.parameters() if p.ndim == 4)


@pytest.mark.parametrize("kind", [CornerNet, CenterNetTriplet])
def test_the_push_of_a_head_is_really_there(kind: type[CornerNet] | type[CenterNetTriplet]) -> None:
    """A new head says nearly the same embedding everywhere, so two objects cost nearly the whole margin."""
    head = kind(SPEC, LABELS, hidden=4).eval()
    losses = head.losses(head(features_of(batch_of(TWO)), batch_of(TWO), {}), batch_of(TWO))
    push = losses["push"].value()
    assert float(push.detach()) == pytest.approx(0.1 * 1.0, abs=0.02)
    push.backward()
    assert head.top_left[0].maps["tag"][2].weight.grad.abs().sum() > 0
    alone = head.losses(head(features_of(batch_of(TWO)), batch_of(TWO), {}), batch_of(TWO.select(torch.tensor([0]))))
    assert float(alone["push"].value().detach()) == 0


@pytest.mark.parametrize("kind", [CornerNet, CenterNetTriplet])
def test_heatmaps_start_rare(kind: type[CornerNet] | type[CenterNetTriplet]) -> None:
    stacks = kind(SPEC, LABELS, hidden=4).eval()(features_of(batch_of(TWO)), batch_of(TWO), {}).stacks
    heat = [values for maps in stacks for name, values in maps.items() if name.endswith("_heat")]
    assert len(heat) == 2 * (2 if kind is CornerNet else 3)
    for values in heat:
        assert float(values.detach().mean()) == pytest.approx(-2.19, abs=0.02)


def test_losses_of_a_stack_are_sums_over_kinds_of_points() -> None:
    batch = batch_of(TWO)
    head = CornerNet(SPEC, LABELS, hidden=4).eval()
    maps = head(features_of(batch), batch, {}).stacks[0]
    both = point_losses(maps, points_of([TWO], 4, (2, 24, 24), 0.3, "corrected", BOTH))
    again = {**maps, "ct_heat": maps["tl_heat"], "ct_offset": maps["tl_offset"]}
    aim = points_of([TWO], 4, (2, 24, 24), 0.3, "corrected", {**BOTH, "ct": 6.0})
    three = point_losses(again, aim)
    assert three["heat"].total > both["heat"].total
    assert torch.equal(three["pull"].total, both["pull"].total)


def test_crowds_are_neither_objects_nor_background() -> None:
    crowd = target_of([[0.0, 0.0, 40.0, 40.0]], [1], [True])
    aim = points_of([crowd], 4, (2, 24, 24), 0.3, "corrected", BOTH)
    assert not aim.real.any()
    assert not aim.counted[0, 0, :10, :10].any()
    assert aim.counted[0, 0, 10:].all()


# -- centres that confirm


def test_confirmed_pairs_are_those_of_the_authors(triplet: dict[str, Tensor]) -> None:
    dets, centres = triplet["scaled_dets"], triplet["scaled_centers"]
    scores = confirm(
        dets[None, :, :4], dets[None, :, 4], dets[None, :, 7], centres[None, :, :2], centres[None, :, 3],
        centres[None, :, 2],
    )[0]  # fmt: skip
    kept = torch.cat((dets[:, :4], scores[:, None], dets[:, 7:]), 1)[scores >= 0]
    kept = kept[kept[:, 4].argsort(descending=True)]
    same_rows(kept, triplet["refined"][:, [0, 1, 2, 3, 4, 7]])


def confirmed(side: float, x: float) -> float:
    """The new score of a square of this side from 0 on, that a centre at ``x`` (share of the side) may confirm."""
    box, centre = torch.tensor([[[0.0, 0.0, side, side]]]), torch.tensor([[[x * side, 0.5 * side]]])
    label = torch.zeros(1, 1, dtype=torch.int64)
    return float(confirm(box, torch.tensor([[0.6]]), label, centre, torch.tensor([[0.9]]), label))


def test_the_middle_is_a_third_of_small_boxes_and_a_fifth_of_large_ones() -> None:
    assert confirmed(150.0, 0.35) == pytest.approx(0.7)  # (2 * 0.6 + 0.9) / 3
    assert confirmed(150.1, 0.35) == -1
    assert confirmed(150.1, 0.41) == pytest.approx(0.7)
    assert confirmed(150.1, 0.61) == -1
    assert confirmed(90.0, 0.33) == -1


def test_a_centre_of_another_class_confirms_nothing_and_the_best_one_counts() -> None:
    box, middle = torch.tensor([[[0.0, 0.0, 30.0, 30.0]]]), torch.tensor([15.0, 15.0])
    centres, scores = middle.expand(1, 3, 2), torch.tensor([[0.9, 0.6, 0.3]])
    label, others = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[1, 0, 0]])
    assert float(confirm(box, torch.tensor([[0.6]]), label, centres, scores, others)) == pytest.approx(0.6)
    assert float(confirm(box, torch.tensor([[-1.0]]), label, centres, scores, others)) == -1


def test_the_head_finds_what_corners_and_centre_agree_on() -> None:
    head, batch = CenterNetTriplet(SPEC, LABELS, hidden=4, nms=0.0).eval(), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    aim = points_of([TWO], 4, (2, 24, 24), 0.7, "original", {**BOTH, "ct": 5.0})
    with torch.no_grad():
        for at, own in aim.points.items():
            output.stacks[-1][f"{at}_heat"].copy_(own.heat.logit(eps=1e-6))
            output.stacks[-1][f"{at}_offset"].zero_().flatten(2)[0, :, own.cells[0]] = own.offsets[0].T
        output.stacks[-1]["ct_heat"][0, 1] = -20.0  # nobody confirms the second object
        for at in BOTH:
            output.stacks[-1][f"{at}_tag"].zero_()
    found = output.detections()[0]
    sure = found.scores > 0.9
    torch.testing.assert_close(found.boxes[sure], TWO.boxes[:1])
