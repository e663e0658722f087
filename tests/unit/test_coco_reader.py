"""The reader of COCO files: what it accepts, everything downstream understands; what it refuses is one clear line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codec

from visionkit.coco.annotations import CocoAnnotations, parse_annotations, read_annotations
from visionkit.coco.categories import flip_pairs_by_name
from visionkit.coco.report import Report
from visionkit.coco.results import read_results
from visionkit.coco.run_lengths import measure
from visionkit.coco.segmentation import checked_rle
from visionkit.coco.values import load_json
from visionkit.errors import DataError
from visionkit.evaluate import evaluate_coco

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def dataset(**changes: Any) -> dict[str, Any]:
    """Two images with an object each; ``changes`` replace fields of the first object (``...`` removes one)."""
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 48} for i in (1, 2)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
             "segmentation": copy.deepcopy(SQUARE)} for i in (1, 2)
        ],
    }  # fmt: skip
    first: dict[str, Any] = data["annotations"][0]  # type: ignore[assignment]
    first.update(changes)
    for key in [key for key, value in first.items() if value is ...]:
        del first[key]
    return data


def read(tmp_path: Path, data: Any, **options: Any) -> CocoAnnotations:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    return read_annotations(path, **options)


def same(a: CocoAnnotations, b: CocoAnnotations) -> bool:
    columns = ("image_rows", "labels", "crowd", "areas", "boxes", "num_keypoints")
    masks = all(a.masks.encode(row) == b.masks.encode(row) for row in range(len(a)))
    return masks and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in columns)


@pytest.mark.parametrize(
    "changes",
    [
        {"area": "400"},
        {"bbox": ["10", 10, "20.0", 20]},
        {"iscrowd": "0"},
        {"iscrowd": False},
        {"iscrowd": ...},
        {"image_id": "1"},
        {"category_id": "1"},
        {"category_id": 1.0},
        {"segmentation": [["10", 10, 30, 10, 30, 30, 10, 30]]},
        {"bbox": ..., "area": None},
        {"area": -1},
        {"area": ...},
    ],
)
def test_unusual_spellings_mean_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    assert same(read(tmp_path, dataset(**changes)), read(tmp_path, dataset()))


def test_sizes_and_ids_may_be_strings(tmp_path: Path) -> None:
    data = dataset()
    for image in data["images"]:
        image |= {"height": "64", "width": 48.0, "id": str(image["id"])}
    for category in data["categories"]:
        category["id"] = str(category["id"])
    for entry in data["annotations"]:
        entry["id"] = f"uuid-{entry['id']}"
    out = read(tmp_path, data)
    assert same(out, read(tmp_path, dataset()))
    assert out.ids.tolist() == [1, 2], "strings are numbered"


def test_ids_of_any_size(tmp_path: Path) -> None:
    data = dataset(id=2**63)
    assert same(read(tmp_path, data), read(tmp_path, dataset()))


@pytest.mark.parametrize("key", ["name", "id"])
def test_halves_of_characters_are_refused(key: str, tmp_path: Path) -> None:
    data = dataset()
    data["categories"][0][key] = "\ud800"
    with pytest.raises(DataError, match=f"'{key}' must be valid Unicode, not "):
        read(tmp_path, data)


@pytest.mark.parametrize("text", ["1", "true", "True", "1.0", 1, True])
def test_crowds_as_text(text: Any, tmp_path: Path) -> None:
    assert read(tmp_path, dataset(iscrowd=text)).crowd.tolist() == [True, False]


def test_numbers_of_keypoints_are_checked(tmp_path: Path) -> None:
    data = dataset(keypoints=[1, 2, 2], num_keypoints=-1)
    data["categories"][0]["keypoints"] = ["a"]
    with pytest.raises(DataError, match="annotation 1: 'num_keypoints' must be a whole number of 0 or more, not -1"):
        read(tmp_path, data)


FAR = [[10, 10, 2e8, 10, 30, 30]]
REFUSED = {
    "crowd": ({"iscrowd": "maybe"}, r"annotation 1: 'iscrowd' must be 0 or 1, not 'maybe' \(a string\)"),
    "crowd number": ({"iscrowd": 2}, r"annotation 1: 'iscrowd' must be 0 or 1, not 2 \(a number\)"),
    "area": ({"area": "large"}, r"annotation 1: 'area' must be a number, not 'large' \(a string\)"),
    "area list": ({"area": [400]}, r"annotation 1: 'area' must be a number, not a list of 1"),
    "NaN area": ({"area": float("nan")}, r"annotation 1: 'area' must be a finite number"),
    "box": ({"bbox": [1, 2, 3]}, r"annotation 1: 'bbox' must be \[left, top, width, height\], not \[1, 2, 3\]"),
    "infinite box": (
        {"bbox": [1, 2, float("inf"), 3]},
        r"annotation 1: a coordinate of 'bbox' must be a finite number",
    ),
    "huge box": ({"bbox": [1e300, 2, 3, 4]}, r"annotation 1 has the bbox \[1e\+300, .*at most 1e\+09"),
    "nothing": ({"bbox": ..., "segmentation": ...}, r"annotation 1 has no 'bbox' .* and no mask to measure it from"),
    "NaN": (
        {"segmentation": [[1, 2, float("nan"), 4, 5, 6]]},
        r"annotation 1: 'segmentation': .* finite number, not nan",
    ),
    "infinity": ({"segmentation": [[1, 2, float("-inf"), 4, 5, 6]]}, r"annotation 1: 'segmentation': .* finite number"),
    "far": ({"segmentation": FAR}, r"annotation 1 .*: the coordinate 200000000.0 lies far outside the image of 64x48"),
    "flat": ({"segmentation": SQUARE[0]}, r"annotation 1: 'segmentation' must be a list of polygons .* one flat list"),
    "pairs": (
        {"segmentation": [[1, 2], [3, 4], [5, 6]]},
        r"annotation 1 .*'segmentation' .* a list of points \[x, y\]",
    ),
    "deep": ({"segmentation": [SQUARE]}, r"annotation 1: 'segmentation' .* nested one level too deep"),
    "name": ({"segmentation": "mask.png"}, r"annotation 1: 'segmentation' .* not 'mask.png' \(a string\)"),
    "number": ({"segmentation": 5}, r"annotation 1: 'segmentation' .* not 5 \(a number\)"),
    "odd": (
        {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
        r"annotation 1 .* has a polygon with an odd number of coordinates",
    ),
    "size": ({"segmentation": {"size": [32, 24], "counts": [768]}}, r"annotation 1 .* is a mask of 32x24 .* is 64x48"),
    "sum": ({"segmentation": {"size": [64, 48], "counts": [5]}}, r"annotation 1 .*add up to 5, not to 64 x 48 = 3072"),
    "negative": (
        {"segmentation": {"size": [64, 48], "counts": [4000, -928]}},
        r"annotation 1 .*has a negative run length, -928",
    ),
    "bytes": ({"segmentation": {"size": [64, 48], "counts": "b'abc'"}}, r"annotation 1 .* Python's notation of bytes"),
    "cut": ({"segmentation": {"size": [64, 48], "counts": "T3o"}}, r"annotation 1 .* are not compressed run lengths"),
    "empty": ({"segmentation": {"size": [64, 48], "counts": [3072]}}, r"annotation 1 .*'segmentation' has zero area"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_entry_that_is_wrong_is_one_line_or_left_out(case: str, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, dataset(**changes))
    assert str(caught.value).startswith(f"{tmp_path}/annotations.json: ")
    assert "\n" not in str(caught.value)
    report = Report("annotations.json", "skip")
    assert len(read(tmp_path, dataset(**changes), report=report)) == 1
    (line,) = report.lines
    assert line.startswith("annotations.json: 1 left out: ")
    assert line.endswith("(ID 1)")


@pytest.mark.parametrize("case", REFUSED)
def test_results_are_checked_like_annotations(case: str, tmp_path: Path) -> None:
    changes, _ = REFUSED[case]
    if not {"bbox", "segmentation"} & changes.keys() or ... in changes.values():
        return
    truth = read(tmp_path, dataset())
    detection = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]} | changes
    kind = "segm" if "segmentation" in changes else "bbox"
    path = tmp_path / "results.json"
    path.write_text(json.dumps([detection | {"bbox": [1, 2, 3, 4], "segmentation": SQUARE}, detection]))
    if case == "empty":  # a detector may predict an empty mask
        assert len(read_results(path, truth, "segm")) == 2
        return
    with pytest.raises(DataError, match=r"results\.json: detection number 2"):
        read_results(path, truth, kind).columns()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"score": "\ud800"}, "must be a number, not "),
     ({"segmentation": {"size": [64, 10**20], "counts": "P"}}, "'size' must be a whole number")],
)  # fmt: skip
def test_odd_values_in_results(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Python's json reads and writes them, other decoders don't."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": SQUARE} | change]))
    with pytest.raises(DataError, match=message):
        evaluate_coco(read(tmp_path, dataset()), path, "segm")


def test_images_that_are_wrong(tmp_path: Path) -> None:
    for key, value, message in (
        ("height", 64.6, r"image 1: 'height' must be a whole number, not 64.6 \(a number\)"),
        ("width", -5, r"image 1: 'width' must be a whole number of 0 or more, not -5"),
        ("width", 2**40, r"image 1 is 64x1099511627776 \(height x width\); at most"),
        ("file_name", 7, r"image 1: 'file_name' must be a string that is not empty, not 7"),
    ):
        data = dataset()
        data["images"][0][key] = value
        with pytest.raises(DataError, match=message):
            read(tmp_path, data)
        report = Report("annotations.json", "skip")
        out = read(tmp_path, data, report=report)
        assert (out.images.ids, len(out)) == ([2], 1)
        assert report.lines == [
            "annotations.json: 1 left out: images with fields of the wrong type or out of range (ID 1)"
        ]


def test_files_that_are_not_coco_files(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for content, message in (
        (b"", r"file\.json:1: not valid JSON"),
        (b'{"images": [\n1,]}', r"file\.json:2: not valid JSON"),
        (b"\xff\xfe{}", r"file\.json: not valid UTF-8 \(byte 0xff at offset 0\)"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "the list 'images' is missing: the file holds an empty list"),
        (b'{"images": {}, "annotations": [], "categories": []}', "the list 'images' is an empty object"),
        (b'{"images": [], "annotations": [3], "categories": []}', "an entry of 'annotations' must be an object"),
        (b'{"images": [null], "annotations": [], "categories": []}', "entry 0 of 'images' must be an object, not null"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_annotations(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is a folder"):
        load_json(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(dataset()).encode())
    assert len(read_annotations(path)) == 2, "a byte order mark is skipped"


CATEGORIES = {
    "twice": ({"keypoints": ["a", "b", "a"]}, "two keypoints have the name 'a'"),
    "no name": (
        {"keypoints": ["a", 3]},
        r"the name of keypoint 2 must be a string that is not empty, not 3 \(a number\)",
    ),
    "sigmas": ({"keypoints": ["a", "b"], "sigmas": [0.1]}, "1 sigmas for 2 keypoints"),
    "sigma": ({"keypoints": ["a"], "sigmas": [0]}, "'sigmas' must be above 0"),
    "skeleton": (
        {"keypoints": ["a", "b"], "skeleton": [[1, 3]]},
        "'skeleton' must use .* numbers from 1 to 2; it has 3",
    ),
    "limb": ({"keypoints": ["a", "b"], "skeleton": [["a", "c"]]}, r"'skeleton' must use .*; it has 'c' \(a string\)"),
    "not pairs": ({"keypoints": ["a", "b"], "skeleton": [1, 2]}, "'skeleton' must consist of pairs"),
    "isthing": ({"isthing": "no"}, "'isthing' must be 0 or 1, not 'no'"),
    "color": ({"color": [1, 2]}, r"'color' must be \[red, green, blue\], not a list of 2"),
}


@pytest.mark.parametrize("case", CATEGORIES)
def test_categories_that_are_wrong(case: str, tmp_path: Path) -> None:
    changes, message = CATEGORIES[case]
    data = dataset()
    data["categories"][0] |= changes
    with pytest.raises(DataError, match=rf"annotations\.json: category 1 \('red'\): {message}"):
        read(tmp_path, data)


def test_skeletons_and_flip_pairs_of_names(tmp_path: Path) -> None:
    data = dataset()
    names = ["nose", "eye1", "eye2"]
    data["categories"][0] |= {"keypoints": names, "skeleton": [["nose", "eye1"], [1, 3]], "flip_pairs": [["eye1", 3]]}
    category = read(tmp_path, data).categories[0]
    assert category.skeleton == ((0, 1), (0, 2))
    assert category.flip_pairs == ((1, 2),)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["Nose", "LEye", "REye", "LBigToe", "RBigToe"], ((1, 2), (3, 4))),
        (["eyeL", "eyeR", "lknee", "rknee"], ((0, 1), (2, 3))),
        (["L_Shoulder", "R_Shoulder", "elbow-left", "elbow-right"], ((0, 1), (2, 3))),
        (["Left Ear", "Right Ear", "LEFT PAW", "RIGHT PAW"], ((0, 1), (2, 3))),
        (["nose", "LEye", "tail"], ()),
    ],
)
def test_flip_pairs_by_name(names: list[str], pairs: tuple[tuple[int, int], ...]) -> None:
    assert flip_pairs_by_name(names) == pairs


def test_polygons_that_cross_themselves_have_the_area_of_their_pixels(tmp_path: Path) -> None:
    bow_tie = [[0, 0, 20, 20, 20, 0, 0, 20]]
    out = read(tmp_path, dataset(segmentation=bow_tie, area=...))
    assert out.areas[0] == codec.area(codec.merge(codec.frPyObjects(bow_tie, 64, 48))) > 100


def test_parts_of_two_points_are_left_out(tmp_path: Path) -> None:
    out = read(tmp_path, dataset(segmentation=[*SQUARE, [1, 1, 5, 5]]))
    assert out.masks.to_coco(0) == SQUARE
    assert "1 objects have polygons of one or two points" in out.report.lines[0]


def test_objects_without_a_mask_are_kept_and_reported(tmp_path: Path) -> None:
    for nothing in (None, [], [[]], {}, ...):
        out = read(tmp_path, dataset(segmentation=nothing))
        assert out.masks.kind.tolist() == [0, 1]
        assert "1 objects have no mask" in out.report.lines[0]


def test_nothing_about_masks_matters_where_boxes_are_read(tmp_path: Path) -> None:
    assert len(read(tmp_path, dataset(segmentation="mask.png"), parts=["boxes"])) == 2


def test_random_encodings_are_measured_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    masks = [
        (rng.random(rng.integers(1, 60, 2)) < rng.choice([0, 0.02, 0.3, 0.7, 1])).astype(np.uint8) for _ in range(400)
    ]
    encodings = [codec.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    totals, areas = measure(encodings)
    assert totals.tolist() == [mask.size for mask in masks]
    assert areas.tolist() == [int(mask.sum()) for mask in masks]
    totals, areas = measure([b"", b"b'abc'", b"oooooooooo", b"o", b"0@", b"\x01", b"oooooooooooooooo0", encodings[1]])
    assert totals.tolist() == [-1] * 7 + [masks[1].size]


def test_damaged_encodings_never_measure_as_whole() -> None:
    rng = np.random.default_rng(1)
    mask = (rng.random((40, 50)) < 0.4).astype(np.uint8)
    text = codec.encode(np.asfortranarray(mask))["counts"]
    cut = [text[:length] for length in range(len(text))]
    assert 2000 not in measure(cut)[0]


def test_any_form_of_segmentation_becomes_the_same_encoding() -> None:
    mask = codec.decode(codec.merge(codec.frPyObjects(SQUARE, 64, 48)))
    compressed = codec.encode(mask)
    edges = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0))
    runs = np.diff([0, *edges, mask.size]).tolist()
    text = compressed["counts"].decode()
    for form in (SQUARE, {"size": [64, 48], "counts": runs}, {"size": ["64", 48], "counts": text}, compressed):
        assert checked_rle(form, 64, 48, "mask") == compressed


def test_values_in_memory_are_checked_like_those_of_files() -> None:
    data = dataset(segmentation=[[1, 2, float("nan"), 4, 5, 6]])
    with pytest.raises(DataError, match=r"ground truth: annotation 1.* finite.*nan"):
        parse_annotations(data, "ground truth")
    data = dataset(area=np.float32(400), bbox=list(np.array([10, 10, 20, 20])), id=np.int64(1))
    assert same(parse_annotations(data, "a"), parse_annotations(dataset(), "a"))


def test_evaluation_understands_whatever_is_read(tmp_path: Path) -> None:
    """Every accepted spelling gives the metrics of the plain file, by files and in memory, with both backends."""
    results = [{"image_id": i, "category_id": i, "score": 0.5, "segmentation": SQUARE} for i in (1, 2)]
    expected = evaluate_coco(dataset(), results, "segm")
    spellings: list[dict[str, Any]] = [
        {}, {"area": "400"}, {"iscrowd": "0"}, {"bbox": ...}, {"segmentation": [*SQUARE, [1, 1]]}, {"id": "a"}
    ]  # fmt: skip
    for changes in spellings:
        path = tmp_path / "results.json"
        path.write_text(json.dumps(results))
        truth = tmp_path / "truth.json"
        truth.write_text(json.dumps(dataset(**changes)))
        for backend in ("fast", "pycocotools"):
            assert evaluate_coco(dataset(**changes), results, "segm", backend=backend) == expected  # type: ignore[arg-type]
            assert evaluate_coco(truth, path, "segm", backend=backend) == expected  # type: ignore[arg-type]


def test_detections_of_objects_without_a_mask_are_ignored(tmp_path: Path) -> None:
    results = [{"image_id": i, "category_id": i, "score": 0.5, "segmentation": SQUARE} for i in (1, 2)]
    metrics = evaluate_coco(dataset(segmentation=None), results, "segm", per_class=True)
    assert metrics["AP/blue"] == pytest.approx(1)
    assert metrics["AP/red"] == -1
    assert metrics["AP"] == pytest.approx(1)


def test_classes_of_one_name_are_told_apart() -> None:
    data = dataset()
    data["categories"][1]["name"] = "red"
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [10, 10, 20, 20]}]
    metrics = evaluate_coco(data, results, "bbox", per_class=True)
    assert (metrics["AP/red (ID 1)"], metrics["AP/red (ID 2)"]) == (pytest.approx(1), 0)


def test_sigmas_of_the_categories_count() -> None:
    data = dataset(keypoints=[15, 15, 2, 25, 25, 2], num_keypoints=2)
    del data["annotations"][1]
    data["categories"] = [{"id": 1, "name": "red", "keypoints": ["a", "b"]}]
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "keypoints": [18, 18, 1, 22, 22, 1]}]
    strict = evaluate_coco(data, results, "keypoints")["AP"]
    data["categories"][0]["sigmas"] = [0.4, 0.4]
    assert evaluate_coco(data, results, "keypoints")["AP"] > 0.9 > strict


def test_categories_with_different_keypoints_are_evaluated_in_one_list() -> None:
    data = dataset(keypoints=[15, 15, 2, 25, 25, 2], num_keypoints=2)
    data["annotations"][1] |= {"keypoints": [11, 12, 2, 15, 15, 1, 20, 20, 2], "num_keypoints": 3}
    data["categories"][0]["keypoints"] = ["nose", "tail"]
    data["categories"][1]["keypoints"] = ["ear", "nose", "paw"]
    results = [
        {"image_id": 1, "category_id": 1, "score": 0.5, "keypoints": [15, 15, 1, 25, 25, 1]},
        {"image_id": 2, "category_id": 2, "score": 0.5, "keypoints": [11, 12, 1, 15, 15, 1, 20, 20, 1]},
    ]
    for backend in ("fast", "pycocotools"):
        assert evaluate_coco(data, results, "keypoints", backend=backend)["AP"] == pytest.approx(1)  # type: ignore[arg-type]
