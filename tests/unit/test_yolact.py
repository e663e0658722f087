"""YOLACT's parts against the published code's numbers, closed forms, and the rules they promise to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou, nms

from visionkit.layers.boxes import IGNORED, OBJECTLESS, decode, encode
from visionkit.rle import decode as bitmap
from visionkit.types import FeatureSpec, ImageInfo, InstanceMasks, InstanceTarget, LabelSet, Level, Mean, MixedBatch
from visionkit_yolact.fast_nms import cross_class_fast_nms, fast_nms
from visionkit_yolact.losses import class_loss, mask_loss, semantic_loss
from visionkit_yolact.masks import assemble, inside, on_grid, to_original
from visionkit_yolact.priors import assign, cell_size, level_priors, one_prior_each
from visionkit_yolact.yolact import VARIANCES, YOLACT, YOLACTOutput

SPEC = FeatureSpec({f"p{k}": Level(16, 2**k) for k in range(3, 8)})
LABELS = LabelSet(("cat", "dog"))
SIZE = 128


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "data/yolact_decode/io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


# -- against the published code


@pytest.fixture(scope="module")
def found(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Boxes, scores and coefficients of the priors that score above the threshold."""
    boxes = decode(published["loc"][0], box_convert(published["priors"], "cxcywh", "xyxy"), VARIANCES)
    torch.testing.assert_close(boxes, published["decoded"])
    scores = published["conf"][0, :, 1:]
    keep = scores.amax(1) > 0.3
    return {"boxes": boxes[keep], "scores": scores[keep], "coefficients": published["mask"][0][keep]}


@pytest.mark.parametrize(("rule", "suppress"), [("fast", fast_nms), ("cc", cross_class_fast_nms)])
def test_fast_nms_keeps_what_the_published_code_keeps(rule: str, suppress, published, found) -> None:
    index, labels = suppress(found["boxes"], found["scores"], iou=0.5, top_k=15)
    assert torch.equal(labels.int(), published[f"{rule}_classes"])
    torch.testing.assert_close(found["scores"][index, labels], published[f"{rule}_scores"])
    torch.testing.assert_close(found["boxes"][index], published[f"{rule}_boxes"])
    torch.testing.assert_close(found["coefficients"][index], published[f"{rule}_coeffs"])


def test_masks_are_those_of_the_published_code(published: Mapping[str, Tensor]) -> None:
    boxes = published["fast_boxes"] * 24
    prototypes = published["proto"][0].permute(2, 0, 1)
    masks = assemble(prototypes, published["fast_coeffs"]).sigmoid() * inside(boxes, 24, 24)
    torch.testing.assert_close(masks, published["fast_cropped"], atol=1e-6, rtol=0)

    info = ImageInfo(0, "", (70, 90), (24, 24), (24 / 90, 0, 0, 0, 24 / 70, 0))
    bitmaps = np.stack([bitmap(rle) for rle in to_original(masks, boxes, (1, 1), info)]).astype(bool)
    assert (bitmaps == published["post_masks"].numpy()).mean() > 0.9999
    original = info.boxes_to_original(boxes)
    assert ((original.floor() - published["post_boxes"]).abs().amax(1) < 1).float().mean() > 0.95  # theirs are cut


def test_priors_learn_from_the_objects_that_the_published_code_gives_them(published: Mapping[str, Tensor]) -> None:
    priors, objects = box_convert(published["priors"], "cxcywh", "xyxy"), published["gt_boxes"]
    torch.testing.assert_close(
        encode(objects, priors[:5], VARIANCES), published["encoded_first5"], rtol=1e-4, atol=1e-4
    )
    matched = assign(priors, objects, torch.zeros(5, dtype=torch.bool), low=0.4, high=0.5)
    labels = published["match_labels"][matched.clamp(min=0)] + 1
    labels[matched == OBJECTLESS], labels[matched == IGNORED] = 0, -1
    assert torch.equal(labels, published["match_conf"])
    on = matched >= 0
    assert torch.equal(matched[on].int(), published["match_idx"][on])
    aims = encode(objects[matched[on]], priors[on], VARIANCES)
    torch.testing.assert_close(aims, published["match_loc"][on], rtol=1e-4, atol=1e-4)


# -- priors and matching


def test_priors_at_550_pixels() -> None:
    head = YOLACT(SPEC, LABELS, hidden=4, prototypes=2)
    info = ImageInfo(0, "", (550, 550), (550, 550))
    priors = head.priors(((69, 69), (35, 35), (18, 18), (9, 9), (5, 5)), info)
    assert len(priors) == 19_248
    torch.testing.assert_close(priors[0], torch.tensor((-1, -1, 1, 1)) * 12 + 550 / 69 / 2)
    widths, heights = (priors[:, 2:] - priors[:, :2]).unbind(1)
    torch.testing.assert_close(widths, heights, atol=1e-3, rtol=0)
    sides = torch.tensor([size * ratio**0.5 for size in (24, 48, 96, 192, 384) for ratio in (1, 0.5, 2)])
    cells = torch.tensor([69**2, 35**2, 18**2, 9**2, 5**2])
    expected = torch.cat([part.repeat(int(n)) for part, n in zip(sides.split(3), cells)])
    torch.testing.assert_close(widths, expected, atol=1e-3, rtol=0)


def test_priors_that_are_no_squares_have_the_area_and_the_ratio() -> None:
    priors = level_priors((1, 1), (8, 8), (10, 20), (1, 0.5, 2), square=False)
    width, height = (priors[:, 2:] - priors[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor((100, 100, 100, 400, 400, 400.0)))
    torch.testing.assert_close(width / height, torch.tensor((1, 0.5, 2) * 2))


def test_cells_follow_from_the_image_and_not_from_its_padding() -> None:
    assert cell_size((550, 550), 8) == (550 / 69, 550 / 69)
    assert cell_size((128, 96), 32) == (32, 32)
    head = YOLACT(SPEC, LABELS, hidden=4, prototypes=2)
    info = ImageInfo(0, "", (100, 90), (100, 90))
    alone = head.priors(tuple((-(-100 // 2**k), -(-90 // 2**k)) for k in range(3, 8)), info)
    padded = head.priors(tuple((-(-160 // 2**k), -(-128 // 2**k)) for k in range(3, 8)), info)
    assert set(map(tuple, alone.tolist())) < set(map(tuple, padded.tolist()))


def test_every_object_has_a_prior_of_its_own() -> None:
    iou = torch.tensor([[0.9, 0.8, 0.1], [0.95, 0.2, 0.0], [0.0, 0.0, 0.0]])
    objects, priors = one_prior_each(iou)
    assert objects.tolist() == [1, 0]  # the best pair first; the third object touches none
    assert priors.tolist() == [0, 1]

    torch.manual_seed(0)
    corners = torch.rand(40, 2)
    boxes, few = torch.cat((corners, corners + 0.3), 1), torch.cat((corners[:7], corners[:7] + 0.25), 1)
    objects, priors = one_prior_each(box_iou(few, boxes))
    assert sorted(objects.tolist()) == list(range(7))
    assert len(priors.unique()) == 7


def test_priors_inside_a_crowd_are_neither_object_nor_background() -> None:
    priors = torch.tensor([[0, 0, 10, 10], [20, 20, 30, 30], [26, 20, 36, 30], [60, 60, 70, 70.0]])
    objects = torch.tensor([[18, 18, 32, 32], [0, 0, 10, 9.0]])
    crowd = torch.tensor([True, False])
    assert assign(priors, objects, crowd, low=0.4, high=0.5).tolist() == [1, IGNORED, OBJECTLESS, OBJECTLESS]
    assert assign(priors, objects[:1], crowd[:1], low=0.4, high=0.5).tolist() == [-1, IGNORED, -1, -1]
    assert assign(priors, objects[:0], crowd[:0], low=0.4, high=0.5).tolist() == [OBJECTLESS] * 4


# -- suppression


def test_a_suppressed_box_still_suppresses() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10.0]])
    overlap = box_iou(boxes, boxes)
    assert overlap[0, 1].item() == pytest.approx(0.4286, abs=1e-4)
    assert overlap[1, 2].item() == pytest.approx(0.4286, abs=1e-4)
    assert overlap[0, 2].item() == pytest.approx(0.1111, abs=1e-4)
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert nms(boxes, scores, 0.4).tolist() == [0, 2]
    assert fast_nms(boxes, scores[:, None], iou=0.4, top_k=200)[0].tolist() == [0]
    assert cross_class_fast_nms(boxes, scores[:, None], iou=0.4, top_k=200)[0].tolist() == [0]


def test_classes_suppress_each_other_only_when_told_to() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10.0]])
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    index, labels = fast_nms(boxes, scores, iou=0.5, top_k=200)
    assert list(zip(index.tolist(), labels.tolist())) == [(0, 0), (1, 1)]
    index, labels = cross_class_fast_nms(boxes, scores, iou=0.5, top_k=200)
    assert list(zip(index.tolist(), labels.tolist())) == [(0, 0)]


def test_no_boxes_at_all() -> None:
    for suppress in (fast_nms, cross_class_fast_nms):
        assert [len(part) for part in suppress(torch.zeros(0, 4), torch.zeros(0, 3), iou=0.5, top_k=9)] == [0, 0]


# -- losses


def test_three_times_as_many_hard_negatives_as_positives() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 50, 4)
    aims = torch.full((2, 50), OBJECTLESS)
    aims[0, :2], aims[0, 2:30] = torch.tensor([0, 2]), IGNORED
    aims[1, 7] = 1
    expected = torch.zeros(())
    for row, positives in ((0, [0, 1]), (1, [7])):
        says = logits[row].log_softmax(1)
        background = (aims[row] == OBJECTLESS).nonzero()[:, 0]
        hardest = background[says[background, 0].argsort()[: 3 * len(positives)]]
        expected = expected - says[hardest, 0].sum()
        expected = expected - sum(says[i, aims[row, i] + 1] for i in positives)
    torch.testing.assert_close(class_loss(logits, aims, 3), expected)


def test_an_image_without_positives_gives_no_class_loss() -> None:
    logits = torch.randn(2, 9, 3, requires_grad=True)
    loss = class_loss(logits, torch.full((2, 9), OBJECTLESS), 3)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_mask_loss_is_that_of_the_box_and_divided_by_its_area() -> None:
    prototypes, coefficients = torch.randn(3, 20, 30), torch.randn(2, 3)
    boxes = torch.tensor([[4, 5, 14, 9], [20, 2, 28, 18.0]])
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 5:9, 5:12], masks[1, 3:17, 20:28] = True, True
    probability = torch.einsum("khw,nk->nhw", prototypes, coefficients).sigmoid()
    expected = torch.zeros(())
    for n, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
        seen = (n, slice(top - 1, bottom + 1), slice(left - 1, right + 1))  # with a rim of one cell
        loss = F.binary_cross_entropy(probability[seen], masks[seen].float(), reduction="sum")
        expected = expected + loss / ((right - left) * (bottom - top))
    torch.testing.assert_close(mask_loss(prototypes, coefficients, masks, boxes, 100), expected)

    far = prototypes.clone()
    far[:, :, :3] += 100  # columns that neither box comes near
    torch.testing.assert_close(mask_loss(far, coefficients, masks, boxes, 100), expected)


def test_large_and_small_objects_count_alike() -> None:
    prototypes, coefficients = torch.zeros(2, 40, 40), torch.zeros(2, 2)
    boxes = torch.tensor([[10, 10, 14, 14], [2, 2, 38, 38.0]])
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    each = [mask_loss(prototypes, coefficients[:1], masks[:1], boxes[i : i + 1], 9).item() for i in (0, 1)]
    assert each[0] == pytest.approx(np.log(2) * 36 / 16, rel=1e-5)  # ln 2 a cell, over 6 x 6 cells for 4 x 4
    assert each[1] == pytest.approx(np.log(2) * 38**2 / 36**2, rel=1e-5)


def test_a_sample_of_the_masks_stands_for_all() -> None:
    prototypes, coefficients = torch.ones(1, 10, 10), torch.full((40, 1), 0.5)
    masks, boxes = torch.ones(40, 10, 10, dtype=torch.bool), torch.tensor([[2, 2, 8, 8.0]]).expand(40, 4)
    all_of_them = mask_loss(prototypes, coefficients, masks, boxes, 100)
    torch.testing.assert_close(mask_loss(prototypes, coefficients, masks, boxes, 7), all_of_them)


def test_semantic_loss_joins_the_objects_of_a_class() -> None:
    logits = torch.randn(3, 4, 5)
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, :2], masks[1, 1:3], masks[2, :, 2] = True, True, True
    aims = torch.zeros(3, 4, 5)
    aims[2, :3], aims[0, :, 2] = 1, 1
    expected = F.binary_cross_entropy_with_logits(logits, aims, reduction="none").sum(0).mean()
    torch.testing.assert_close(semantic_loss(logits, masks, torch.tensor([2, 2, 0])), expected)


# -- the head


def features(images: int = 1, size: tuple[int, int] = (SIZE, SIZE)) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {n: torch.randn(images, 16, -(-size[0] // v.stride), -(-size[1] // v.stride)) for n, v in SPEC.items()}


def make_head(**options) -> YOLACT:
    torch.manual_seed(1)
    return YOLACT(SPEC, LABELS, hidden=16, prototypes=4, anchor_sizes=((12,), (24,), (48,), (96,), (128,)), **options)


def objects(*boxes: tuple[int, int, int, int], labels=None, crowd=None, masks: bool = True) -> InstanceTarget:
    """Objects that fill their boxes but for a corner."""
    n = len(boxes)
    bitmaps = torch.zeros(n, SIZE, SIZE, dtype=torch.uint8)
    for drawn, (left, top, right, bottom) in zip(bitmaps, boxes):
        drawn[top:bottom, left:right] = 1
        drawn[top : (top + bottom) // 2, left : (left + right) // 2] = 0
    return InstanceTarget(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4), torch.tensor(labels or [0] * n, dtype=torch.int64),
        torch.tensor(crowd or [False] * n, dtype=torch.bool), torch.ones(n), torch.arange(n),
        bitmaps if masks else None,
    )  # fmt: skip


def losses(head: YOLACT, *targets: InstanceTarget) -> dict[str, Mean]:
    info = tuple(ImageInfo(i, "", (SIZE, SIZE), (SIZE, SIZE)) for i in range(len(targets)))
    batch = MixedBatch(torch.zeros(len(targets), 3, SIZE, SIZE), info, {"masks": targets})
    rows = list(range(len(targets)))
    output = head(features(len(targets)), batch.view("masks", rows, targets=False), {})
    torch.manual_seed(0)
    return dict(head.losses(output, batch.view("masks", rows, targets=True)))  # type: ignore[arg-type]


def test_losses_are_means_over_positives_and_images() -> None:
    head = make_head()
    target = objects((10, 12, 60, 70), (70, 30, 120, 118), labels=[0, 1])
    found = losses(head, target, target)
    count = found["class"].count
    assert count == found["box"].count == found["mask"].count > 4
    assert found["semantic"].count == 2
    alone = losses(head, target)
    assert alone["class"].count * 2 == count


def test_an_image_where_nothing_is_teaches_only_what_is_where() -> None:
    nothing = InstanceTarget.empty((SIZE, SIZE), masks=True)
    found = losses(make_head(), nothing)
    assert [found[name].value().item() for name in ("class", "box", "mask")] == [0, 0, 0]
    assert found["semantic"].value() > 0
    assert [found[name].count for name in ("class", "box", "mask", "semantic")] == [0, 0, 0, 1]


def test_a_crowd_is_no_object() -> None:
    head = make_head()
    one = losses(head, objects((10, 12, 60, 70)))
    both = losses(head, objects((10, 12, 60, 70), (80, 80, 126, 126), crowd=[False, True]))
    for name in ("box", "mask", "semantic"):
        assert both[name].total.item() == one[name].total.item()
    only = losses(head, objects((80, 80, 126, 126), crowd=[True]))
    assert [only[name].count for name in ("class", "box", "mask")] == [0, 0, 0]


def test_boxes_without_masks_are_learnt_as_boxes() -> None:
    head = make_head()
    found = losses(head, objects((10, 12, 60, 70), masks=False))
    assert found["box"].count > 0
    assert [found[name].count for name in ("mask", "semantic")] == [0, 0]
    assert found["mask"].value().item() == 0


def test_weights_of_the_losses() -> None:
    target = objects((10, 12, 60, 70))
    plain = losses(make_head(class_weight=1, box_weight=1, mask_weight=1, semantic_weight=1), target)
    default = losses(make_head(), target)
    ratios = {name: (default[name].total / plain[name].total).item() for name in plain}
    assert ratios == pytest.approx({"class": 1, "box": 1.5, "mask": 6.125, "semantic": 1})


def test_masks_are_cropped_to_the_object_in_training_and_to_the_found_box_when_predicting() -> None:
    head = make_head(score=0.5)
    info = ImageInfo(0, "", (SIZE, SIZE), (SIZE, SIZE))
    grids = tuple((max(1, SIZE // s), max(1, SIZE // s)) for s in head.strides)
    priors = head.priors(grids, info)
    count, wrong = len(priors), torch.tensor([20.0, 20, 60, 60])
    best = int(box_iou(wrong[None], priors).argmax())
    logits = torch.zeros(1, count, 3)
    logits[..., 0] = 9
    logits[0, best] = torch.tensor([0.0, 9, 0])
    deltas = torch.zeros(1, count, 4)
    deltas[0, best] = encode(wrong, priors[best], VARIANCES)
    # One prototype that says "object" everywhere: what is left of it is the crop.
    output = YOLACTOutput(
        deltas, logits, torch.ones(1, count, 1), torch.full((1, 1, 32, 32), 5.0), torch.zeros(1, 16, 16, 16), grids
    )
    batch = MixedBatch(torch.zeros(1, 3, SIZE, SIZE), (info,), {}).view("masks", [0], targets=False)
    (prediction,) = head.predict(output, batch)
    assert prediction.labels.tolist() == [0, 1]  # the prior passes by its best class, and then counts in both
    torch.testing.assert_close(prediction.boxes[0], wrong, atol=1e-3, rtol=0)
    rows, columns = bitmap(prediction.rles[0]).nonzero()
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (16, 16, 64, 64)  # and a rim of a cell

    target = objects((40, 40, 88, 72))
    target.masks = InstanceMasks.from_crops([(40, 40, np.ones((32, 48), np.uint8))], (SIZE, SIZE))
    view = MixedBatch(torch.zeros(1, 3, SIZE, SIZE), (info,), {"masks": [target]}).view("masks", [0], targets=True)
    found = head.losses(output, view)["mask"]
    assert isinstance(found, Mean)
    right, rim = F.softplus(torch.tensor(-5.0)), F.softplus(torch.tensor(5.0))
    cells = 12 * 8  # the object, four pixels a cell; around it a rim of one cell
    expected = (cells * right + (14 * 10 - cells) * rim) / cells
    torch.testing.assert_close(found.value(), 6.125 * expected)


def test_padding_changes_nothing() -> None:
    head = make_head(score=0.0)
    height, width = 90, 76
    target = objects((10, 12, 60, 70), (30, 8, 74, 88), labels=[0, 1])
    info = ImageInfo(0, "", (height, width), (height, width))
    torch.manual_seed(0)
    small, large = random_output(head, (height, width)), random_output(head, (SIZE, SIZE))
    for part, a, b in zip(("deltas", "logits", "coefficients"), small[1], large[1]):
        for own, padded in zip(a, b):
            padded[:, : own.shape[1], : own.shape[2]] = own
        setattr(small[0], part, torch.cat([x.reshape(1, -1, x.shape[-1] // 3) for x in a], 1))
        setattr(large[0], part, torch.cat([x.reshape(1, -1, x.shape[-1] // 3) for x in b], 1))
    for part in ("prototypes", "finest"):
        own = getattr(small[0], part)
        getattr(large[0], part)[:, :, : own.shape[2], : own.shape[3]] = own
    found, predicted = [], []
    for (output, _), size in ((small, (height, width)), (large, (SIZE, SIZE))):
        fitting = replace(target, masks=target.masks.dense()[:, : size[0], : size[1]])  # type: ignore[union-attr]
        batch = MixedBatch(torch.zeros(1, 3, *size), (info,), {"masks": [fitting]}).view("masks", [0], targets=True)
        torch.manual_seed(0)
        found.append({name: loss.value() for name, loss in head.losses(output, batch).items()})  # type: ignore[union-attr]
        predicted.append(head.predict(output, batch)[0])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(predicted[0].boxes, predicted[1].boxes)
    assert predicted[0].rles == predicted[1].rles


def random_output(head: YOLACT, size: tuple[int, int]) -> tuple[YOLACTOutput, list[list[Tensor]]]:
    """An output for one image, and maps (1, rows, columns, 3 k) of each level for deltas, logits and coefficients."""
    grids = tuple((-(-size[0] // s), -(-size[1] // s)) for s in head.strides)
    maps = [[torch.randn(1, *grid, 3 * width) for grid in grids] for width in (4, 3, 4)]
    rows, columns = grids[0]
    nothing = torch.zeros(0)
    finest, prototypes = torch.randn(1, 16, rows, columns), torch.randn(1, 4, 2 * rows, 2 * columns)
    return YOLACTOutput(nothing, nothing, nothing, prototypes, finest, grids), maps


def test_sizes_other_than_550() -> None:
    head = make_head(score=0.0)
    for height, width in ((70, 131), (33, 40), (200, 96)):
        info = ImageInfo(0, "", (2 * height, 2 * width), (height, width), (0.5, 0, 0, 0, 0.5, 0))
        batch = MixedBatch(torch.zeros(1, 3, height, width), (info,), {}).view("masks", [0], targets=False)
        output = head(features(1, (height, width)), batch, {})
        assert output.prototypes.shape[2:] == (2 * -(-height // 8), 2 * -(-width // 8))
        (prediction,) = head.predict(output, batch)
        assert 0 < len(prediction) <= 100
        assert prediction.rles[0]["size"] == [2 * height, 2 * width]
        assert prediction.boxes[:, 2].max() <= 2 * width


@pytest.mark.parametrize("affine", [
    (0.5, 0, 0, 0, 0.5, 0), (-0.5, 0, 64, 0, 0.5, 0), (0.5, 0, -9, 0, 0.5, 4), (0.4, 0.2, 3, -0.2, 0.4, 20),
])  # fmt: skip
def test_masks_find_their_way_back_into_the_original(affine) -> None:
    torch.manual_seed(0)
    info = ImageInfo(0, "", (90, 128), (64, 64), affine)
    boxes = torch.tensor([[8, 12, 40, 52], [0, 0, 64, 64.0]])
    cells = F.interpolate(torch.rand(1, 2, 4, 4), size=(16, 16), mode="bicubic")[0] * inside(boxes / 4, 16, 16)
    a, b, tx, c, d, ty = affine
    y, x = torch.meshgrid(torch.arange(90) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    places = torch.stack(((a * x + b * y + tx) / 64, (c * x + d * y + ty) / 64), -1)[None].expand(2, -1, -1, -1) * 2 - 1
    whole = F.grid_sample(cells[:, None], places, padding_mode="border", align_corners=False)[:, 0] > 0.5
    # Beyond the window that the boxes take in the original, nothing is looked at.
    for rle, mask, box in zip(to_original(cells, boxes, (4, 4), info), whole, info.boxes_to_original(boxes)):
        left, top, right, bottom = box.int().tolist()
        own = torch.from_numpy(bitmap(rle)).bool()
        assert (own[top:bottom, left:right] == mask[top:bottom, left:right]).float().mean() > 0.999
        assert own.any()


def test_masks_on_a_coarser_grid() -> None:
    masks = (F.interpolate(torch.rand(3, 1, 5, 5), size=(69, 69)) > 0.5)[:, 0].to(torch.uint8)
    expected = F.interpolate(masks[None].float(), size=(18, 18), mode="bilinear", align_corners=False)[0] > 0.5
    crops = InstanceMasks.from_dense(masks)
    assert torch.equal(on_grid(crops, (18, 18), (69 / 18, 69 / 18)), expected)
    padded = crops.padded((96, 96))
    part = on_grid(padded, (25, 25), (69 / 18, 69 / 18))
    assert torch.equal(part[:, :17, :17], expected[:, :17, :17])
    assert on_grid(InstanceMasks.from_crops([], (69, 69)), (4, 4), (8, 8)).shape == (0, 4, 4)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="equally many sizes for each of the 5 levels"):
        YOLACT(SPEC, LABELS, anchor_sizes=((24,), (48,)))
    uneven = FeatureSpec({"p3": Level(8, 8), "p4": Level(16, 16)})
    with pytest.raises(ValueError, match="equally many channels"):
        YOLACT(uneven, LABELS, levels=("p3", "p4"), anchor_sizes=((24,), (48,)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    head = make_head(score=0.0, mask_samples=10**6)
    target = objects(
        (10, 12, 60, 70), (70, 30, 120, 118), (80, 80, 126, 126), labels=[0, 1, 0], crowd=[False, False, True]
    )
    info = ImageInfo(0, "", (SIZE, SIZE), (SIZE, SIZE))
    batch = MixedBatch(torch.zeros(1, 3, SIZE, SIZE), (info,), {"masks": [target]})
    found = []
    for device in ("cpu", "cuda"):
        head.to(device)
        view = batch.to(device).view("masks", [0], targets=True)
        output = head({name: x.to(device) for name, x in features().items()}, view, {})
        sums = {name: loss.value().cpu() for name, loss in head.losses(output, view).items() if isinstance(loss, Mean)}
        found.append((sums, head.predict(output, view)[0].scores.cpu()))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-2, atol=1e-3)
