"""The COCO source reads what pycocotools and PIL read, and every mistake in a file is one clear line."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as codec
from pycocotools.coco import COCO

from visionkit.coco.categories import flip_pairs_by_name
from visionkit.data.coco import CocoSource
from visionkit.errors import DataError
from visionkit.types import IGNORE

HEIGHT, WIDTH = 40, 60


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    code = codec.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def a_dataset() -> dict[str, Any]:
    """Three images: polygon, crowd and run lengths with keypoints; one object; none."""
    keypoints = ["nose", "left_ear", "right_ear"]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (7, 8, 9)],
        "categories": [
            {"id": 3, "name": "cat", "keypoints": keypoints, "skeleton": [[1, 2], [1, 3]]},
            {"id": 11, "name": "rock"},
        ],
        "annotations": [
            {"id": 101, "image_id": 8, "category_id": 11, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0,
             "segmentation": compressed(rectangle(1, 2, 4, 6))},
            {"id": 102, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 15], "area": 210.5, "iscrowd": 0,
             "segmentation": [[10, 10, 30, 10, 30, 25, 12, 25], [40, 30, 50, 30, 50, 35]],
             "keypoints": [11, 12, 2, 20, 14, 1, 0, 0, 0], "num_keypoints": 2},
            {"id": 103, "image_id": 7, "category_id": 3, "bbox": [0, 30, 60, 10], "area": 600, "iscrowd": 1,
             "segmentation": uncompressed(rectangle(0, 30, 60, 40)), "keypoints": [0] * 9, "num_keypoints": 0},
        ],
    }  # fmt: skip


def write(folder: Path, data: dict[str, Any]) -> dict[str, str]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in (7, 8, 9):
        cv2.imwrite(str(images / f"{i}.png"), rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    return {"images": str(images), "annotations": str(path)}


def test_targets_equal_pycocotools(tmp_path: Path) -> None:
    files = write(tmp_path, a_dataset())
    source = CocoSource(**files)
    assert list(source.tasks) == ["boxes", "masks", "keypoints"]
    coco = COCO(files["annotations"])
    for index, image in enumerate((7, 8, 9)):
        sample = source.load(index, source.tasks)
        target = sample.targets["boxes"]
        assert sample.targets["masks"] is target
        theirs = coco.loadAnns(coco.getAnnIds(imgIds=image))
        assert target.ids.tolist() == [a["id"] for a in theirs]
        assert [source.labels["boxes"].ids[v] for v in target.labels] == [a["category_id"] for a in theirs]
        assert target.crowd.tolist() == [bool(a["iscrowd"]) for a in theirs]
        assert target.areas.tolist() == [a["area"] for a in theirs]
        for mine, entry in zip(target.masks.dense(), theirs):
            np.testing.assert_array_equal(mine.numpy(), coco.annToMask(entry))
        for mine, entry in zip(target.boxes, theirs):
            x, y, w, h = entry["bbox"]
            assert mine.tolist() == [x, y, x + w, y + h]


def test_only_the_tasks_asked_for_are_decoded(tmp_path: Path) -> None:
    source = CocoSource(**write(tmp_path, a_dataset()))
    target = source.load(0, ["boxes"]).targets["boxes"]
    assert target.masks is None
    assert target.keypoints is None
    assert source.load(0, []).targets == {}
    only = CocoSource(**write(tmp_path, a_dataset()), tasks=["boxes"])
    assert list(only.tasks) == ["boxes"]


def test_keypoints_keep_visibility_names_skeleton_and_mirror_pairs(tmp_path: Path) -> None:
    source = CocoSource(**write(tmp_path, a_dataset()))
    labels = source.labels["keypoints"]
    assert labels.names == ("cat",), "a rock has no keypoints"
    assert labels.keypoints == ("nose", "left_ear", "right_ear")
    assert labels.skeleton == ((0, 1), (0, 2))
    assert labels.swaps == ((1, 2),)
    sample = source.load(0, ["keypoints"])
    assert sample.swaps == ((1, 2),)
    assert sample.targets["keypoints"].keypoints[0].tolist() == [[11, 12, 2], [20, 14, 1], [0, 0, 0]]
    assert not sample.targets["keypoints"].keypoints[1].any()
    assert len(source.load(1, ["boxes", "keypoints"]).targets["boxes"]) == 1
    assert len(source.load(1, ["boxes", "keypoints"]).targets["keypoints"]) == 0


def test_categories_with_different_keypoints_share_one_list(tmp_path: Path) -> None:
    data = a_dataset()
    data["categories"][1] |= {"keypoints": ["right_ear", "tail"], "skeleton": [[1, 2]]}
    data["annotations"][0] |= {"keypoints": [1, 2, 2, 3, 4, 1]}
    source = CocoSource(**write(tmp_path, data))
    assert source.labels["keypoints"].keypoints == ("nose", "left_ear", "right_ear", "tail")
    assert source.labels["keypoints"].skeleton == ((0, 1), (0, 2), (2, 3))
    mine = source.load(1, ["keypoints"]).targets["keypoints"].keypoints[0]
    assert mine.tolist() == [[0, 0, 0], [0, 0, 0], [1, 2, 2], [3, 4, 1]]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["nose", "left_eye", "right_eye"], ((1, 2),)),
        (["snout", "leftear", "rightear", "tailbase"], ((1, 2),)),
        (["l_hip", "r_hip", "hip_L", "hip_R"], ((0, 1), (2, 3))),
        (["LeftKnee", "RightKnee", "eye.l", "eye.r"], ((0, 1), (2, 3))),
        (["left_eye", "nose", "tail", "ball"], ()),
    ],
)
def test_mirror_pairs_come_from_names(names: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    assert flip_pairs_by_name(names) == pairs


def test_an_image_without_objects_is_annotated_and_empty(tmp_path: Path) -> None:
    target = CocoSource(**write(tmp_path, a_dataset())).load(2, ["boxes", "masks", "keypoints"]).targets["boxes"]
    assert len(target) == 0
    assert target.masks.dense().shape == (0, HEIGHT, WIDTH)
    assert target.keypoints.shape == (0, 3, 3)


def test_files_with_boxes_only_or_with_empty_segmentations_hold_no_masks(tmp_path: Path) -> None:
    data = a_dataset()
    del data["annotations"][0]["segmentation"]
    for entry in data["annotations"][1:]:
        entry["segmentation"] = []
    files = write(tmp_path, data)
    assert list(CocoSource(**files).tasks) == ["boxes", "keypoints"]
    with pytest.raises(DataError, match=r"annotations\.json: has no annotations for the task 'masks' \(it has: boxes"):
        CocoSource(**files, tasks=["masks"])


def change(entry: int, **values: Any) -> dict[str, Any]:
    data = a_dataset()
    data["annotations"][entry] |= values
    return data


def with_images(*images: dict[str, Any]) -> dict[str, Any]:
    data = a_dataset()
    for at, image in enumerate(images):
        data["images"][at] |= image
    return data


def without(entry: int, key: str) -> dict[str, Any]:
    data = a_dataset()
    del data["annotations"][entry][key]
    return data


NEVER = {"size": [HEIGHT, WIDTH], "counts": [5]}

WRONG = {
    "category": (change(0, category_id=99), r"annotation 101 has the category_id 99, .* \(3, 11\)", True),
    "absent image": (change(1, image_id=1), r"annotation 102 has the image_id 1, which is not in 'images'", True),
    "keypoints": (change(1, keypoints=[1, 2, 2]), r"annotation 102 has 3 numbers in 'keypoints'; .* so 9", True),
    "keypoint text": (change(1, keypoints=["a"] * 9), r"annotation 102: .*'keypoints' must be a number", True),
    "box text": (change(1, bbox=["a", 2, 3, 4]), r"annotation 102: .*'bbox' must be a number, not 'a'", True),
    "visibility": (change(1, keypoints=[1, 2, 3] * 3), r"annotation 102 has a keypoint with the visibility 3", True),
    "zero area": (change(1, segmentation=[[5, 5, 9, 9, 5, 5]]), r"annotation 102 .*'segmentation' has zero area", True),
    "no points": (change(1, segmentation=[[5, 5, 9, 9]]), r"annotation 102 .*'segmentation' has zero area", True),
    "empty runs": (
        change(0, segmentation=compressed(rectangle(0, 0, 0, 0))), r"annotation 101 .* has zero area", True
    ),
    "no box": (change(1, bbox=[1, 2, 3]), r"annotation 102: 'bbox' must be \[left, .*\], not \[1, 2, 3\]", True),
    "not finite": (change(1, bbox=[1, 2, float("nan"), 3]), r"'bbox' must be a finite number, not nan", True),
    "odd polygon": (change(1, segmentation=[[1] * 7]), r"annotation 102 .*has a polygon with an odd number", True),
    "runs": (change(2, segmentation=NEVER), r"annotation 103 .*add up to 5", True),
    "text": (change(2, segmentation=[["a"] * 6]), r"annotation 103: .*coordinate must be a number, not 'a'", True),
    "no category": (without(0, "category_id"), r"annotation 101 has no 'category_id'", False),
    "no id": (without(0, "id"), r"annotation without an ID has no 'id'", False),
    "annotation twice": (change(1, id=101), r"two annotations have the ID 101", False),
    "image twice": (with_images({}, {"id": 7}), r"two images have the ID 7", False),
    "missing file": (with_images({"file_name": "gone.png"}), r"image 7: no such file .*gone\.png \(1 of 3", True),
    "up": (with_images({"file_name": "../../7.png"}), r"file name '\.\./\.\./7\.png' leads out of the folder", False),
    "absolute": (with_images({"file_name": "/etc/passwd"}), r"file name '/etc/passwd' leads out of", False),
    "long": (with_images({"file_name": "x/" * 600}), r"a file name has 1,200 characters", False),
    "no list": ({"images": [], "categories": []}, r"the list 'annotations' is missing", False),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_one_clear_line(case: str, tmp_path: Path) -> None:
    data, message, can_skip = WRONG[case]
    files = write(tmp_path, copy.deepcopy(data))
    with pytest.raises(DataError, match=message) as caught:
        CocoSource(**files)
    assert str(caught.value).startswith(files["annotations"])
    assert "\n" not in str(caught.value)
    if can_skip:
        source = CocoSource(**files, on_error="skip")
        assert any("1 left out" in line for line in source.problems())
        left = sum(len(source.load(i, ["boxes"]).targets["boxes"]) for i in range(len(source)))
        assert left == (1 if case == "missing file" else 2)
        truth = source.coco_ground_truth()
        assert truth is not None
        assert len(truth) == left
        assert len(truth.images) == len(source)


def test_missing_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        CocoSource(images=str(tmp_path), annotations=str(tmp_path / "none.json"))
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"broken\.json:1: not valid JSON"):
        CocoSource(images=str(tmp_path), annotations=str(tmp_path / "broken.json"))
    with pytest.raises(DataError, match="no such folder of images"):
        CocoSource(images=str(tmp_path / "none"), annotations="")


def test_boxes_are_clipped_and_counted_and_those_without_area_left_out(tmp_path: Path) -> None:
    data = a_dataset()
    data["annotations"][0]["bbox"] = [50, 30, 20, 20]
    data["annotations"][1]["bbox"] = [70, 0, 10, 10]
    data["annotations"][2]["bbox"] = [0, 0, 0, 5]
    source = CocoSource(**write(tmp_path, data))
    assert source.load(1, ["boxes"]).targets["boxes"].boxes.tolist() == [[50, 30, 60, 40]]
    assert len(source.load(0, ["boxes"]).targets["boxes"]) == 0
    clipped, empty = (line for line in source.problems() if " boxes " in line)
    assert "1 boxes reach outside their image: clipped (ID 101)" in clipped
    assert "2 boxes have no area inside their image: left out (ID 102, 103)" in empty
    truth = source.coco_ground_truth()
    assert truth is not None
    assert truth.boxes.tolist() == [entry["bbox"] for entry in data["annotations"]], "evaluators are given all boxes"


def test_missing_boxes_and_areas_come_from_the_masks(tmp_path: Path) -> None:
    data = a_dataset()
    for entry in data["annotations"]:
        del entry["bbox"], entry["area"]
    source = CocoSource(**write(tmp_path, data))
    target = source.load(0, ["masks"]).targets["masks"]
    assert target.boxes.tolist() == [[10, 10, 50, 35], [0, 30, 60, 40]]
    theirs = codec.merge(codec.frPyObjects(a_dataset()["annotations"][1]["segmentation"], HEIGHT, WIDTH))
    assert target.areas.tolist() == [codec.area(theirs), 600]
    assert source.load(1, ["masks"]).targets["masks"].boxes.tolist() == [[1, 2, 4, 6]]


def test_many_run_lengths_in_one_file(tmp_path: Path) -> None:
    data = a_dataset()
    data["annotations"] = [data["annotations"][0] | {"id": i, "area": None} for i in range(1, 401)]
    source = CocoSource(**write(tmp_path, data))
    assert source.load(1, ["masks"]).targets["masks"].areas.tolist() == [12.0] * 400


def test_a_source_is_small_to_hand_to_workers(tmp_path: Path) -> None:
    source = CocoSource(**write(tmp_path, a_dataset()))
    again = pickle.loads(pickle.dumps(source))
    masks, again_masks = (own.load(0, ["masks"]).targets["masks"].masks.dense() for own in (source, again))
    assert torch.equal(masks, again_masks)


# -- image files ------------------------------------------------------------------------------------------------------


def test_an_image_of_another_size_than_annotated_is_an_error(tmp_path: Path) -> None:
    data = a_dataset()
    data["images"][1]["height"] = HEIGHT + 1
    del data["annotations"][0]["segmentation"]
    source = CocoSource(**write(tmp_path, data), tasks=["boxes"])
    with pytest.raises(DataError, match=r"8\.png: is 40x60 \(height x width\), but .*annotations\.json says 41x60"):
        source.load(1, ["boxes"])


# -- panoptic ---------------------------------------------------------------------------------------------------------


def a_panoptic_dataset(folder: Path) -> dict[str, str]:
    files = write(folder, a_dataset())
    (folder / "panoptic").mkdir()
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    ids[:, 20:], ids[10:20] = 70_000, 300
    Image.fromarray(np.stack((ids % 256, ids // 256 % 256, ids // 65536), 2).astype(np.uint8)).save(
        folder / "panoptic" / "7.png"
    )
    data = {
        "images": a_dataset()["images"],
        "categories": [
            {"id": 3, "name": "cat", "isthing": 1, "color": [1, 2, 3]},
            {"id": 40, "name": "sea", "isthing": 0, "color": [4, 5, 6]},
        ],
        "annotations": [{
            "image_id": 7, "file_name": "7.png",
            "segments_info": [{"id": 70_000, "category_id": 40}, {"id": 300, "category_id": 3}],
        }],
    }  # fmt: skip
    (folder / "panoptic.json").write_text(json.dumps(data))
    return files | {"panoptic": str(folder / "panoptic.json")}


def test_panoptic_png_becomes_a_semantic_map(tmp_path: Path) -> None:
    files = a_panoptic_dataset(tmp_path)
    for arguments in (files, {k: v for k, v in files.items() if k != "annotations"}):
        source = CocoSource(**arguments)
        labels = source.labels["semantic"]
        assert labels.names == ("cat", "sea")
        assert labels.things == (True, False)
        assert labels.colors == ((1, 2, 3), (4, 5, 6))
        expected = np.full((HEIGHT, WIDTH), IGNORE)
        expected[:, 20:], expected[10:20] = 1, 0
        np.testing.assert_array_equal(source.load(0, ["semantic"]).targets["semantic"].labels.numpy(), expected)
        assert "semantic" not in source.load(1, ["semantic"]).targets  # not annotated, which is not the same as empty
        assert len(source) == 3


def test_panoptic_mistakes(tmp_path: Path) -> None:
    files = a_panoptic_dataset(tmp_path)
    path = tmp_path / "panoptic.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["segments_info"][0]["id"] = 5
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"7\.png: segment 70000 is not in the segments_info of image 7"):
        CocoSource(**files).load(0, ["semantic"])
    data["annotations"][0]["segments_info"][0]["category_id"] = 77
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="segment 5 of image 7 has the category_id 77, which is not among"):
        CocoSource(**files)


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_coco_files_load_whole_and_equal_pycocotools(real_data: Path) -> None:
    for name in ("instances.json", "person_keypoints.json"):
        folder = real_data / "coco_instances_keypoints"
        source = CocoSource(images=str(folder / "images"), annotations=str(folder / name))
        coco = COCO(str(folder / name))
        assert len(source) == len(coco.imgs)
        crowds = 0
        for index in range(len(source)):
            sample = source.load(index, source.tasks)
            target = sample.targets["masks"]
            theirs = coco.loadAnns(coco.getAnnIds(imgIds=sample.info.id))
            assert target.ids.tolist() == [a["id"] for a in theirs]
            crowds += int(target.crowd.sum())
            for mine, entry in list(zip(target.masks.dense(), theirs))[:3]:
                np.testing.assert_array_equal(mine.numpy(), coco.annToMask(entry))
            if target.keypoints is not None:
                expected = np.array([a["keypoints"] for a in theirs]).reshape(-1, 17, 3)
                np.testing.assert_array_equal(target.keypoints.numpy(), expected)
        assert crowds == {"instances.json": 8, "person_keypoints.json": 4}[name]


@pytest.mark.real_data
def test_real_panoptic_files_load_whole(real_data: Path) -> None:
    folder = real_data / "coco_panoptic"
    source = CocoSource(images=str(folder / "images"), panoptic=str(folder / "panoptic.json"))
    truth = json.loads((folder / "panoptic.json").read_text())
    segments = {a["image_id"]: a for a in truth["annotations"]}
    for index in range(len(source)):
        sample = source.load(index, ["semantic"])
        areas = np.bincount(sample.targets["semantic"].labels.numpy().ravel(), minlength=256)
        expected = np.zeros(256, np.int64)
        for segment in segments[sample.info.id]["segments_info"]:
            expected[source.labels["semantic"].ids.index(segment["category_id"])] += segment["area"]
        np.testing.assert_array_equal(areas[:IGNORE], expected[:IGNORE])
