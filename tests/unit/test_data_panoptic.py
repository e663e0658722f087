"""Panoptic targets: read from COCO's format, moved with their image, and kept in step with the other tasks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from visionkit.data import Transform
from visionkit.data.coco import CocoSource
from visionkit.data.geometry import Geometry, pad_target
from visionkit.data.shapes import ShapesSource
from visionkit.data.transforms import ColorJitter, HorizontalFlip, Normalize, Resize, ScaleJitterCrop
from visionkit.errors import DataError
from visionkit.layers.segments import from_rgb, renumber, runs, to_rgb
from visionkit.types import IGNORE, LabelSet, PanopticPrediction, PanopticTarget


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> ShapesSource:
    return ShapesSource(images=12, seed=5, size=[96, 120], root=str(tmp_path_factory.mktemp("shapes") / "data"))


def a_data_set(folder: Path, segments: list[dict[str, object]], ids: np.ndarray) -> dict[str, str]:
    """One image whose panoptic PNG holds ``ids``."""
    (folder / "images").mkdir()
    (folder / "panoptic").mkdir()
    cv2.imwrite(str(folder / "images" / "7.png"), np.zeros((*ids.shape, 3), np.uint8))
    cv2.imwrite(str(folder / "panoptic" / "7.png"), to_rgb(ids)[..., ::-1])
    data = {
        "images": [{"id": 7, "file_name": "7.png", "height": ids.shape[0], "width": ids.shape[1]}],
        "annotations": [{"image_id": 7, "file_name": "7.png", "segments_info": segments}],
        "categories": [{"id": 5, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}],
    }
    (folder / "panoptic.json").write_text(json.dumps(data))
    return {"images": str(folder / "images"), "panoptic": str(folder / "panoptic.json")}


def test_ids_and_pixels_are_each_others_inverse() -> None:
    ids = np.array([[0, 255, 256], [65535, 65536, 2**24 - 1]], np.int32)
    pixels = to_rgb(ids)
    np.testing.assert_array_equal(pixels[0, 2], (0, 1, 0))
    np.testing.assert_array_equal(pixels[1, 1], (0, 0, 1))
    np.testing.assert_array_equal(from_rgb(pixels), ids)
    assert from_rgb(np.zeros((0, 4, 3), np.uint8)).shape == (0, 4)


def test_runs_cover_all_values() -> None:
    starts, lengths = runs(np.array([4, 4, 4, 1, 1, 4]))
    assert (starts.tolist(), lengths.tolist()) == ([0, 3, 5], [3, 2, 1])
    assert [len(part) for part in runs(np.zeros(0, int))] == [0, 0]


def test_renumber_tells_the_unknown() -> None:
    assert renumber(np.array([[70, 0, 9], [12, 70, 8]]), np.array([12, 70])).tolist() == [[2, 0, -1], [1, 2, -1]]


def test_segments_are_read_with_class_crowd_and_id(tmp_path: Path) -> None:
    ids = np.repeat(np.array([[0, 300, 70000, 4]], np.int32), 4, 0)
    segments = [{"id": 70000, "category_id": 9}, {"id": 300, "category_id": 5, "iscrowd": 1}]
    segments += [{"id": 11, "category_id": 5}, {"id": 4, "category_id": 5, "iscrowd": 0}]  # 11 has no pixel
    source = CocoSource(**a_data_set(tmp_path, segments, ids))
    assert list(source.tasks) == ["semantic", "panoptic"]
    assert source.labels["panoptic"].things == (True, False)
    sample = source.load(0, ["panoptic", "semantic"])
    target = sample.targets["panoptic"]
    assert isinstance(target, PanopticTarget)
    assert target.segments.dtype == torch.int32
    assert target.segments[0].tolist() == [0, 2, 1, 3]
    assert (target.labels.tolist(), target.crowd.tolist()) == ([1, 0, 0], [False, True, False])
    assert target.ids.tolist() == [70000, 300, 4]
    assert sample.targets["semantic"].labels[0].tolist() == [IGNORE, 0, 1, 0]
    assert source.load(0, ["semantic"]).targets.keys() == {"semantic"}


def test_an_id_that_is_not_in_the_json_names_the_png(tmp_path: Path) -> None:
    files = a_data_set(tmp_path, [{"id": 3, "category_id": 9}], np.full((4, 5), 8, np.int32))
    with pytest.raises(DataError, match=r"panoptic/7.png: segment 8 is not in the segments_info of image 7"):
        CocoSource(**files).load(0, ["panoptic"])


def test_panoptic_agrees_with_masks_and_semantic(shapes: ShapesSource) -> None:
    crowds = 0
    for index in range(len(shapes)):
        targets = shapes.load(index, list(shapes.tasks)).targets
        panoptic, masks = targets["panoptic"], targets["masks"]
        np.testing.assert_array_equal(panoptic.semantic().labels, targets["semantic"].labels)
        things = torch.tensor(shapes.labels["panoptic"].things)[panoptic.labels]
        regions = [panoptic.segments == i + 1 for i in range(len(panoptic)) if things[i]]
        bitmaps = masks.masks.dense().bool()
        own = {(mask.numpy().tobytes(), label) for mask, label in zip(bitmaps, masks.labels.tolist())}
        names = [shapes.labels["panoptic"].names[label] for label in panoptic.labels[things]]
        labels = [shapes.labels["masks"].label(name) for name in names]
        seen = {(region.numpy().tobytes(), label) for region, label in zip(regions, labels)}
        shared = own & seen  # polygons of what nothing hides are as smooth as they were drawn
        assert len(seen) == len(own)
        assert len(shared) > 0
        assert int(panoptic.crowd.sum()) == int(masks.crowd.sum())
        crowds += int(panoptic.crowd.sum())
    assert crowds


@pytest.mark.parametrize("mirror", [False, True])
def test_a_crop_moves_segments_as_it_moves_label_maps(shapes: ShapesSource, mirror: bool) -> None:
    sample = shapes.load(3, ["panoptic", "semantic"])
    moved = Geometry((0, 0, 60, 40), (70, 90), mirror).sample(sample).targets
    panoptic = moved["panoptic"]
    np.testing.assert_array_equal(panoptic.semantic().labels, moved["semantic"].labels)
    assert len(panoptic) < len(sample.targets["panoptic"])
    assert set(panoptic.segments.unique().tolist()) - {0} == set(range(1, len(panoptic) + 1))
    assert set(panoptic.ids.tolist()) < set(sample.targets["panoptic"].ids.tolist())


@pytest.mark.parametrize(
    "transform",
    [
        Resize(short=150, long=170),
        ScaleJitterCrop(size=[80, 90], scale=(0.5, 2.0)),
        HorizontalFlip(probability=1.0),
        Normalize(),
        ColorJitter(brightness=0.3),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_every_transform_keeps_it_in_step_with_the_label_map(shapes: ShapesSource, transform: Transform) -> None:
    for index in range(4):
        torch.manual_seed(index)
        targets = transform(shapes.load(index, ["panoptic", "semantic"])).targets
        np.testing.assert_array_equal(targets["panoptic"].semantic().labels, targets["semantic"].labels)


def test_padding_is_void(shapes: ShapesSource) -> None:
    target = shapes.load(0, ["panoptic"]).targets["panoptic"]
    padded = pad_target(target, (100, 130))
    assert padded.segments.shape == (100, 130)
    assert not padded.segments[96:].any()
    assert not padded.segments[:, 120:].any()
    np.testing.assert_array_equal(padded.segments[:96, :120], target.segments)


def test_classes_that_are_left_out_become_void(shapes: ShapesSource) -> None:
    target = shapes.load(0, ["panoptic"]).targets["panoptic"]
    table = torch.arange(len(shapes.labels["panoptic"]))
    gone = int(target.labels[0])
    table[gone] = -1
    left = target.relabel(table)
    assert gone not in left.labels
    expected = torch.where(target.semantic().labels == gone, IGNORE, target.semantic().labels)
    np.testing.assert_array_equal(left.semantic().labels, expected)


def test_a_prediction_is_written_as_coco_reads_it(shapes: ShapesSource, tmp_path: Path) -> None:
    """What a perfect head writes is, read as a source, its truth without the crowds."""
    labels, sample = shapes.labels["panoptic"], shapes.load(2, ["panoptic"])
    truth = sample.targets["panoptic"]
    found = PanopticPrediction.from_target(truth, sample.info, labels)
    (record,) = found.to_coco(7, labels)
    ids = from_rgb(found.files()[""])
    assert [s["area"] for s in record["segments_info"]] == np.bincount(ids.ravel())[1:].tolist()
    for segment, label in zip(record["segments_info"], truth.labels[~truth.crowd].tolist()):
        assert segment["category_id"] == labels.ids[label]
    np.testing.assert_array_equal(ids > 0, ~np.isin(truth.segments, 1 + np.flatnonzero(truth.crowd)))


def test_a_prediction_of_some_segments_only(shapes: ShapesSource) -> None:
    labels, sample = shapes.labels["panoptic"], shapes.load(2, ["panoptic"])
    found = PanopticPrediction.from_target(sample.targets["panoptic"], sample.info, labels)
    keep = torch.arange(len(found)) != 1
    left = found.only(keep)
    assert left.labels.tolist() == found.labels[keep].tolist()
    np.testing.assert_array_equal(left.segments == 0, (found.segments == 0) | (found.segments == 2))
    np.testing.assert_array_equal(left.segments == 2, found.segments == 3)


def test_a_segment_without_a_pixel_is_not_written() -> None:
    labels = LabelSet(("cat", "sky"))
    found = PanopticPrediction(torch.full((2, 3), 2, dtype=torch.int32), torch.tensor([0, 1]), torch.ones(2))
    (record,) = found.to_coco(7, labels)
    assert record["segments_info"] == [{"id": 2, "category_id": 2, "score": 1.0, "area": 6}]


@pytest.mark.real_data
def test_real_segments_have_the_areas_of_the_json(real_data: Path) -> None:
    folder = real_data / "coco_panoptic"
    source = CocoSource(images=str(folder / "images"), panoptic=str(folder / "panoptic.json"), tasks=["panoptic"])
    truth = {
        a["image_id"]: a["segments_info"] for a in json.loads((folder / "panoptic.json").read_text())["annotations"]
    }
    crowds = 0
    for index in range(len(source)):
        sample = source.load(index, ["panoptic"])
        target = sample.targets["panoptic"]
        areas = np.bincount(target.segments.numpy().ravel(), minlength=len(target) + 1)[1:]
        expected = {s["id"]: (s["area"], s["category_id"], s["iscrowd"]) for s in truth[sample.info.id]}
        ids = source.labels["panoptic"].ids
        rows = zip(target.ids.tolist(), areas.tolist(), target.labels.tolist(), target.crowd.tolist())
        assert {i: (area, ids[label], int(crowd)) for i, area, label, crowd in rows} == expected
        crowds += int(target.crowd.sum())
    assert crowds == 2
