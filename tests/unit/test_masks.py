"""Instance masks as crops: whatever is done with them gives the pixels of the full-size masks, in less memory."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as codec
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from visionkit.data import Sample, Source
from visionkit.data.crops import TurnedWindow
from visionkit.data.geometry import Geometry
from visionkit.data.loader import Feed, collate, train_loader
from visionkit.draw import draw_instances
from visionkit.evaluate.coco import CocoMasks
from visionkit.layers import boxes as box_layers
from visionkit.rle import encode
from visionkit.types import ImageInfo, InstanceMasks, InstanceTarget, LabelSet, MaskPrediction
from visionkit.types import masks as masks_module
from visionkit_yolact.losses import semantic_loss
from visionkit_yolact.masks import on_grid

HEIGHT, WIDTH = 37, 53


def bitmaps(seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Tensor:
    """(9, H, W) masks: empty, full, one pixel in two corners, along each border, an L, and noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    masks = np.zeros((9, height, width), np.uint8)
    masks[1] = 1
    masks[2, 0, 0] = masks[3, height - 1, width - 1] = 1
    masks[4, : height // 2, 3:9] = 1
    masks[5, height // 3 :, width - 7 :] = 1
    masks[6, 5:20, 10:12] = masks[6, 18:20, 10:30] = 1
    masks[7, 8:30, 12:40] = rng.random((22, 28)) < 0.5
    masks[8, 4:8, :] = 1
    return torch.from_numpy(masks)


def target_of(masks: InstanceMasks | Tensor, boxes: Tensor | None = None) -> InstanceTarget:
    count = len(masks)
    boxes = torch.tensor([[1.0, 1, 12, 9]]).repeat(count, 1) if boxes is None else boxes
    return InstanceTarget(
        boxes, torch.arange(count) % 2, torch.zeros(count, dtype=torch.bool), torch.full((count,), 88.0),
        torch.arange(count), masks,  # type: ignore[arg-type]
    )  # fmt: skip


def nbytes(masks: InstanceMasks) -> int:
    return sum(t.nbytes for t in (masks.data, masks.windows, masks.annotated))


# -- representations --------------------------------------------------------------------------------------------------


def test_crops_hold_the_pixels_of_the_full_masks() -> None:
    dense = bitmaps()
    masks = InstanceMasks.from_dense(dense)
    assert torch.equal(masks.dense(), dense)
    assert masks.dense(torch.float32).dtype == torch.float32
    assert torch.equal(masks.areas(), dense.flatten(1).sum(1))
    assert masks.nonempty().tolist() == [False] + [True] * 8
    assert masks.windows[2:4].tolist() == [[0, 0, 1, 1], [WIDTH - 1, HEIGHT - 1, 1, 1]]
    for mask, box in zip(dense.numpy(), masks.boxes().tolist()):
        rows, columns = np.nonzero(mask)
        assert box == ([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (HEIGHT, WIDTH), (300, 7)])
def test_run_lengths_equal_those_of_the_full_masks(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for share in (0.0, 0.02, 0.5, 1.0):
        dense = (rng.random((4, *size)) < share).astype(np.uint8)
        rles = [codec.encode(np.asfortranarray(mask)) for mask in dense]
        masks = InstanceMasks.from_rles(rles, size)
        np.testing.assert_array_equal(masks.dense().numpy(), dense)
        assert masks.to_rles() == rles
        as_text = [{**rle, "counts": rle["counts"].decode()} for rle in rles]
        assert torch.equal(InstanceMasks.from_rles(as_text, size).data, masks.data)
        flat = [mask.T.ravel() for mask in dense]
        edges = [np.flatnonzero(np.diff(np.concatenate(([0], values)))) for values in flat]
        runs = [
            {"size": list(size), "counts": np.diff([0, *e, size[0] * size[1]]).tolist()} for e in edges
        ]  # fmt: skip
        assert torch.equal(InstanceMasks.from_rles(runs, size).data, masks.data)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [9, 9], "counts": [81]}, r"\[9, 9\] pixels in an image of \[10, 12\]"),
        ({"size": [10, 12], "counts": [100, 21]}, "add up to 121, not to 10 x 12 = 120"),
        ({"size": [10, 12], "counts": [130, -10]}, "add up to"),
        ({"size": [10, 12], "counts": []}, "add up to 0"),
        ({"size": [10, 12], "counts": b"P"}, "damaged"),
        ({"size": [10, 12], "counts": "P" * 20 + "0"}, "damaged"),
        ({"size": [10, 12], "counts": "\n"}, "damaged"),
    ],
)
def test_wrong_run_lengths_are_refused(rle: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceMasks.from_rles([None, rle], (10, 12))


def test_crops_outside_the_image_are_refused() -> None:
    for left, top in ((-1, 0), (0, -1), (11, 0), (0, 9)):
        with pytest.raises(ValueError, match="does not lie in an image of 12x10"):
            InstanceMasks.from_crops([(left, top, np.ones((2, 2), np.uint8))], (10, 12))
    assert len(InstanceMasks.from_crops([(11, 9, np.eye(2) < 0)], (10, 12))) == 1  # nothing of it is outside


def test_an_object_whose_mask_is_not_annotated_is_not_one_with_an_empty_mask() -> None:
    full, empty = encode(np.ones((4, 5))), encode(np.zeros((4, 5)))
    masks = InstanceMasks.from_rles([full, None, empty], (4, 5))
    assert masks.annotated.tolist() == [True, False, True]
    assert masks.nonempty().tolist() == [True, False, False]
    assert masks.to_rles() == [full, None, empty]
    assert masks.select(torch.tensor([1, 2])).annotated.tolist() == [False, True]
    assert InstanceMasks.from_dense(masks.dense()).annotated.tolist() == [True, False, False]


def test_no_objects() -> None:
    masks = InstanceMasks.from_crops([], (4, 5))
    assert masks.dense().shape == (0, 4, 5)
    assert masks.boxes().shape == (0, 4)
    assert [len(part) for part in (masks.areas(), masks.nonempty(), masks.to_rles(), masks.crops())] == [0] * 4
    assert len(masks.select(torch.zeros(0, dtype=torch.bool))) == len(InstanceMasks.from_rles([], (4, 5))) == 0
    assert masks.crop_and_resize(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7).shape == (0, 7, 7)
    assert list(masks.dense_chunks()) == []
    assert Geometry((0, 0, 3, 2), (8, 9)).masks(masks).size == (8, 9)


def test_a_target_takes_a_tensor_of_full_masks_too() -> None:
    dense = bitmaps()
    masks = target_of(dense).masks
    assert isinstance(masks, InstanceMasks)
    assert torch.equal(masks.dense(), dense)
    with pytest.raises(ValueError, match=r"masks must have shape \(9, H, W\), not \(9, 37\)"):
        target_of(dense[:, :, 0])
    with pytest.raises(ValueError, match="there are 2 masks for 9 boxes"):
        replace(target_of(dense), masks=masks.select(torch.tensor([1, 2])))
    with pytest.raises(TypeError, match="not ndarray"):
        target_of(dense.numpy())  # type: ignore[arg-type]


# -- selections and geometry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [[0, 3, 3, 8], [], [True, False] * 4 + [True], slice(2, 5)])
def test_selections(keep: list | slice) -> None:
    dense = bitmaps()
    rows = torch.arange(9)[keep] if isinstance(keep, slice) else torch.tensor(keep, dtype=None if keep else torch.int64)
    assert torch.equal(InstanceMasks.from_dense(dense).select(rows).dense(), dense[rows])
    target = target_of(dense).select(rows)
    assert torch.equal(target.masks.dense(), dense[rows])  # type: ignore[union-attr]
    assert target.ids.tolist() == torch.arange(9)[rows].tolist()


GEOMETRIES = {
    "whole": Geometry((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH)),
    "mirror": Geometry((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH), True),
    "crop": Geometry((5, 3, 40, 31), (28, 35)),
    "larger": Geometry((0, 0, WIDTH, HEIGHT), (91, 60), True),
    "smaller": Geometry((2, 0, WIDTH, 30), (7, 11)),
    "one way": Geometry((0, 0, WIDTH, HEIGHT), (HEIGHT, 20)),
    "to a pixel": Geometry((0, 0, WIDTH, HEIGHT), (1, 1)),
    "one pixel": Geometry((6, 6, 7, 7), (12, 9)),
    "turned": TurnedWindow((4.0, -3.0, 50.0, 43.0), (32, 32), False, (), 31.0),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_moves_crops_as_full_masks(name: str) -> None:
    geometry = GEOMETRIES[name]
    dense = bitmaps()
    moved = geometry.masks(InstanceMasks.from_dense(dense))
    assert moved.size == geometry.size
    np.testing.assert_array_equal(moved.dense().numpy(), np.stack([geometry.map(mask) for mask in dense.numpy()]))
    again = InstanceMasks.from_dense(moved.dense())
    assert torch.equal(again.windows, moved.windows)  # the windows are as small as can be
    assert moved.annotated.tolist() == [False] + [True] * 8


def test_random_windows_and_sizes_move_crops_as_full_masks() -> None:
    rng = np.random.default_rng(3)
    dense = bitmaps(2)
    masks = InstanceMasks.from_dense(dense)
    for _ in range(60):
        left, top = int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT))
        window = (left, top, int(rng.integers(left, WIDTH)) + 1, int(rng.integers(top, HEIGHT)) + 1)
        geometry = Geometry(window, (int(rng.integers(1, 90)), int(rng.integers(1, 90))), bool(rng.random() < 0.5))
        expected = np.stack([geometry.map(mask) for mask in dense.numpy()])
        np.testing.assert_array_equal(geometry.masks(masks).dense().numpy(), expected)


def test_padding_changes_the_size_alone() -> None:
    dense = bitmaps()
    padded = target_of(dense).padded((HEIGHT + 4, WIDTH + 9)).masks
    assert padded is not None
    assert torch.equal(padded.dense(), F.pad(dense, (0, 9, 0, 4)))


def test_an_object_without_a_mask_is_cropped_by_its_box() -> None:
    masks = InstanceMasks.from_rles([None, encode(bitmaps()[4].numpy()), None], (HEIGHT, WIDTH))
    boxes = torch.tensor([[2.0, 4, 22, 14], [3, 0, 9, 18], [40, 20, 50, 30]])
    moved = Geometry((12, 0, 39, HEIGHT), (HEIGHT, 27)).target(target_of(masks, boxes))
    assert moved.ids.tolist() == [0]  # the second object and the third are out of sight
    assert moved.boxes.tolist() == [[0, 4, 10, 14]]
    assert moved.areas.tolist() == [44]
    assert moved.masks.annotated.tolist() == [False]
    # The mask of the second leaves the window although its box does not.
    boxes[1] = torch.tensor([3.0, 0, 20, 18])
    assert Geometry((12, 0, 39, HEIGHT), (HEIGHT, 27)).target(target_of(masks, boxes)).ids.tolist() == [0]


# -- what heads learn from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned", [False, True])
def test_regions_equal_roi_align_of_the_full_masks(aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    dense = bitmaps()
    masks = InstanceMasks.from_dense(dense)
    corners = rng.uniform(-20, 60, (80, 2))
    boxes = torch.tensor(np.concatenate((corners, corners + rng.uniform(0.1, 50, (80, 2))), 1), dtype=torch.float32)
    boxes[:9] = masks.boxes()  # exactly the windows, and one without an area
    index = torch.from_numpy(rng.integers(0, 9, 80))
    index[:9] = torch.arange(9)
    rois = torch.cat((index[:, None].float(), boxes), 1)
    expected = roi_align(dense[:, None].float(), rois, 14, aligned=aligned)[:, 0]
    for pixels in (1, 3 * HEIGHT * WIDTH, 1 << 24):  # one mask at a time, three, all
        monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", pixels)
        assert torch.equal(masks.crop_and_resize(boxes, index, 14, aligned=aligned), expected)


@pytest.mark.parametrize("pixels", [1, 4 * HEIGHT * WIDTH, 1 << 24])
def test_chunks_are_the_full_masks_some_at_a_time(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", pixels)
    dense = bitmaps()
    masks = InstanceMasks.from_dense(dense)
    parts = [(rows, part.clone()) for rows, part in masks.dense_chunks(torch.int32)]
    assert torch.equal(torch.cat([part for _, part in parts]), dense.int())
    assert [row for rows, _ in parts for row in range(rows.start, rows.stop)] == list(range(9))
    assert max(part.numel() for _, part in parts) <= max(pixels, HEIGHT * WIDTH)
    expected = F.interpolate(dense[:, None].float(), size=(12, 17), mode="bilinear", align_corners=False)[:, 0] > 0.5
    assert torch.equal(on_grid(masks, (12, 17), (HEIGHT / 12, WIDTH / 17)), expected)


def test_cells_that_are_not_annotated_teach_their_class_nothing() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 4, 5, dtype=torch.bool)
    masks[0, 1:3, 1:3] = True
    unknown = torch.zeros(1, 4, 5, dtype=torch.bool)
    unknown[0, :, 2:] = True
    found = semantic_loss(logits, masks, torch.tensor([1]), (unknown, torch.tensor([1])))
    each = F.binary_cross_entropy_with_logits(
        logits, torch.stack((masks[0] & False, masks[0])).float(), reduction="none"
    )
    each[1][unknown[0] & ~masks[0]] = 0
    torch.testing.assert_close(found, each.sum() / 20)


def test_matching_in_parts_equals_matching_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    corners = rng.integers(0, 60, (240, 2))  # whole numbers, so that many overlaps are equal
    boxes = torch.tensor(np.concatenate((corners, corners + rng.integers(1, 20, (240, 2))), 1), dtype=torch.float32)
    boxes, objects = boxes[:200], boxes[200:]
    for share in (0.0, 0.3, 1.0):
        crowd = torch.rand(40) < share
        results, ious = [], []
        for pairs in (1 << 30, 40 * 7, 1):
            monkeypatch.setattr(box_layers, "_PAIRS_AT_ONCE", pairs)
            ious.append(box_layers.pairwise_iou(objects, boxes))
            results += [
                box_layers.match(boxes, objects, crowd, low=0.3, high=0.6, best_of_each=best) for best in (True, False)
            ]
        assert all(torch.equal(iou, box_iou(objects, boxes)) for iou in ious)
        assert all(torch.equal(a, b) for a, b in zip(results, results[2:]))


# -- loading, drawing, evaluating -------------------------------------------------------------------------------------


class Crowded(Source):
    """One image with many small objects, of which every second one has a mask."""

    labels = {"masks": LabelSet(("cell",))}
    size, count = (200, 300), 200

    def __len__(self) -> int:
        return 1

    def load(self, index, tasks):  # type: ignore[no-untyped-def]
        rng = np.random.default_rng(index)
        corners = rng.integers(0, 190, (self.count, 2)).tolist()
        pixels = np.ones((8, 6), np.uint8)
        masks = InstanceMasks.from_crops(
            [(x, y, pixels) if i % 2 else None for i, (x, y) in enumerate(corners)], self.size
        )
        boxes = torch.tensor([[x, y, x + 6, y + 8] for x, y in corners], dtype=torch.float32)
        target = target_of(masks, boxes)
        target.labels = torch.zeros_like(target.labels)
        image = torch.zeros(3, *self.size, dtype=torch.uint8)
        return Sample(image, ImageInfo(index, "", self.size, self.size), dict.fromkeys(tasks, target))


def test_targets_take_the_memory_of_their_crops_and_not_of_the_image() -> None:
    sample = Crowded().load(0, ["masks"])
    larger = Geometry((0, 0, 300, 200), (400, 600)).sample(sample)
    batch = collate([larger])
    masks = batch.targets["masks"][0].masks  # type: ignore[union-attr]
    assert masks.size == (416, 608)
    assert nbytes(masks) == 100 * 16 * 12 + 200 * (4 * 8 + 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_cross_the_border_of_a_worker_process(workers: int) -> None:
    feed = Feed("crowded", Crowded(), {"masks": ("masks", torch.tensor([0]))})
    batch = next(iter(train_loader([feed], batch_size=1, seed=0, steps=1, workers=workers)))
    expected, found = Crowded().load(0, ["masks"]).targets["masks"].masks, batch.targets["masks"][0].masks  # type: ignore[union-attr]
    assert found.size == (224, 320)
    assert torch.equal(found.dense()[:, :200, :300], expected.dense())
    assert found.annotated.tolist() == [False, True] * 100


def test_targets_move_between_devices_and_types() -> None:
    target = target_of(bitmaps())
    there = target.to("meta").masks
    assert there is not None
    assert {t.device.type for t in (there.data, there.windows, there.annotated)} == {"meta"}
    assert there.size == (HEIGHT, WIDTH)
    assert torch.equal(copy.deepcopy(target).masks.dense(), bitmaps())  # type: ignore[union-attr]


def test_truth_with_and_without_masks_is_drawn_and_predicted() -> None:
    labels = LabelSet(("a", "b"))
    masks = InstanceMasks.from_rles([None, encode(bitmaps()[7].numpy())], (HEIGHT, WIDTH))
    target = target_of(masks, torch.tensor([[1.0, 20, 9, 30], [12, 8, 40, 30]]))
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    drawn = draw_instances(image, target, labels)
    assert (drawn[20:30, 1:9] != 128).any()  # the box
    assert (drawn[8:30, 12:40] != 128).any()
    info = ImageInfo(1, "", (HEIGHT, WIDTH), (HEIGHT, WIDTH))
    prediction = MaskPrediction.from_target(target, info, labels)
    assert prediction.labels.tolist() == [1]
    assert prediction.rles == [encode(bitmaps()[7].numpy())]


def test_evaluation_reads_the_masks_of_targets() -> None:
    source, labels = Crowded(), Crowded.labels["masks"]
    sample = source.load(0, ["masks"])
    target = sample.targets["masks"].select(sample.targets["masks"].masks.annotated)
    evaluator = CocoMasks(source, labels)
    evaluator.add([MaskPrediction.from_target(target, sample.info, labels)], [target], [sample.info])
    assert evaluator.result()["AP"] == pytest.approx(1.0)
