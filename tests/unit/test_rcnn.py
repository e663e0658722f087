"""The R-CNN heads, against the rules they promise to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from tests.unit.backbones import Levels
from tests.unit.rcnn_objects import BIG, HIDDEN, LABELS, SPEC, WIDTH, instances
from visionkit.errors import UserError
from visionkit.layers.boxes import IGNORED, OBJECTLESS, decode, encode, match, sample
from visionkit.layers.roi import RegionPool
from visionkit.model import MultiTaskModel
from visionkit.types import Features, FeatureSpec, ImageInfo, InstanceMasks, InstanceTarget, LabelSet, Level, MixedBatch
from visionkit_rcnn.rcnn import RCNN
from visionkit_rcnn.roi_keypoint import RoIKeypoint, cells_of, peaks
from visionkit_rcnn.roi_mask import RoIMask


def small(labels: LabelSet = LABELS, **options: Any) -> dict[str, Any]:
    return {
        "boxes": RCNN(SPEC, labels, fcs=(HIDDEN,), detections=20, score=0.0, **options),
        "masks": RoIMask(SPEC, labels, convs=(WIDTH,), hidden=WIDTH),
        "keypoints": RoIKeypoint(SPEC, labels, convs=(WIDTH,)),
    }


def make_batch(*targets: InstanceTarget | None, heads: Sequence[str] = ("boxes", "masks", "keypoints")) -> MixedBatch:
    info = tuple(ImageInfo(i, "", (96, 128), (96, 128)) for i in range(len(targets)))
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(len(targets), 3, 96, 128, generator=generator)
    return MixedBatch(images, info, {head: list(targets) for head in heads})


OBJECTS = instances([[4, 8, 60, 70], [50, 20, 122, 90]], [1, 4])


def total(losses: dict[str, dict[str, Tensor]]) -> Tensor:
    return torch.stack([loss for of_head in losses.values() for loss in of_head.values()]).sum()


def test_all_losses_reach_all_parameters_and_the_features() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    losses, _ = model.losses(make_batch(OBJECTS, OBJECTS))
    for name, head in model.heads.items():
        assert tuple(losses[name]) == head.loss_names
        assert all(loss.ndim == 0 and loss > 0 for loss in losses[name].values())
    total(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_with_nothing_on_them(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    empty = InstanceTarget.empty((96, 128), 3, masks=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses, _ = model.losses(make_batch(empty, empty))
    assert losses["boxes"]["rpn_objectness"] > 0
    assert losses["boxes"]["box_class"] > 0
    for head, name in (("boxes", "rpn_box"), ("boxes", "box_delta"), ("masks", "mask"), ("keypoints", "keypoint")):
        assert losses[head][name] == 0
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_objects_without_mask_or_keypoints_do_not_train_those_branches() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    bare = instances(OBJECTS.boxes.tolist(), OBJECTS.labels.tolist())
    assert bare.masks is not None
    assert bare.keypoints is not None
    rles = bare.masks.to_rles()
    bare.masks, bare.keypoints[1, :, 2] = InstanceMasks.from_rles([rles[0], None], bare.masks.size), 0
    alone = bare.select(torch.tensor([0]))
    model.heads["boxes"].choose = lambda rpn, targets: [torch.cat((OBJECTS.boxes, OBJECTS.boxes + 2))]  # type: ignore
    both, _ = model.losses(make_batch(bare))
    model.heads["boxes"].choose = lambda rpn, targets: [torch.cat((alone.boxes, alone.boxes + 2))]  # type: ignore
    one, _ = model.losses(make_batch(alone))
    torch.testing.assert_close(both["masks"], one["masks"])
    torch.testing.assert_close(both["keypoints"], one["keypoints"])


def test_crowds_are_neither_object_nor_background() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 70, 70], [0, 0, 100, 100.0]])
    objects = torch.tensor([[0, 0, 50, 50], [20, 20, 30, 30.0]])
    crowd = torch.tensor([True, False])
    matched = match(boxes, objects, crowd, low=0.3, high=0.7, best_of_each=True)
    assert matched.tolist() == [IGNORED, 1, OBJECTLESS, OBJECTLESS]
    positive, negative = sample(matched, 10, 0.5)
    assert positive.tolist() == [1]
    assert sorted(negative.tolist()) == [2, 3]

    everywhere = InstanceTarget(
        torch.tensor([[0, 0, 128, 96.0]]), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool),
        torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1, 96, 128, dtype=torch.uint8),
        torch.ones(1, 3, 3),
    )  # fmt: skip
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    losses, outputs = model.losses(make_batch(everywhere))
    assert [len(s.boxes) for s in outputs["boxes"].samples([everywhere])] == [0]
    assert losses["boxes"]["box_class"] == 0
    assert losses["masks"]["mask"] == 0
    assert total(losses).isfinite()


def test_best_anchor_learns_even_from_an_object_that_fits_badly() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 12, 10], [50, 50, 60, 60.0]])
    matched = match(
        boxes, torch.tensor([[8, 0, 30, 10.0]]), torch.tensor([False]), low=0.3, high=0.7, best_of_each=True
    )
    assert matched.tolist() == [OBJECTLESS, 0, OBJECTLESS]


def test_box_code_is_inverted_and_limited() -> None:
    torch.manual_seed(0)
    corner = torch.rand(2, 50, 2) * 90
    boxes, anchors = torch.cat((corner, corner + 1 + torch.rand(2, 50, 2) * 50), -1)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(decode(encode(boxes, anchors, weights), anchors, weights), boxes, atol=1e-3, rtol=0)
    huge = decode(torch.full((1, 4), 100.0), torch.tensor([[0, 0, 16, 16.0]]))
    assert torch.isfinite(huge).all()
    assert huge[0, 2] - huge[0, 0] == pytest.approx(1000)


def test_samples_are_the_same_for_every_head_and_for_every_selection_of_images() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small(samples=16))
    targets = [OBJECTS, instances([[30, 30, 90, 80]], [2]), InstanceTarget.empty((96, 128), 3, masks=True)]
    batch = make_batch(*targets)
    everything = {name: [0, 1, 2] for name in model.order}
    regions = model.run_heads(model.branches(model.features(batch.images)), batch, everything)["boxes"]

    two = regions.rows([0, 2], 3).samples([targets[0], targets[2]])
    first = regions.samples(targets)
    again = regions.rows([1], 3).samples([targets[1]])
    assert torch.equal(two[0].boxes, first[0].boxes)
    assert torch.equal(two[1].boxes, first[2].boxes)
    assert torch.equal(again[0].boxes, first[1].boxes)
    assert torch.equal(again[0].matched, first[1].matched)
    assert len(first[0].boxes) == 16
    assert (first[0].matched >= 0).sum() <= 4
    for found, target in zip(first, targets):
        positive = found.positives()
        assert torch.equal(target.labels[positive.matched], positive.labels)
        if len(positive.boxes):
            assert box_iou(positive.boxes, target.boxes).amax(1).min() >= 0.5
    assert (first[2].matched == -1).all()

    whole = model.run_heads(model.branches(model.features(batch.images)), batch, everything)["boxes"].detections()
    part = regions.rows([2], 3).detections() + regions.rows([0, 1], 3).detections()
    for a, b in zip(whole, [part[1], part[2], part[0]]):
        torch.testing.assert_close(a.boxes, b.boxes, atol=1e-4, rtol=1e-5)


def test_training_mode_changes_nothing() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    batch = make_batch(OBJECTS)
    seen = []
    for mode in (True, False):
        torch.manual_seed(5)
        losses, _ = model.train(mode).losses(batch)
        seen.append((losses, model.predict(batch)))
    torch.testing.assert_close(seen[0][0], seen[1][0], rtol=0, atol=0)
    for head in ("boxes", "masks", "keypoints"):
        assert torch.equal(seen[0][1][head][0].boxes, seen[1][1][head][0].boxes)


def test_two_detectors_on_one_backbone_with_images_labelled_for_one_each() -> None:
    torch.manual_seed(0)
    others = LabelSet(("x", "y"))
    heads = {**small(), "cells": RCNN(SPEC, others, fcs=(HIDDEN,), class_agnostic=True, convs=(WIDTH,))}
    reads = {"masks": {"regions": "boxes"}, "keypoints": {"regions": "boxes"}}
    model = MultiTaskModel(Levels(SPEC), None, heads, reads)
    batch = make_batch(OBJECTS, OBJECTS, OBJECTS)
    boxes_only = instances([[10, 10, 50, 60]], [1])
    targets = {
        "boxes": [OBJECTS, None, None],
        "masks": [OBJECTS, OBJECTS, None],  # one image has masks but is not labelled for the head that is read
        "keypoints": [None, None, None],
        "cells": [None, None, boxes_only],
    }
    losses, outputs = model.losses(MixedBatch(batch.images, batch.info, targets))
    assert losses["masks"]["mask"] > 0
    assert losses["keypoints"]["keypoint"] == 0
    assert losses["cells"]["box_delta"] > 0
    assert len(outputs["boxes"].answers) == 2
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters())
    predictions = model.predict(batch, ["cells", "masks"])
    assert set(predictions["cells"][0].labels.tolist()) <= {0, 1}
    assert len(predictions["masks"]) == 3


def test_a_branch_with_fewer_classes_than_its_boxes_takes_only_those() -> None:
    torch.manual_seed(0)
    heads = {"boxes": RCNN(SPEC, LABELS, fcs=(HIDDEN,), score=0.0, detections=60)}
    heads["keypoints"] = RoIKeypoint(SPEC, LabelSet(("e", "b"), keypoints=("one",)), convs=(WIDTH,))  # type: ignore
    model = MultiTaskModel(Levels(SPEC), None, heads)
    found = model.predict(make_batch(None))
    names = [LABELS.names[label] for label in found["boxes"][0].labels]
    mine = [("e", "b")[label] for label in found["keypoints"][0].labels]
    assert mine
    assert mine == [name for name in names if name in "eb"]

    heads["keypoints"] = RoIKeypoint(SPEC, LabelSet(("z",), keypoints=("one",)), convs=(WIDTH,))  # type: ignore
    with pytest.raises(UserError, match="none of the classes z"):
        MultiTaskModel(Levels(SPEC), None, heads).predict(make_batch(None))


def test_detections_stay_inside_the_true_image_and_come_back_in_original_pixels() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small())
    info = ImageInfo(0, "", (40, 50), (80, 100), (2.0, 0, 0, 0, 2.0, 0))  # padded to 96 x 128
    batch = MixedBatch(torch.rand(1, 3, 96, 128), (info,), {})
    found = model.predict(batch)
    boxes = found["boxes"][0].boxes
    assert len(boxes) == 20
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 50
    assert boxes[:, 3].max() <= 40
    assert (found["boxes"][0].scores.diff() <= 0).all()
    for rle in found["masks"][0].rles:
        assert list(rle["size"]) == [40, 50]
    points = found["keypoints"][0].keypoints
    assert points.shape == (20, 3, 3)
    assert (points[..., :2] >= boxes[:, None, :2] - 1).all()
    assert (points[..., :2] <= boxes[:, None, 2:] + 1).all()


def test_an_image_without_detections() -> None:
    torch.manual_seed(0)
    heads = small()
    heads["boxes"].score = 1.1
    found = MultiTaskModel(Levels(SPEC), None, heads).predict(make_batch(None, None))
    assert [len(p) for head in found for p in found[head]] == [0] * 6
    assert found["keypoints"][0].keypoints.shape == (0, 3, 3)


def test_bfloat16_autocast_is_near_float32() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small(rpn_samples=BIG, samples=BIG)).to(
        memory_format=torch.channels_last
    )
    batch = make_batch(OBJECTS, OBJECTS)
    exact, _ = model.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model.losses(batch)
        model.predict(batch)
    for head, losses in exact.items():
        for name, loss in losses.items():
            assert rough[head][name].dtype == torch.float32
            torch.testing.assert_close(rough[head][name], loss, rtol=0.1, atol=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    torch.manual_seed(0)
    model = MultiTaskModel(Levels(SPEC), None, small(rpn_samples=BIG, samples=BIG))
    batch = make_batch(OBJECTS, OBJECTS)
    on_cpu, _ = model.losses(batch)
    predicted = model.predict(batch)
    model.cuda()
    on_cuda, _ = model.losses(batch.to("cuda"))
    total(on_cuda).backward()
    for head, losses in on_cpu.items():
        for name, loss in losses.items():
            torch.testing.assert_close(on_cuda[head][name].cpu(), loss, rtol=2e-3, atol=1e-4)
    again = model.predict(batch.to("cuda"))
    torch.testing.assert_close(again["boxes"][0].scores.cpu(), predicted["boxes"][0].scores, rtol=1e-2, atol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        assert total(model.losses(batch.to("cuda"))[0]).isfinite()


def test_parameter_counts_of_the_papers_heads() -> None:
    spec = FeatureSpec({f"p{k}": Level(256, 2**k) for k in range(2, 7)})
    with torch.device("meta"):
        head = RCNN(spec, LabelSet(tuple(map(str, range(90)))))
        mask = RoIMask(spec, LabelSet(tuple(map(str, range(80)))))
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(head.rpn) == 593_935
    assert count(head.branch.fc) == 13_895_680
    assert count(mask.conv) == 2_360_320


@pytest.mark.parametrize(("side", "level"), [(56, 2), (112, 3), (224, 4), (448, 5), (8, 2), (2000, 5), (223.9, 3)])
def test_boxes_are_read_from_the_level_of_their_size(side: float, level: int) -> None:
    pool = RegionPool(SPEC, ("p2", "p3", "p4", "p5"), 7)
    assert pool.level_of(torch.tensor([[3, 5, 3 + side, 5 + side]])).item() == level - 2


@pytest.mark.parametrize(("aligned", "value"), [(True, 3.5), (False, 4.0)])
def test_half_pixel_of_roi_align(aligned: bool, value: float) -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pool = RegionPool(FeatureSpec({"p0": Level(1, 1)}), ("p0",), 1, aligned=aligned)
    assert pool({"p0": ramp}, [torch.tensor([[2, 2, 6, 6.0]])]).item() == pytest.approx(value)


def test_heads_refuse_what_cannot_work() -> None:
    uneven: Features | Any = FeatureSpec({"p2": Level(8, 4), "p3": Level(16, 8), "p5": Level(8, 32)})
    with pytest.raises(ValueError, match="equally many channels"):
        RCNN(uneven, LABELS, levels=("p2", "p3"), anchor_sizes=((8,), (16,)), pool_levels=("p2",))
    with pytest.raises(ValueError, match="must double"):
        RoIMask(uneven, LABELS, levels=("p2", "p5"))
    with pytest.raises(ValueError, match="anchor_sizes"):
        RCNN(SPEC, LABELS, anchor_sizes=((8,), (16,)))
    with pytest.raises(ValueError, match="must name keypoints"):
        RoIKeypoint(SPEC, LabelSet(("thing",)))


def test_keypoint_cells_and_peaks_are_inverse() -> None:
    boxes = torch.tensor([[10, 20, 66, 76], [5, 5, 61, 117.0]])
    keypoints = torch.tensor(
        [[[10, 20, 2], [66, 76, 1], [30.2, 40.7, 2]], [[70, 10, 2], [20, 30, 0], [33.5, 60.5, 2.0]]]
    )
    cells = cells_of(keypoints, boxes, 56)
    assert cells.tolist() == [[0, 56 * 56 - 1, 20 * 56 + 20], [-1, -1, 27 * 56 + 28]]
    heatmaps = torch.zeros(2, 3, 56 * 56).scatter_(2, cells.clamp(min=0)[..., None], 5.0).view(2, 3, 56, 56)
    points, scores = peaks(heatmaps, boxes)
    assert (points[0, 2] - keypoints[0, 2, :2]).abs().max() <= 0.5
    assert (points[1, 2] - keypoints[1, 2, :2]).abs().max() <= 2
    assert (scores[0, 2] - 5).abs() < 1e-4
