"""Panoptic quality of files: both backends against sets of pixels, and what is said of files that are wrong."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import straight_pq
from visionkit.errors import DataError
from visionkit.evaluate import evaluate_panoptic
from visionkit.layers.segments import from_rgb, to_rgb

CATEGORIES = [
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 90, "name": "sky", "isthing": 0},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 7, "name": "sand", "isthing": 0},
]
THINGS = (5, 2)


def write_png(path, ids):
    assert cv2.imwrite(str(path), to_rgb(ids)[..., ::-1])


def read_png(path):
    return from_rgb(np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]))


class Files:
    """A ground truth and results on disk, changed at will before they are evaluated."""

    def __init__(self, folder: Path, truth: dict, results: dict | list) -> None:
        self.folder, self.truth, self.results = folder, truth, results
        for side in ("gt", "dt"):
            (folder / side).mkdir(exist_ok=True)

    def evaluate(self, **options):
        for side, data in (("gt", self.truth), ("dt", self.results)):
            (self.folder / f"{side}.json").write_text(json.dumps(data))
        return evaluate_panoptic(self.folder / "gt.json", self.folder / "dt.json", **options)

    def straight(self):
        found = {row["image_id"]: row for row in self.results["annotations"]}
        return straight_pq.total(
            straight_pq.count(
                read_png(self.folder / "gt" / row["file_name"]),
                {s["id"]: (s["category_id"], bool(s["iscrowd"])) for s in row["segments_info"]},
                read_png(self.folder / "dt" / found[row["image_id"]]["file_name"]),
                {s["id"]: s["category_id"] for s in found[row["image_id"]]["segments_info"]},
            )
            for row in self.truth["annotations"]
        )


def random_files(folder: Path, seed: int, images: int = 4, size: tuple[int, int] = (24, 30)) -> Files:
    """Truth of blocks with void and crowds (one of a class at most), and a prediction that is right here and there."""
    rng = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": CATEGORIES}
    results = {"annotations": []}
    files = Files(folder, truth, results)
    for image in range(images):
        name = f"{image}.png"
        truth["images"].append({"id": image, "file_name": f"{image}.jpg", "height": size[0], "width": size[1]})
        ids = np.array([0, *(1 + rng.choice(2**24 - 1, 12, replace=False))])
        kinds = [0, 90, 7, *rng.choice(THINGS, 10)]  # each of stuff once
        blocks = rng.integers(0, 9, (4, 5)).repeat(6, 0).repeat(6, 1)
        crowd = {int(np.flatnonzero(np.equal(kinds, kind))[0]) for kind in THINGS if rng.random() < 0.6}
        seen = np.where(rng.random(size) < 0.75, np.roll(blocks, rng.integers(-2, 3), 1), rng.integers(0, 11, size))
        for where, number, rows in (("gt", blocks, truth), ("dt", seen, results)):
            used, areas = np.unique(number[number > 0], return_counts=True)
            segments = [{"id": int(ids[i]), "category_id": int(kinds[i]), "area": int(area)}
                        for i, area in zip(used, areas)]  # fmt: skip
            if where == "gt":
                segments = [segment | {"iscrowd": int(i in crowd)} for i, segment in zip(used.tolist(), segments)]
            else:
                for segment in segments:
                    if segment["category_id"] in THINGS and rng.random() < 0.3:
                        segment["category_id"] = int(rng.choice(THINGS))
            write_png(folder / where / name, ids[number].astype(np.int32))
            rows["annotations"].append({"image_id": image, "file_name": name, "segments_info": segments})
    return files


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("seed", range(5))
def test_against_sets_of_pixels(tmp_path, seed, backend):
    files = random_files(tmp_path, seed)
    result, sums = files.evaluate(backend=backend, per_class=True), files.straight()
    groups = {"": (5, 90, 2, 7), "_th": THINGS, "_st": (90, 7)}
    for suffix, classes in groups.items():
        parts = [result[part + suffix] for part in ("PQ", "SQ", "RQ")]
        assert parts == pytest.approx(straight_pq.averages(sums, classes), abs=1e-12, nan_ok=True)
    assert 0.02 < result["PQ"] < 0.98
    for category in CATEGORIES:
        assert result[f"PQ/{category['name']}"] == pytest.approx(straight_pq.averages(sums, [category["id"]])[0])


def test_both_backends_give_the_same_numbers(tmp_path):
    files = random_files(tmp_path, 77, images=8)
    expected = files.evaluate(backend="numpy", per_class=True)
    assert files.evaluate(backend="fast", per_class=True) == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
def test_unknown_ids_of_the_truth_are_as_in_the_public_tool(tmp_path, backend):
    """Pixels of an ID that is not in the JSON are neither void nor a segment."""
    files = Files(tmp_path, {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": CATEGORIES}, {})
    write_png(tmp_path / "gt" / "1.png", np.repeat(np.array([[8, 3]], np.int32), 10, 1))
    write_png(tmp_path / "dt" / "1.png", np.repeat(np.array([[0, 4, 4, 4]], np.int32), 5, 1))
    rows = [{"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 8, "category_id": 5, "area": 10}]}]
    files.truth["annotations"] = rows
    files.results["annotations"] = [rows[0] | {"segments_info": [{"id": 4, "category_id": 5}]}]
    unknown = pytest.warns(UserWarning, match=r"of 1 of 1 images hold segments that are not in .*gt/1\.png: 10 pixels")
    with unknown:
        assert files.evaluate(backend=backend)["PQ"] == 0  # 5 of 10 + 15 - 5 pixels, 10 of them on the unknown id
    rows[0]["segments_info"] = [{"id": 3, "category_id": 5, "area": 10}]
    with unknown:
        assert files.evaluate(backend=backend)["PQ"] == pytest.approx(10 / 15)


@pytest.mark.parametrize("backend", ["fast", "numpy"])
@pytest.mark.parametrize("factor", [0.01, 4, "text", None])
def test_areas_are_counted_and_wrong_ones_are_reported(tmp_path, factor, backend):
    files = random_files(tmp_path, 2)
    expected = files.evaluate(backend=backend)
    segments = [s for row in files.truth["annotations"] for s in row["segments_info"]]
    for segment in segments:
        segment["area"] = str(segment["area"]) if factor == "text" else factor and segment["area"] * factor
    if factor in ("text", None):  # a number as a string is a number
        assert files.evaluate(backend=backend) == expected
        return
    message = rf"gt\.json: the area of {len(segments)} of {len(segments)} segments is not .*segment \d+ of image 0: "
    with pytest.warns(UserWarning, match=message):
        assert files.evaluate(backend=backend) == expected


def test_one_wrong_area_among_many_images(tmp_path):
    """A sample of the images is counted, and all of them where the areas of an image are more than its pixels."""
    files = random_files(tmp_path, 77, images=8)
    files.truth["annotations"][7]["segments_info"][0]["area"] += 24 * 30
    with pytest.warns(UserWarning, match=r"the area of 1 of \d+ segments is not .* of image 7"):
        files.evaluate()


def test_maps_of_another_size_than_the_images(tmp_path):
    """Both maps were resized, the JSON was not: its sizes play no part in the metric."""
    files = random_files(tmp_path, 3)
    expected = files.evaluate()
    files.truth["images"][1].update(height=48, width=60)
    with pytest.warns(
        UserWarning, match=r"of 1 of 4 images are not those of their PNGs \(image 1: 48x60 instead of 24x30"
    ):
        assert files.evaluate() == expected


def test_all_crowds_of_a_class_excuse(tmp_path):
    files = Files(tmp_path, {"images": [{"id": 1, "file_name": "1.jpg"}], "categories": CATEGORIES}, {})
    write_png(tmp_path / "gt" / "1.png", np.repeat(np.array([[1, 2, 3]], np.int32), [3, 3, 4], 1))
    write_png(tmp_path / "dt" / "1.png", np.full((1, 10), 9, np.int32))
    kinds = {1: (5, 1), 2: (5, 1), 3: (2, 0)}
    segments = [{"id": i, "category_id": kind, "iscrowd": crowd} for i, (kind, crowd) in kinds.items()]
    files.truth["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": segments}]
    found = [{"id": 9, "category_id": 5}]
    files.results["annotations"] = [{"image_id": 1, "file_name": "1.png", "segments_info": found}]
    for backend in ("fast", "numpy"):
        assert np.isnan(files.evaluate(backend=backend, per_class=True)["PQ/cat"])
    segments[0]["iscrowd"] = 0  # now 3 of 10 pixels are
    assert files.evaluate(per_class=True)["PQ/cat"] == 0


def test_results_as_visionkit_predict_writes_them(tmp_path):
    """A list without file names: PNGs are named after their images."""
    files = random_files(tmp_path, 3)
    expected = files.evaluate()
    files.results = [{key: row[key] for key in ("image_id", "segments_info")} for row in files.results["annotations"]]
    assert files.evaluate() == pytest.approx(expected, abs=1e-13) == files.evaluate(backend="numpy")


def test_folders_may_lie_elsewhere(tmp_path):
    files = random_files(tmp_path, 3)
    expected = files.evaluate()
    (tmp_path / "gt").rename(tmp_path / "maps")
    (tmp_path / "dt").rename(tmp_path / "guesses")
    result = files.evaluate(gt_folder=tmp_path / "maps", dt_folder=tmp_path / "guesses")
    assert result == pytest.approx(expected, abs=1e-13)


def test_no_annotations_at_all(tmp_path):
    files = Files(tmp_path, {"images": [], "annotations": [], "categories": CATEGORIES}, {"annotations": []})
    assert np.isnan(list(files.evaluate().values())).all()


@pytest.mark.parametrize("change", ["strings", "true", "float", "palette", "alpha"])
def test_other_spellings_give_the_same_numbers(tmp_path, change):
    files = random_files(tmp_path, 4)
    expected = files.evaluate(per_class=True)
    convert = {"strings": str, "float": float}.get(change, lambda value: value)
    for data in (files.truth, files.results):
        for row in data["annotations"]:
            row["image_id"] = convert(row["image_id"]) if change == "strings" else row["image_id"]
            for segment in row["segments_info"]:
                segment["id"] = convert(segment["id"])
                segment["category_id"] = convert(segment["category_id"])
                if "iscrowd" in segment:
                    segment["iscrowd"] = bool(segment["iscrowd"]) if change == "true" else convert(segment["iscrowd"])
    for category in files.truth["categories"]:
        if change == "strings":
            category |= {"id": str(category["id"]), "isthing": str(category["isthing"])}
    for path in (tmp_path / "gt" / "2.png", tmp_path / "dt" / "2.png"):
        if change in ("palette", "alpha"):
            with Image.open(path) as image:
                image.convert("RGBA" if change == "alpha" else "P", palette=Image.Palette.ADAPTIVE).save(path)
    for backend in ("fast", "numpy"):
        assert files.evaluate(backend=backend, per_class=True) == pytest.approx(expected, abs=1e-13)


def _change_png(change):
    def apply(files):
        path = files.folder / "dt" / "2.png"
        write_png(path, change(read_png(path)))

    return apply


def _segment(key, value, side="results"):
    def apply(files):
        getattr(files, side)["annotations"][2]["segments_info"][0][key] = value

    return apply


def _damaged(where):
    """Another byte in the PNG of image 2."""

    def apply(files):
        path = files.folder / "dt" / "2.png"
        data = bytearray(path.read_bytes())
        data[where % len(data)] ^= 0xFF
        path.write_bytes(data)

    return apply


def _saved_as(mode, kind="PNG"):
    def apply(files):
        path = files.folder / "dt" / "2.png"
        with Image.open(path) as image:
            image.convert(mode).save(path, kind)

    return apply


def _png_of(data):
    return lambda files: (files.folder / "dt" / "2.png").write_bytes(data)


def _without_end(files):
    """All checksums are right, but half of the pixels are missing."""
    path = files.folder / "dt" / "2.png"
    data = path.read_bytes()
    half = zlib.compress(bytes(1000))
    write = [data[:33]]
    for kind, content in ((b"IDAT", half), (b"IEND", b"")):
        write.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    path.write_bytes(b"".join(write))


MISTAKES = {
    "missing PNG": (lambda f: (f.folder / "dt" / "2.png").unlink(), r"dt/2\.png: no such file"),
    "truncated PNG": (lambda f: os.truncate(f.folder / "dt" / "2.png", 60), r"dt/2\.png: the PNG is truncated \(60 by"),
    "empty PNG": (_png_of(b""), r"dt/2\.png: the file is empty"),
    "no PNG": (_png_of(b"<html>"), r"dt/2\.png: is not a PNG file"),
    "folder instead of a PNG": (
        lambda f: ((f.folder / "dt" / "2.png").unlink(), (f.folder / "dt" / "2.png").mkdir()),
        r"dt/2\.png: is a folder",
    ),
    "damaged header": (_damaged(18), r"dt/2\.png: the PNG is corrupt \(its header\)"),
    "damaged pixels": (_damaged(-25), r"dt/2\.png: the PNG is corrupt \(wrong checksum at byte \d+\)"),
    "missing pixels": (_without_end, r"dt/2\.png: the PNG is corrupt and cannot be decoded"),
    "gray PNG": (_saved_as("L"), r"dt/2\.png: a panoptic PNG must be RGB with 8 bits .* this one is gray with 8 bits"),
    "16 bits": (_saved_as("I;16"), r"dt/2\.png: a panoptic PNG must be RGB .* this one is gray with 16 bits"),
    "JPEG": (_saved_as("RGB", "JPEG"), r"dt/2\.png: is a JPEG file; panoptic segments are stored in PNGs"),
    "size": (_change_png(lambda x: x[:-1]), r"dt/2\.png: image 2: the maps of .* have 24x30 and 23x30"),
    "id of the PNG": (
        _change_png(lambda x: np.where(x == x[0, 0], 77, x)),
        r"dt/2\.png: image 2: segment 77 of the predicted map is not among its segments",
    ),
    "id of the JSON": (
        lambda f: f.results["annotations"][2]["segments_info"].append({"id": 77, "category_id": 5}),
        r"dt/2\.png: image 2: segment 77 of its segments_info has no pixel",
    ),
    "void as a segment": (_segment("id", 0), r"dt\.json: segment number 1 of image 2: 'id' must be from 1 to 16777215"),
    "large id": (_segment("id", 2**24), r"'id' must be from 1 to 16777215, not 16777216; in a PNG, 0 is void"),
    "fractional id": (_segment("id", 7.5), r"image 2: 'id' must be a whole number, not 7\.5 \(a number\)"),
    "id null": (_segment("id", None), r"segment number 1 of image 2: 'id' must be a whole number, not null"),
    "id twice": (
        lambda f: f.results["annotations"][2]["segments_info"].append(
            {"id": f.results["annotations"][2]["segments_info"][0]["id"], "category_id": 5}
        ),
        r"dt\.json: image 2 has two segments with the ID \d+",
    ),
    "crowd": (_segment("iscrowd", 2, "truth"), r"gt\.json: segment \d+ of image 2: 'iscrowd' must be 0 or 1, not 2"),
    "area": (
        _segment("area", "big", "truth"),
        r"segment \d+ of image 2: 'area' must be a number, not 'big' \(a string\)",
    ),
    "area infinite": (_segment("area", np.inf, "truth"), r"'area' must be a finite number, not inf \(a number\)"),
    "segments": (
        lambda f: f.truth["annotations"][2].update(segments_info=None),
        r"gt\.json: annotation number 3 \(image 2\): 'segments_info' must be a list of segments, not null",
    ),
    "segment": (
        lambda f: f.truth["annotations"][2].update(segments_info=[7]),
        r"segment number 1 of image 2 must be an object, not 7",
    ),
    "category": (
        _segment("category_id", 33),
        r"dt\.json: segment \d+ of image 2 has the category_id 33, which is not ",
    ),
    "no category": (
        lambda f: f.results["annotations"][2]["segments_info"][0].pop("category_id"),
        r"dt\.json: segment \d+ of image 2 has no 'category_id' \(it has id, area",
    ),
    "prediction": (
        lambda f: f.results["annotations"].pop(2),
        r"dt\.json: has no prediction for image 2 \(for 1 of the 4 images of the ground truth\)",
    ),
    "image": (
        lambda f: f.results["annotations"][2].update(image_id=99),
        r"dt\.json: annotation number 3 is of image 99, which is not in the list 'images' of .*gt\.json",
    ),
    "image twice": (lambda f: f.results["annotations"][2].update(image_id=1), r"dt\.json: image 1 has two"),
    "image id": (lambda f: f.results["annotations"][2].update(image_id=True), r"'image_id' must be .*, not true"),
    "image listed twice": (lambda f: f.truth["images"][2].update(id=1), r"gt\.json: two images have the ID 1"),
    "category listed twice": (lambda f: f.truth.update(categories=[*CATEGORIES, CATEGORIES[0]]), r"gt\.json: two cat"),
    "category name twice": (
        lambda f: f.truth.update(categories=[*CATEGORIES, {"id": 91, "name": "sky"}]),
        r"gt\.json: the categories 90 and 91 have the same name 'sky'",
    ),
    "isthing": (
        lambda f: f.truth.update(categories=[*CATEGORIES, {"id": 91, "name": "x", "isthing": "maybe"}]),
        r"gt\.json: category 91 \('x'\): 'isthing' must be 0 or 1, not 'maybe' \(a string\)",
    ),
    "way out": (
        lambda f: f.results["annotations"][2].update(file_name="../gt/2.png"),
        r"dt\.json: annotation number 3 \(image 2\): file name '\.\./gt/2\.png' leads out of the folder",
    ),
    "absolute": (
        lambda f: f.truth["annotations"][2].update(file_name="/etc/2.png"),
        r"gt\.json: annotation number 3 \(image 2\): file name '/etc/2.png' leads out of the folder",
    ),
    "null character": (
        lambda f: f.truth["annotations"][2].update(file_name="2\0.png"),
        r"gt\.json: .* a null character",
    ),
    "folder": (lambda f: shutil.rmtree(f.folder / "dt"), r"dt: no such folder of panoptic PNGs"),
    "truth without categories": (lambda f: f.truth.pop("categories"), r"gt\.json: the list 'categories' is missing"),
    "results of another kind": (lambda f: f.results.pop("annotations"), r"dt\.json: the list 'annotations' is missing"),
    "detections": (
        lambda f: f.results.update(annotations=[{"bbox": []}]),
        r"dt\.json: annotation number 1 has no 'image_id'",
    ),
    "numbers": (
        lambda f: f.results.update(annotations=[3]),
        r"dt\.json: entry 0 of 'annotations' must be an object, not 3",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(tmp_path, mistake):
    files = random_files(tmp_path, 1)
    change, message = MISTAKES[mistake]
    change(files)
    with pytest.raises(DataError, match=message) as error:
        files.evaluate()
    assert "\n" not in str(error.value)


@pytest.fixture(params=["coco_panoptic/panoptic", "panoptic_formats/panoptic_examples"])
def real(real_data, tmp_path, request):
    """COCO's truth, and a copy of it as results."""
    source = real_data / request.param
    truth = json.loads(source.with_suffix(".json").read_text())
    shutil.copytree(source, tmp_path / "gt")
    shutil.copytree(source, tmp_path / "dt")
    return Files(tmp_path, truth, {"annotations": json.loads(json.dumps(truth["annotations"]))})


@pytest.mark.real_data
def test_real_truth_against_itself(real):
    result = real.evaluate()
    assert list(result) == [part + suffix for suffix in ("", "_th", "_st") for part in ("PQ", "SQ", "RQ")]
    assert set(result.values()) == {1.0}


@pytest.mark.real_data
def test_real_truth_against_a_perturbed_copy(real):
    """Moved, relabelled, split and thrown away, on a few images, made small enough for sets of pixels."""
    rng = np.random.default_rng(0)
    crowds = [a for a in real.truth["annotations"] if any(s["iscrowd"] for s in a["segments_info"])]
    others = [a for a in real.truth["annotations"] if a not in crowds]
    chosen = {a["image_id"] for a in crowds + others[: 6 - len(crowds)]}
    things = [c["id"] for c in real.truth["categories"] if c["isthing"]]
    for data in (real.truth, real.results):
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in chosen]
    for row in real.truth["annotations"]:  # every fourth pixel of every fourth row, with the areas of what is left
        path = real.folder / "gt" / row["file_name"]
        ids = read_png(path)[::4, ::4]
        write_png(path, ids)
        row["segments_info"] = [s | {"area": int((ids == s["id"]).sum())} for s in row["segments_info"]]
        row["segments_info"] = [s for s in row["segments_info"] if s["area"]]
    for row in real.results["annotations"]:
        ids = np.roll(read_png(real.folder / "gt" / row["file_name"]), rng.integers(-3, 4, 2), (0, 1))
        segments = []
        for segment in row["segments_info"]:
            mine = ids == segment["id"]
            fate = rng.random()
            if fate < 0.1:
                ids[mine] = 0
            elif fate < 0.2 and segment["category_id"] in things:
                segment["category_id"] = int(rng.choice(things))
            elif fate < 0.3:  # the left half becomes another
                ids[mine & (np.arange(ids.shape[1]) < np.nonzero(mine)[1].mean() if mine.any() else mine)] = 3
            if (ids == segment["id"]).any():
                segments.append({"id": segment["id"], "category_id": segment["category_id"]})
        if (ids == 3).any():
            segments.append({"id": 3, "category_id": 1})
        row["segments_info"] = segments
        write_png(real.folder / "dt" / row["file_name"], ids)

    for image in real.truth["images"]:
        del image["height"], image["width"]
    result, sums = real.evaluate(), real.straight()
    assert result == pytest.approx(real.evaluate(backend="numpy"), abs=1e-13)
    kinds = {c["id"]: bool(c["isthing"]) for c in real.truth["categories"]}
    for suffix, wanted in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
        expected = straight_pq.averages(sums, [c for c, thing in kinds.items() if thing in wanted])
        assert [result[part + suffix] for part in ("PQ", "SQ", "RQ")] == pytest.approx(expected, abs=1e-12)
    assert 0.1 < result["PQ"] < 0.9
