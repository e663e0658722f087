"""CenterNet: targets, losses and decoding, against the authors' figures and against one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.types import Batch, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level
from visionkit_points.centernet import CenterNet, centres_of, decode_centres

SPEC = FeatureSpec({"p2": Level(8, 4), "stack1": Level(8, 4), "stack2": Level(8, 4), "p3": Level(8, 8)})
LABELS = LabelSet(("a", "b", "c"))
SIDE = 96


@pytest.fixture(scope="module")
def reference(repository: Path) -> dict[str, Tensor]:
    with np.load(repository / "tests/data/centernet_decode/io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def target_of(boxes: list[list[float]], labels: list[int], crowd: list[bool] | None = None) -> InstanceTarget:
    n = len(boxes)
    return InstanceTarget(
        boxes=torch.tensor(boxes).view(n, 4),
        labels=torch.tensor(labels, dtype=torch.int64),
        crowd=torch.tensor(crowd or [False] * n, dtype=torch.bool),
        areas=torch.ones(n),
        ids=torch.arange(n),
    )


def batch_of(*targets: InstanceTarget) -> Batch[InstanceTarget]:
    info = tuple(ImageInfo(i, "", (SIDE, SIDE), (SIDE, SIDE)) for i in range(len(targets)))
    return Batch(torch.zeros(len(targets), 3, SIDE, SIDE), info, targets)


def features_of(batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(len(batch), level.channels, SIDE // level.stride, SIDE // level.stride, generator=random)
        for name, level in SPEC.items()
    }


TWO = target_of([[8.0, 12.0, 41.0, 50.0], [30.0, 33.0, 90.0, 70.0]], [0, 2])


@pytest.mark.parametrize("variant", ["ct_dets", "ct_dets_noreg", "ct_dets_perclass"])
def test_decoding_is_that_of_the_authors(reference: dict[str, Tensor], variant: str) -> None:
    by_class = variant.endswith("perclass")
    maps = {"heat": reference["hm"].logit(), "size": reference["wh_per_class" if by_class else "wh"]}
    if not variant.endswith("noreg"):
        maps["offset"] = reference["reg"]
    boxes, scores, labels = decode_centres(maps, 20, class_sizes=by_class)
    rows = torch.cat((boxes, scores[..., None], labels[..., None]), 2)[0]
    expected = reference[variant]
    torch.testing.assert_close(rows[2:], expected[2:], rtol=1e-4, atol=1e-4)
    # The first two are equally high, so either may come first.
    first = {tuple(row.mul(1e3).round().tolist()) for row in expected[:2]}
    assert {tuple(row.mul(1e3).round().tolist()) for row in rows[:2]} == first


def test_boxes_come_back_from_their_own_maps() -> None:
    aim = centres_of([TWO], 4, (3, 24, 24))
    size, offset = torch.zeros(1, 2, 24 * 24), torch.zeros(1, 2, 24 * 24)
    size[0, :, aim.cells[0]], offset[0, :, aim.cells[0]] = aim.sizes[0].T, aim.offsets[0].T
    maps = {"heat": aim.heat.logit(eps=1e-6), "size": size.view(1, 2, 24, 24), "offset": offset.view(1, 2, 24, 24)}
    boxes, _, labels = decode_centres(maps, 2)
    order = labels[0].argsort()
    torch.testing.assert_close(boxes[0, order] * 4, TWO.boxes)
    assert labels[0, order].tolist() == [0, 2]


def test_every_object_has_one_positive_cell_and_a_radius_of_its_size() -> None:
    aim = centres_of([TWO, target_of([], [])], 4, (3, 24, 24))
    assert (aim.heat == 1).sum((2, 3)).tolist() == [[1, 0, 1], [0, 0, 0]]
    assert aim.real.tolist() == [[True, True], [False, False]]
    assert aim.heat[0, 0, 7, 6] == 1  # the centre (24.5, 31) / 4 is (6.125, 7.75)
    torch.testing.assert_close(aim.offsets[0, 0], torch.tensor([0.125, 0.75]))
    torch.testing.assert_close(aim.sizes[0, 0], torch.tensor([8.25, 9.5]))


def test_sizes_and_offsets_are_learnt_at_centres_alone() -> None:
    head, batch = CenterNet(SPEC, LABELS, hidden=8), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    maps = output.stacks[0]
    for values in maps.values():
        values.retain_grad()
    sum(loss.value() for loss in head.losses(output, batch).values()).backward()
    for name in ("size", "offset"):
        rows, columns = maps[name].grad.abs().sum((0, 1)).nonzero().T.tolist()
        assert sorted(zip(rows, columns)) == [(7, 6), (12, 15)]
    assert (maps["heat"].grad != 0).all()


def test_losses_are_means_over_objects_with_the_papers_weights() -> None:
    head, batch = CenterNet(SPEC, LABELS, hidden=8), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    losses = head.losses(output, batch)
    size = output.stacks[0]["size"][0]
    off = (size[:, 7, 6] - torch.tensor([8.25, 9.5])).abs().mean() + (
        size[:, 12, 15] - torch.tensor([15.0, 9.25])
    ).abs().mean()
    assert float(losses["size"].value().detach()) == pytest.approx(0.1 * float(off.detach()) / 2, rel=1e-5)
    assert int(losses["heat"].count) == 2


def test_crowds_are_neither_objects_nor_background() -> None:
    crowd = target_of([[0.0, 0.0, 40.0, 40.0]], [1], [True])
    head, batch = CenterNet(SPEC, LABELS, hidden=8), batch_of(crowd)
    output = head(features_of(batch), batch, {})
    output.stacks[0]["heat"].retain_grad()
    head.losses(output, batch)["heat"].value().backward()
    grad = output.stacks[0]["heat"].grad
    assert not grad[..., :10, :10].any()
    assert grad[..., 10:, :].all()
    assert not centres_of([crowd], 4, (3, 24, 24)).real.any()


def test_every_stack_is_supervised_and_the_last_one_predicts() -> None:
    head, batch = CenterNet(SPEC, LABELS, levels=("stack1", "stack2"), hidden=8), batch_of(TWO)
    features = features_of(batch)
    for value in features.values():
        value.requires_grad_()
    output = head(features, batch, {})
    single = [head._losses(maps, centres_of(batch.targets, 4, (3, 24, 24))) for maps in output.stacks]
    losses = head.losses(output, batch)
    mean = torch.stack([s["offset"].value() for s in single]).mean()
    assert torch.isclose(losses["offset"].value(), mean)
    sum(loss.value() for loss in losses.values()).backward()
    assert all(features[level].grad.abs().sum() > 0 for level in head.levels)
    with torch.no_grad():
        output.stacks[-1]["size"].fill_(8.0)  # nothing is dropped for its size
        _, scores, _ = decode_centres(output.stacks[-1], 100)
    assert output.detections()[0].scores.max() == scores.max()


def test_a_size_for_each_class_learns_at_its_own_class_alone() -> None:
    head, batch = CenterNet(SPEC, LABELS, hidden=8, class_sizes=True), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    output.stacks[0]["size"].retain_grad()
    head.losses(output, batch)["size"].value().backward()
    assert output.stacks[0]["size"].grad.abs().sum((0, 2, 3)).gt(0).tolist() == [True, True, False, False, True, True]


def test_boxes_end_at_the_edge_and_nothing_is_found_in_the_padding() -> None:
    head = CenterNet(SPEC, LABELS, hidden=8)
    batch = Batch(torch.zeros(1, 3, SIDE, SIDE), (ImageInfo(0, "", (60, 70), (60, 70)),))
    output = head(features_of(batch), batch, {})
    output.stacks[0]["size"].fill_(12.0)
    boxes = output.detections()[0].boxes
    assert 0 < len(boxes) < 100
    assert (boxes[:, 2] <= 70).all()
    assert (boxes[:, 3] <= 60).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_detections_can_be_read_by_branches() -> None:
    head, batch = CenterNet(SPEC, LABELS, hidden=8, detections=5), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    (sample,) = output.samples(batch.targets)
    assert torch.equal(sample.boxes[:2], TWO.boxes)
    assert sample.matched[:2].tolist() == [0, 1]
    assert sample.labels[:2].tolist() == [0, 2]


def test_heatmaps_start_rare() -> None:
    head, batch = CenterNet(SPEC, LABELS), batch_of(TWO)
    output = head(features_of(batch), batch, {})
    assert float(output.stacks[0]["heat"].detach().mean()) == pytest.approx(-2.19, abs=0.02)


@pytest.mark.parametrize(("levels", "seen"), [(("p2", "p3"), "p2 4, p3 8"), ((), "none")])
def test_levels_of_several_strides_are_refused(levels: tuple[str, ...], seen: str) -> None:
    with pytest.raises(UserError, match=f"not {seen}"):
        CenterNet(SPEC, LABELS, levels=levels)
