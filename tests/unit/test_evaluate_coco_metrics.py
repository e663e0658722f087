"""The numbers are pycocotools' to the last bit, and a broken file is one clear error."""

import contextlib
import copy
import gzip
import io
import json
import re

import numpy as np
import pytest
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visionkit.errors import DataError
from visionkit.evaluate import evaluate_coco
from visionkit.evaluate.coco_metrics import COCO_SIGMAS

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
KEYPOINT_NAMES = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]


@pytest.fixture(scope="module")
def golden(repository, tmp_path_factory):
    """The folder of real annotations, example detections and official numbers."""
    folder = tmp_path_factory.mktemp("golden")
    for file in (repository / "tests/data/coco_eval_golden").iterdir():
        data = file.read_bytes()
        (folder / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(data) if file.suffix == ".gz" else data)
    return folder


def official(truth, results, kind, sigmas=None, image_ids=None):
    """COCOeval itself, as its documentation uses it."""
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO()
        loaded.dataset = copy.deepcopy(truth)
        loaded.createIndex()
        run = COCOeval(loaded, loaded.loadRes(copy.deepcopy(results)), kind)
        if sigmas is not None:
            run.params.kpt_oks_sigmas = np.array(sigmas)
        if image_ids is not None:
            run.params.imgIds = image_ids
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(KEYPOINT_NAMES if kind == "keypoints" else NAMES, run.stats.tolist())), run.eval["precision"]


def random_set(rng, kind, points=17):
    """A small set with what makes evaluation hard: crowds, ties, empty images and classes, more than 100 detections."""
    height, width = (int(n) for n in rng.integers(20, 400, 2))
    categories = [{"id": int(c) + 1, "name": f"c{c}"} for c in rng.choice(20, rng.integers(1, 4), replace=False)]
    names = [c["id"] for c in categories]
    images = [
        {"id": int(i), "height": height, "width": width} for i in rng.choice(99, rng.integers(1, 6), replace=False)
    ]
    whole = rng.random() < 0.5  # whole pixels give ties in overlap
    annotations, results = [], []

    def box():
        x, y = rng.random(2) * (width - 3, height - 3)
        values = np.array([x, y, 1 + rng.random() * (width - x - 2), 1 + rng.random() * (height - y - 2)])
        return (np.ceil(values) if whole else values).tolist()

    def bitmap(b):
        x, y, w, h = (int(v) for v in b)
        out = np.zeros((height, width), np.uint8, order="F")
        out[y : y + h, x : x + w] = rng.random((h, w))[: height - y, : width - x] < 0.8
        return out

    def compressed(mask):
        rle = codec.encode(mask)
        return {"size": rle["size"], "counts": rle["counts"].decode()}

    def runs(mask):
        flat = np.concatenate(([0], mask.ravel(order="F")))
        edges = np.flatnonzero(np.diff(flat))
        return {"size": [height, width], "counts": np.diff(edges, prepend=0, append=mask.size).tolist()}

    def keypoints(b):
        xy = np.array(b[:2]) + rng.random((points, 2)) * b[2:]
        seen = rng.integers(0, 3, (points, 1)) * (rng.random() < 0.8)
        return np.concatenate(((np.round(xy) if whole else xy) * (seen > 0), seen), 1)

    for image in images:
        mine = []
        for _ in range(rng.integers(0, 7)):
            b = box()
            new = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": int(rng.choice(names)),
                "bbox": b,
            }
            new |= {"iscrowd": int(rng.random() < 0.15), "area": b[2] * b[3] * float(rng.choice([1, 0.5]))}
            if rng.random() < 0.1:
                new |= {"ignore": 1, "area": float(rng.choice([0, 1024, 9216]))}
            if kind == "segm":
                corners = np.array(b[:2]) + rng.random((2, 5, 2)) * b[2:]
                forms = [corners.reshape(2, -1).tolist(), compressed(bitmap(b)), runs(bitmap(b))]
                new["segmentation"] = forms[rng.integers(new["iscrowd"], 3)]
            if kind == "keypoints":
                k = keypoints(b)
                new |= {"keypoints": k.ravel().tolist(), "num_keypoints": int((k[:, 2] > 0).sum())}
            mine.append(new)
            annotations.append(new)
        for _ in range(rng.integers(0, 12) if rng.random() < 0.9 else 130):
            near = mine[rng.integers(len(mine))] if mine and rng.random() < 0.6 else None
            score = rng.random()
            new = {"image_id": image["id"], "category_id": near["category_id"] if near else int(rng.choice(names))}
            new["score"] = float(round(score, 1) if rng.random() < 0.5 else score)
            b = near["bbox"] if near else box()
            if kind == "bbox":
                new["bbox"] = np.maximum(
                    np.array(b) * (1 + rng.choice([0, 0.1]) * rng.standard_normal(4)), 0.5
                ).tolist()
            elif kind == "segm":
                new["segmentation"] = compressed(bitmap(b))
                if near and isinstance(near["segmentation"], list) and rng.random() < 0.5:
                    same = codec.merge(codec.frPyObjects(near["segmentation"], height, width))
                    new["segmentation"] = compressed(codec.decode(same))
            else:
                k = np.array(near["keypoints"]).reshape(-1, 3) if near else keypoints(b)
                k = k + np.array([1, 1, 0]) * rng.choice([0, 1, 4]) * rng.standard_normal(k.shape)
                new["keypoints"] = k.ravel().tolist()
            results.append(new)
    if kind != "bbox" and rng.random() < 0.4:
        for record in results:
            record["bbox"] = box()
    return {"images": images, "categories": categories, "annotations": annotations}, results


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_numbers_are_those_of_pycocotools(kind, tmp_path):
    files = tmp_path / "truth.json", tmp_path / "results.json"
    for seed in range(40):
        rng = np.random.default_rng(seed)
        points, sigmas = 17, None
        if kind == "keypoints" and seed % 2:
            points = int(rng.integers(1, 25))
            sigmas = rng.uniform(0.02, 0.12, points).tolist()
        truth, results = random_set(rng, kind, points)
        if not results:
            continue  # pycocotools cannot read them
        expected, precision = official(truth, results, kind, sigmas)
        for file, data in zip(files, (truth, results)):
            file.write_text(json.dumps(data))
        before = copy.deepcopy((truth, results))
        assert evaluate_coco(*files, kind, sigmas=sigmas) == expected, seed
        assert evaluate_coco(truth, results, kind, sigmas=sigmas) == expected, seed
        assert evaluate_coco(truth, results, kind, sigmas=sigmas, backend="pycocotools") == expected, seed
        assert (truth, results) == before
        by_class = evaluate_coco(truth, results, kind, sigmas=sigmas, per_class=True)
        for k, category in enumerate(sorted(truth["categories"], key=lambda c: c["id"])):
            own = precision[:, :, k, 0, -1]
            assert by_class[f"AP/{category['name']}"] == (own[own > -1].mean() if (own > -1).any() else -1)
        some = sorted(image["id"] for image in truth["images"])[::2]
        expected, _ = official(truth, results, kind, sigmas, some)
        assert evaluate_coco(*files, kind, sigmas=sigmas, image_ids=some) == expected, seed
        assert evaluate_coco(truth, results, kind, sigmas=sigmas, image_ids=some) == expected, seed


@pytest.mark.parametrize("backend", ["fast", "pycocotools"])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_example_of_cocos_own_tools(kind, backend, golden):
    expected = json.loads((golden / "expected_stats.json").read_text())[kind]
    metrics = evaluate_coco(golden / "gt_instances_val2014_100.json", golden / f"dt_{kind}.json", kind, backend=backend)
    assert list(metrics) == NAMES
    assert [round(v, 6) for v in metrics.values()] == expected


SQUARE = [[5, 5, 25, 5, 25, 25, 5, 25]]


def truth(**changes):
    """One object on one of two images, with everything that an annotation can have."""
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0}
    annotation |= {"segmentation": SQUARE, "keypoints": [5, 5, 2, 20, 20, 1], "num_keypoints": 2} | changes
    return {
        "images": [{"id": n, "height": 40, "width": 50, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "categories": [{"id": 3, "name": "square", "keypoints": ["a", "b"]}],
        "annotations": [{k: v for k, v in annotation.items() if v is not ...}],
    }


def result(**changes):
    rle = codec.merge(codec.frPyObjects(SQUARE, 40, 50))
    record = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [5, 5, 20, 20], "keypoints": [5, 5, 1, 20, 20, 1]}
    record |= {"segmentation": {"size": [40, 50], "counts": rle["counts"].decode()}} | changes
    return {k: v for k, v in record.items() if v is not ...}


def both_ways(tmp_path, data, results, kind, **options):
    """From memory and from files: the same numbers, or the same error but for the name of the file."""
    files = tmp_path / "t.json", tmp_path / "r.json"
    for file, content in zip(files, (data, results)):
        file.write_text(json.dumps(content))
    out = []
    for arguments in ((data, results), files):
        try:
            out.append(evaluate_coco(*arguments, kind, **options))
        except DataError as error:
            out.append(str(error).replace(str(files[0]), "ground truth").replace(str(files[1]), "detections"))
    assert out[0] == out[1]
    return out[0]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_a_perfect_result(kind, tmp_path):
    metrics = both_ways(tmp_path, truth(), [result()], kind)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["APl"] == -1  # as COCO says where there is nothing


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_nothing_found_and_nothing_to_find(kind, tmp_path):
    assert both_ways(tmp_path, truth(), [], kind)["AP"] == 0
    assert both_ways(tmp_path, truth(), [], kind, backend="pycocotools")["AP"] == 0
    assert set(both_ways(tmp_path, truth() | {"annotations": []}, [result()], kind).values()) == {-1}
    assert set(both_ways(tmp_path, truth(), [result()], kind, image_ids=[]).values()) == {-1}
    nothing = {"images": [], "annotations": [], "categories": []}
    assert set(both_ways(tmp_path, nothing, [], kind).values()) == {-1}


@pytest.mark.parametrize("backend", ["fast", "pycocotools"])
def test_what_annotations_may_lack(backend, tmp_path):
    whole = both_ways(tmp_path, truth(), [result()], "keypoints", backend=backend)
    for missing in ("iscrowd", "area", "num_keypoints"):
        assert both_ways(tmp_path, truth(**{missing: ...}), [result()], "keypoints", backend=backend) == whole
    none = both_ways(tmp_path, truth(keypoints=..., num_keypoints=...), [result()], "keypoints", backend=backend)
    assert none["AP"] == -1


def test_ids_may_be_file_names(tmp_path):
    data = truth(image_id="b.jpg") | {"images": [{"id": n, "height": 40, "width": 50} for n in ("b.jpg", "a.jpg")]}
    assert both_ways(tmp_path, data, [result(image_id="b.jpg")], "segm")["AP"] == pytest.approx(1)
    assert both_ways(tmp_path, data, [result(image_id="b.jpg")], "segm", image_ids=["a.jpg"])["AP"] == -1


def test_an_annotation_with_the_id_0_is_as_in_pycocotools(tmp_path):
    data = truth(id=0)
    expected, _ = official(data, [result()], "bbox")
    with pytest.warns(UserWarning, match="ID 0"):
        assert both_ways(tmp_path, data, [result()], "bbox") == expected


def test_sigmas():
    moved = [result(keypoints=[6, 5, 1, 20, 22, 1])]
    by_default = evaluate_coco(truth(), moved, "keypoints")
    assert by_default == evaluate_coco(truth(), moved, "keypoints", sigmas=[0.05, 0.05])
    assert by_default["AP"] < evaluate_coco(truth(), moved, "keypoints", sigmas=[0.5, 0.5])["AP"]
    run = COCOeval(iouType="keypoints")
    np.testing.assert_allclose(COCO_SIGMAS, run.params.kpt_oks_sigmas, rtol=1e-15)
    with pytest.raises(DataError, match="2 keypoints need 2 sigmas above 0, not"):
        evaluate_coco(truth(), moved, "keypoints", sigmas=[0.1])


def test_limits_of_detections():
    results = [result(bbox=[30, 30, 5, 5], score=0.9)] * 4 + [result(score=0.1)]
    metrics = evaluate_coco(truth(), results, "bbox", max_dets=[1, 5])
    assert [metrics["AR1"], metrics["AR5"]] == [0, 1]
    assert metrics["AP"] == pytest.approx(0.2)
    assert evaluate_coco(truth(), results, "bbox", max_dets=[4])["AP"] == 0


WRONG_RESULTS = [
    ("bbox", {"not": "a list"}, "COCO results must be a list of detections, not an object"),
    ("bbox", [3], r"detection number 1 must be an object, not 3 \(a number\)"),
    ("bbox", [result(), result(image_id=7), result(image_id=8)], "number 2 has the image_id 7, .* it has 2: 1, 2"),
    (
        "bbox",
        [result(category_id=1)],
        "number 1 has the category_id 1, which the ground truth doesn't have; it has 1: 3",
    ),
    ("bbox", [result(), result(score=...)], r"detection number 2 \(image 1\) has no 'score'"),
    ("bbox", [result(score="high")], r"number 1 \(image 1\): 'score' must be a number, not 'high' \(a string\)"),
    ("bbox", [result(score=float("nan"))], "'score' must be .*finite.*nan"),
    ("bbox", [result(bbox=[1, 2, 3])], r"'bbox' must be \[left, top, width, height\], not \[1, 2, 3\]"),
    ("segm", [result(segmentation=...)], r"detection number 1 \(image 1\) has no 'segmentation' \(it has image_id"),
    ("segm", [result(segmentation={"size": [40, 50]})], "'segmentation': the RLE has no 'counts'"),
    ("segm", [result(), result(bbox=...)], "either all detections have a 'bbox' or none; the first one has one"),
    ("keypoints", [result(), result(keypoints=[1, 2, 1])], "number 2 .*'keypoints' has 3 numbers; .* so 6 numbers"),
    ("keypoints", [result(keypoints=[1] * 9)], r"detection number 1 \(image 1\): 'keypoints' has 9 numbers"),
]


@pytest.mark.parametrize(("kind", "results", "message"), WRONG_RESULTS)
def test_a_wrong_results_file_is_one_clear_error(kind, results, message, tmp_path):
    seen = both_ways(tmp_path, truth(), results, kind)
    assert isinstance(seen, str)
    assert re.search(message, seen), seen
    assert "\n" not in seen


WRONG_TRUTH = [
    ("bbox", [], "the list 'images' is missing"),
    ("bbox", {"images": [], "annotations": []}, "the list 'categories' is missing"),
    ("bbox", truth(image_id=9), "annotation 1 has the image_id 9, which is not in 'images'"),
    ("bbox", truth(category_id=4), "annotation 1 has the category_id 4, which is not in 'categories' (3)"),
    ("bbox", truth(bbox=..., segmentation=...), "annotation 1 has no 'bbox'"),
    ("bbox", truth() | {"annotations": truth()["annotations"] * 2}, "two annotations have the ID 1"),
    ("bbox", truth() | {"categories": truth()["categories"] * 2}, "two categories have the ID 3"),
    ("segm", truth(segmentation=[]), "no annotation has a segmentation to compare masks with"),
    ("keypoints", truth(keypoints=[1, 2, 2]), "annotation 1 has 3 numbers in 'keypoints'; its category"),
]


@pytest.mark.parametrize(("kind", "data", "message"), WRONG_TRUTH)
def test_wrong_ground_truth_is_one_clear_error(kind, data, message, tmp_path):
    seen = both_ways(tmp_path, data, [result()], kind)
    assert isinstance(seen, str)
    assert message in seen
    assert "\n" not in seen


def test_files_that_are_none(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(truth()))
    bad.write_text('[{"image_id": 1,\n  "score" 3}]')
    with pytest.raises(DataError, match=r"bad\.json:2: not valid JSON: Expecting ':' delimiter"):
        evaluate_coco(good, bad, "bbox")
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        evaluate_coco(good, tmp_path / "none.json", "bbox")
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        evaluate_coco(tmp_path / "none.json", good, "bbox")
