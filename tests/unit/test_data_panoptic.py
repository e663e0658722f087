"""Panoptic targets: read from COCO's format, moved with their image, and kept in step with the other tasks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from visionkit.layers.segments import count_pixels, extents, from_rgb, renumber, runs, to_rgb
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


def edit(files: dict[str, str], change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(files["panoptic"])
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


SEGMENTS: list[dict[str, object]] = [{"id": 3, "category_id": 9}, {"id": 300, "category_id": 5, "iscrowd": 1}]
IDS = np.repeat(np.array([[0, 3, 300, 3]], np.int32), 4, 0)


@pytest.mark.parametrize(("isthing", "expected"), [("0", False), (0, False), (False, False), ("1", True), (1.0, True)])
def test_things_and_crowds_in_any_spelling(tmp_path: Path, isthing: object, expected: bool) -> None:
    files = a_data_set(tmp_path, SEGMENTS, IDS)

    def change(data: dict[str, Any]) -> None:
        data["categories"][1]["isthing"] = isthing
        for segment in data["annotations"][0]["segments_info"]:
            segment |= {"id": str(segment["id"]), "category_id": float(segment["category_id"]), "iscrowd": isthing}

    edit(files, change)
    source = CocoSource(**files)
    assert source.labels["panoptic"].things == (True, expected)
    target = source.load(0, ["panoptic"]).targets["panoptic"]
    assert (target.ids.tolist(), target.labels.tolist()) == ([3, 300], [1, 0])
    assert target.crowd.tolist() == [expected, expected]


def test_a_category_without_isthing_is_a_thing_and_a_png_is_named_after_its_image(tmp_path: Path) -> None:
    files = a_data_set(tmp_path, SEGMENTS, IDS)
    edit(files, lambda data: (data["categories"][1].pop("isthing"), data["annotations"][0].pop("file_name")))
    source = CocoSource(**files)
    assert source.labels["panoptic"].things == (True, True)
    assert len(source.load(0, ["panoptic"]).targets["panoptic"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["annotations"][0]["segments_info"][0].update(id=0),
            "segment number 1 of image 7: 'id' must be from 1",
        ),
        (lambda d: d["annotations"][0]["segments_info"][0].update(id=300), "image 7 has two segments with the ID 300"),
        (
            lambda d: d["annotations"][0]["segments_info"][1].update(iscrowd="no"),
            "of image 7: 'iscrowd' must be 0 or 1",
        ),
        (lambda d: d["annotations"][0]["segments_info"][1].pop("category_id"), "300 of image 7 has no 'category_id'"),
        (
            lambda d: d["annotations"][0].update(segments_info=None),
            "'segments_info' must be a list of segments, not null",
        ),
        (
            lambda d: d["annotations"][0].update(image_id=8),
            "annotation number 1 is of image 8, which is not in the list",
        ),
        (lambda d: d["annotations"].append(d["annotations"][0]), "image 7 has two panoptic annotations"),
        (lambda d: d["annotations"][0].update(file_name="../7.png"), "'../7.png' leads out of the folder"),
        (lambda d: d["images"].append(d["images"][0]), "two images have the ID 7"),
        (lambda d: d["categories"][0].update(name="sky"), "the categories 5 and 9 have the same name 'sky'"),
        (
            lambda d: d["annotations"][0].update(file_name="8.png"),
            r"panoptic/8.png: no such file: .* \(1 of 1 PNGs are",
        ),
        (lambda d: d.update(annotations=[]), "0 of 1 images of .*panoptic.json have a panoptic annotation"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    files = a_data_set(tmp_path, SEGMENTS, IDS)
    edit(files, change)
    with pytest.raises(DataError, match=message):
        CocoSource(**files)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (IDS.astype(np.uint8), "a panoptic PNG must be RGB with 8 bits per channel; this one is gray with 8 bits"),
        (to_rgb(IDS).astype(np.uint16), "must be RGB with 8 bits per channel; this one is RGB with 16 bits"),
        (to_rgb(IDS[:2]), r"is 2x4 \(height x width\); its image is 4x4"),
        (to_rgb(IDS + 1)[..., ::-1], r"segment 1 \(and 2 more\) is not in the segments_info of image 7"),
    ],
)
def test_pngs_that_contradict_the_json_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    files = a_data_set(tmp_path, SEGMENTS, IDS)
    cv2.imwrite(str(tmp_path / "panoptic" / "7.png"), pixels)
    with pytest.raises(DataError, match="panoptic/7.png: .*" + message):
        CocoSource(**files).load(0, ["panoptic"])


def test_on_error_skip_leaves_out_annotations_and_counts_them(tmp_path: Path) -> None:
    files = a_data_set(tmp_path, SEGMENTS, IDS)
    for name in ("images/8.png", "images/9.png"):
        (tmp_path / name).write_bytes((tmp_path / "images" / "7.png").read_bytes())

    def change(data: dict[str, Any]) -> None:
        data["images"] += [{**data["images"][0], "id": i, "file_name": f"{i}.png"} for i in (8, 9)]
        wrong = [{"id": 3, "category_id": 9, "area": None}, {"id": 4, "category_id": 6}]
        data["annotations"] += [
            {"image_id": 8, "segments_info": wrong},
            {"image_id": 9, "segments_info": SEGMENTS},  # which has no PNG
        ]

    edit(files, change)
    source = CocoSource(**files, on_error="skip")
    assert [len(source.targets(index, ["panoptic", "semantic"])) for index in range(3)] == [2, 0, 0]
    problems = "\n".join(source.problems())
    assert "1 left out: panoptic annotations that are wrong, of images (ID 8)" in problems
    assert "1 left out: panoptic annotations whose PNG is missing, of images (ID 9)" in problems
    assert "2 of 3 images have a panoptic annotation; the others have none (ID 8)" in problems


def test_ids_that_match_no_image_are_refused_and_missing_ones_are_counted(tmp_path: Path) -> None:
    """Boxes of one file and segments of another, whose IDs mean the same images only in part."""
    files = a_data_set(tmp_path, SEGMENTS, IDS)
    images = [{"id": i, "file_name": "7.png", "height": 4, "width": 4} for i in ("7", 107)]
    boxes = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    source = CocoSource(**files, annotations=str(path))
    assert (
        "panoptic.json: 1 of 2 images have a panoptic annotation; the others have none (ID 107)" in source.problems()[0]
    )
    assert [len(source.targets(index, ["panoptic"])) for index in range(2)] == [1, 0]
    path.write_text(json.dumps(boxes | {"images": images[1:]}))
    with pytest.raises(DataError, match=r"0 of 1 images of .*boxes.json have .*are 107; .*have 7"):
        CocoSource(**files, annotations=str(path))
    assert list(CocoSource(**files, annotations=str(path), tasks=["boxes"]).tasks) == ["boxes"]


def test_areas_and_extents_of_segments() -> None:
    segments = np.array([[0, 3, 3, 0], [1, 3, 0, 1], [1, 1, 1, 1]], np.int32)
    areas, boxes = extents(segments, 4)
    assert areas.tolist() == [6, 0, 3, 0] == count_pixels(segments, np.array([1, 2, 3, 4])).tolist()
    assert boxes.tolist() == [[0, 1, 4, 2], [0, 0, 0, 0], [1, 0, 2, 2], [0, 0, 0, 0]]


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
