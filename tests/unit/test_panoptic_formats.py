"""Converters between panoptic formats: the same two images in all three, round trips, and what cannot be converted."""

import json

import cv2
import numpy as np
import pytest

from visionkit import rle
from visionkit.cli import main
from visionkit.data.panoptic_formats import FORMATS, convert
from visionkit.errors import DataError, UserError
from visionkit.layers.segments import from_rgb, to_rgb

CATEGORIES = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 200, "name": "sky", "isthing": 0}]
IMAGES = [
    {"id": 8, "file_name": "in/8.jpg", "height": 6, "width": 10},
    {"id": 5, "file_name": "5.jpg", "height": 4, "width": 4},
]


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels[..., ::-1])


def read_png(path):
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


@pytest.fixture
def coco(tmp_path):
    """Two images: void, two cats, a crowd of cats and a sky; and one that is all sky."""
    ids = np.zeros((6, 10), np.int32)
    ids[:2], ids[2:, :3], ids[3:, 4:6], ids[4:, 7:] = 70000, 513, 9, 4
    kinds = {4: (3, 1), 9: (3, 0), 513: (3, 0), 70000: (200, 0)}
    write_png(tmp_path / "pan" / "in/8.png", to_rgb(ids))
    write_png(tmp_path / "pan" / "5.png", to_rgb(np.full((4, 4), 1, np.int32)))
    infos = [{"id": i, "category_id": kind, "iscrowd": crowd} for i, (kind, crowd) in kinds.items()]
    annotations = [
        {"image_id": 8, "file_name": "in/8.png", "segments_info": infos},
        {"image_id": 5, "file_name": "5.png", "segments_info": [{"id": 1, "category_id": 200, "iscrowd": 0}]},
    ]
    data = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES, "licenses": [{"id": 1}]}
    (tmp_path / "pan.json").write_text(json.dumps(data))
    return tmp_path / "pan.json"


def content(file):
    """What a COCO panoptic set says, whatever the ids are: by image, mask -> category and crowd."""
    data = json.loads(file.read_text())
    out = {}
    for entry in data["annotations"]:
        ids = from_rgb(read_png(file.with_suffix("") / entry["file_name"]))
        assert set(np.unique(ids[ids > 0])) == {s["id"] for s in entry["segments_info"]}
        out[entry["image_id"]] = {
            (ids == s["id"]).tobytes(): (s["category_id"], s["iscrowd"]) for s in entry["segments_info"]
        }
    return out


def test_coco_to_two_channels(coco, tmp_path):
    assert convert("coco", "two-channel", str(coco), str(tmp_path / "two")) == 2
    pixels = read_png(tmp_path / "two" / "in/8.png")
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[5, 4].tolist() == [3, 0, 0]  # instances in the order of the file
    assert pixels[5, 0].tolist() == [3, 1, 0]
    assert pixels[5, 9].tolist() == [3, 255, 0]
    assert pixels[2, 9].tolist() == [0, 0, 0]


def test_coco_to_detections(coco, tmp_path):
    assert convert("coco", "detection", str(coco), str(tmp_path / "det.json")) == 2
    data = json.loads((tmp_path / "det.json").read_text())
    assert (data["images"], data["categories"], data["licenses"]) == (IMAGES, CATEGORIES, [{"id": 1}])
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3, 4, 5]
    cat = data["annotations"][1]
    assert (cat["image_id"], cat["category_id"], cat["area"], cat["bbox"], cat["iscrowd"]) == (8, 3, 6, [4, 3, 2, 3], 0)
    expected = np.zeros((6, 10), np.uint8)
    expected[3:, 4:6] = 1
    np.testing.assert_array_equal(rle.decode(rle.from_segmentation(cat["segmentation"], 6, 10)), expected)


def test_things_alone(coco, tmp_path):
    assert convert("coco", "detection", str(coco), str(tmp_path / "det.json"), things_only=True) == 2
    data = json.loads((tmp_path / "det.json").read_text())
    assert [a["category_id"] for a in data["annotations"]] == [3, 3, 3]
    assert data["categories"] == CATEGORIES[:1]
    with pytest.raises(UserError, match="only the format detection"):
        convert("coco", "coco", str(coco), str(tmp_path / "x.json"), things_only=True)


@pytest.mark.parametrize("middle", FORMATS)
def test_there_and_back(coco, tmp_path, middle):
    out = tmp_path / "m.json"
    if middle == "two-channel":
        convert("coco", middle, str(coco), str(tmp_path / "m"))
        out.write_text(json.dumps({"images": IMAGES, "categories": CATEGORIES}))
    else:
        convert("coco", middle, str(coco), str(out))
    assert convert(middle, "coco", str(out), str(tmp_path / "back.json")) == 2
    assert content(tmp_path / "back.json") == content(coco)


def test_polygons_are_read(tmp_path):
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]
    entry = {"id": 1, "image_id": 8, "category_id": 3, "segmentation": square}
    (tmp_path / "d.json").write_text(json.dumps({"images": IMAGES, "annotations": [entry], "categories": CATEGORIES}))
    assert convert("detection", "coco", str(tmp_path / "d.json"), str(tmp_path / "p.json")) == 2
    (first, second) = json.loads((tmp_path / "p.json").read_text())["annotations"]
    assert first["segments_info"] == [{"id": 1, "category_id": 3, "iscrowd": 0, "area": 12, "bbox": [2, 1, 4, 3]}]
    assert second["segments_info"] == []  # annotated, and all of it void


def test_detections_that_overlap_are_named(tmp_path):
    mask = np.ones((6, 10), np.uint8)
    code = {"size": [6, 10], "counts": rle.encode(mask)["counts"].decode()}
    entries = [{"id": i, "image_id": 8, "category_id": 3, "segmentation": code} for i in (41, 42)]
    (tmp_path / "d.json").write_text(json.dumps({"images": IMAGES, "annotations": entries, "categories": CATEGORIES}))
    with pytest.raises(DataError, match=r"d\.json: annotations 41 and 42 of image 8 overlap"):
        convert("detection", "coco", str(tmp_path / "d.json"), str(tmp_path / "p.json"))
    entries[1]["category_id"] = 33
    (tmp_path / "d.json").write_text(json.dumps({"images": IMAGES, "annotations": entries, "categories": CATEGORIES}))
    with pytest.raises(DataError, match=r"annotation 42 has category_id 33"):
        convert("detection", "coco", str(tmp_path / "d.json"), str(tmp_path / "p.json"))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 10], "counts": [30]}, r"is a mask of 3x10 \(height x width\), but its image is 6x10"),
        ({"size": [6, 10], "counts": [30]}, r"run lengths add up to 30, not to 6 x 10 = 60"),
        ({"size": [6, 10], "counts": "b'PPYo0'"}, "not compressed run lengths"),
        ({"what": 1}, "has no 'size'"),
        ([[2, 1, 6, 1, 6, 2e8]], "the coordinate 200000000.0 lies far outside"),
        ([[2, 1, 6, 1, 6, float("nan")]], "must be a finite number, not nan"),
        ([2, 1, 6, 1, 6, 4], "must be a list of polygons"),
        ([], "is empty"),
        (None, "is empty"),
    ],
)
def test_masks_that_no_codec_may_read_are_named(tmp_path, segmentation, message):
    entry = {"id": 1, "image_id": 8, "category_id": 3, "segmentation": segmentation}
    data = {"images": IMAGES, "annotations": [entry], "categories": CATEGORIES}
    (tmp_path / "d.json").write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"d\.json: the segmentation of annotation 1.*" + message):
        convert("detection", "coco", str(tmp_path / "d.json"), str(tmp_path / "p.json"))


def test_values_of_other_types_are_written_in_the_usual_ones(coco, tmp_path):
    expected = content(coco)
    data = json.loads(coco.read_text())
    data["categories"][1] |= {"id": "200", "isthing": "0"}
    data["images"][0] |= {"id": "8", "height": "6", "width": 10.0}
    for info in data["annotations"][0]["segments_info"]:
        info |= {"iscrowd": str(info["iscrowd"]), "category_id": float(info["category_id"])}
    coco.write_text(json.dumps(data))
    convert("coco", "coco", str(coco), str(tmp_path / "same.json"))
    assert content(tmp_path / "same.json") == expected
    written = json.loads((tmp_path / "same.json").read_text())
    assert (written["images"], written["categories"]) == (IMAGES, CATEGORIES)
    convert("coco", "detection", str(coco), str(tmp_path / "det.json"), things_only=True)
    assert [c["name"] for c in json.loads((tmp_path / "det.json").read_text())["categories"]] == ["cat"]


def test_maps_of_another_size_or_with_blue_are_named(coco, tmp_path):
    write_png(tmp_path / "two" / "in/8.png", np.full((6, 10, 3), (3, 1, 2), np.uint8))
    with pytest.raises(DataError, match=r"8\.png: the blue channel of a two-channel PNG must be 0; it holds 2"):
        convert("two-channel", "coco", str(coco), str(tmp_path / "x.json"), folder=str(tmp_path / "two"))
    write_png(tmp_path / "pan" / "in/8.png", np.zeros((5, 10, 3), np.uint8))
    with pytest.raises(DataError, match=r"8\.png: is 5x10 \(height x width\); its image is 6x10"):
        convert("coco", "detection", str(coco), str(tmp_path / "x.json"))


@pytest.mark.parametrize(("target", "out"), [("two-channel", "pan"), ("coco", "pan.json"), ("detection", "pan.json")])
def test_the_input_is_never_overwritten(coco, tmp_path, target, out):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    with pytest.raises(UserError, match="would overwrite what is read"):
        convert("coco", target, str(coco), str(tmp_path / out))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_what_one_channel_cannot_hold_is_an_error(tmp_path, coco):
    data = json.loads(coco.read_text())
    data["categories"][0]["id"] = 300
    for info in data["annotations"][0]["segments_info"][:3]:
        info["category_id"] = 300
    coco.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"image 8: category id 300 does not go into one channel"):
        convert("coco", "two-channel", str(coco), str(tmp_path / "two"))


def test_more_instances_than_one_channel_can_tell_apart(tmp_path):
    ids = np.arange(1, 257, dtype=np.int32).reshape(16, 16)
    write_png(tmp_path / "many" / "1.png", to_rgb(ids))
    infos = [{"id": i, "category_id": 3} for i in range(1, 257)]
    image = {"id": 1, "file_name": "1.jpg", "height": 16, "width": 16}
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": infos}]
    data = {"images": [image], "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "many.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="image 1: has more than 255 instances of category 3"):
        convert("coco", "two-channel", str(tmp_path / "many.json"), str(tmp_path / "two"))


def test_unknown_ids_and_categories_are_named(coco, tmp_path):
    data = json.loads(coco.read_text())
    data["annotations"][0]["segments_info"].pop()
    coco.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"8\.png: segment 70000 is not in the segments_info of image 8"):
        convert("coco", "coco", str(coco), str(tmp_path / "x.json"))
    write_png(tmp_path / "two" / "in/8.png", np.full((6, 10, 3), (77, 1, 0), np.uint8))
    with pytest.raises(DataError, match=r"8\.png: category 77 is not among the 2 categories"):
        convert("two-channel", "coco", str(coco), str(tmp_path / "x.json"), folder=str(tmp_path / "two"))
    with pytest.raises(UserError, match="no panoptic format 'three'"):
        convert("three", "coco", str(coco), str(tmp_path / "x.json"))
    with pytest.raises(UserError, match=r"give a name that ends in \.json"):
        convert("coco", "coco", str(coco), str(tmp_path / "x"))


def test_the_command(coco, tmp_path, capsys):
    call = ["panoptic-convert", str(coco), "--from", "coco", "--to", "detection", "--out", str(tmp_path / "d.json")]
    with pytest.raises(SystemExit) as end:
        main(call)
    assert not end.value.code
    assert capsys.readouterr().out == f"{tmp_path / 'd.json'}: 2 images\n"
    with pytest.raises(SystemExit) as end:
        main([*call, "--folder", str(tmp_path / "none")])
    assert end.value.code == 2
    assert "none: no such folder of panoptic PNGs" in capsys.readouterr().err


@pytest.mark.real_data
@pytest.mark.parametrize("source", ["two-channel", "detection"])
def test_real_sets_in_three_formats_say_the_same(real_data, tmp_path, source):
    folder = real_data / "panoptic_formats"
    options = {"categories": str(folder / "panoptic_coco_categories.json")}
    file = folder / "panoptic_coco_detection_format.json"
    if source == "two-channel":
        file = folder / "images_info_examples.json"
        options["folder"] = str(folder / "panoptic_examples_2ch_format")
    assert convert(source, "coco", str(file), str(tmp_path / "p.json"), **options) == 2
    assert content(tmp_path / "p.json") == content(folder / "panoptic_examples.json")


@pytest.mark.real_data
def test_real_set_is_written_as_the_public_tool_writes_it(real_data, tmp_path):
    folder = real_data / "panoptic_formats"
    truth = folder / "panoptic_examples.json"
    convert("coco", "two-channel", str(truth), str(tmp_path / "two"))
    for file in (folder / "panoptic_examples_2ch_format").iterdir():
        np.testing.assert_array_equal(read_png(tmp_path / "two" / file.name), read_png(file))
    convert("coco", "detection", str(truth), str(tmp_path / "d.json"))
    expected = json.loads((folder / "panoptic_coco_detection_format.json").read_text())["annotations"]
    found = json.loads((tmp_path / "d.json").read_text())["annotations"]
    assert [a | {"id": i} for i, a in enumerate(found)] == expected
