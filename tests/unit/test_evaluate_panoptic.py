"""Panoptic quality against a dictionary of pixels, against COCO's own tool, and by hand."""

import json

import numpy as np
import pytest
import torch

from tests import straight_pq
from visionkit.data import Source
from visionkit.errors import DataError
from visionkit.evaluate import PanopticEvaluator
from visionkit.evaluate.panoptic_metrics import Segments, match, summary
from visionkit.types import ImageInfo, LabelSet, PanopticPrediction, PanopticTarget

NAMES = LabelSet(names=("cat", "dog", "sky", "grass", "sand"), things=(True, True, False, False, False))


class Toy(Source):
    labels = {"panoptic": NAMES}

    def __len__(self):
        return 0

    def load(self, index, tasks):
        raise NotImplementedError


def info(number, size=(20, 30)):
    return ImageInfo(id=number, path=f"{number}.png", original_size=size, size=size)


def target(segments, labels, crowd=()):
    flags = torch.zeros(len(labels), dtype=torch.bool)
    flags[[i - 1 for i in crowd]] = True
    segments = torch.as_tensor(np.asarray(segments), dtype=torch.int32)
    return PanopticTarget(segments, torch.tensor(labels, dtype=torch.int64), flags, torch.arange(len(labels)))


def prediction(segments, labels):
    segments = torch.as_tensor(np.asarray(segments), dtype=torch.int32)
    return PanopticPrediction(segments, torch.tensor(labels, dtype=torch.int64), torch.ones(len(labels)))


def evaluator(pairs, start=0, **options):
    judge = PanopticEvaluator(Toy(), NAMES, **options)
    for number, (truth, found) in enumerate(pairs, start):
        judge.add([found], [truth], [info(number)])
    return judge


def random_pair(seed, size=(20, 30)):
    """Blocks of truth with void and crowds, and a prediction that is right here and there."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 9, (4, 5)).repeat(5, 0).repeat(6, 1)
    labels = rng.integers(0, 5, 8)
    stuff = [np.flatnonzero(labels == c) for c in (2, 3, 4)]
    for same in stuff:  # a class of stuff is one segment
        labels[same[1:]] = rng.integers(0, 2, len(same[1:]))
    crowd = [i + 1 for i in range(8) if labels[i] < 2 and rng.random() < 0.3]
    seen = np.where(rng.random(size) < 0.7, np.roll(blocks, rng.integers(-2, 3), 1), rng.integers(0, 10, size))
    used, seen = np.unique(seen, return_inverse=True)
    if used[0]:
        seen += 1
    guess = np.array([0, *labels, 0])[used[used > 0]]
    guess = np.where((guess < 2) & (rng.random(len(guess)) < 0.2), rng.integers(0, 2, len(guess)), guess)
    return target(blocks, labels.tolist(), crowd), prediction(seen.reshape(size), guess.tolist())


def straight(pairs):
    """All counts of these pairs, from sets of pixels."""
    return straight_pq.total(
        straight_pq.count(
            truth.segments.numpy(),
            dict(enumerate(zip(truth.labels.tolist(), truth.crowd.tolist()), 1)),
            found.segments.numpy(),
            dict(enumerate(found.labels.tolist(), 1)),
        )
        for truth, found in pairs
    )


@pytest.mark.parametrize("seed", range(6))
def test_against_sets_of_pixels(seed):
    pairs = [random_pair((seed, i)) for i in range(6)]
    sums = straight(pairs)
    result = evaluator(pairs, per_class=True).result()
    for suffix, classes in (("", range(5)), ("_th", (0, 1)), ("_st", (2, 3, 4))):
        parts = [result[part + suffix] for part in ("PQ", "SQ", "RQ")]
        assert parts == pytest.approx(straight_pq.averages(sums, classes), abs=1e-12, nan_ok=True)
    assert 0.05 < result["PQ"] < 0.95
    for label, name in enumerate(NAMES.names):
        assert result[f"PQ/{name}"] == pytest.approx(straight_pq.averages(sums, [label])[0], abs=1e-12, nan_ok=True)


def test_against_the_public_tool(repository):
    folder = repository / "tests" / "data" / "pq"
    maps, facts = np.load(folder / "maps.npz"), json.loads((folder / "result.json").read_text())
    counts = 0
    for image in facts["annotations"]:
        truth = Segments(
            np.array([s["id"] for s in image["gt"]]),
            np.array([s["category_id"] - 1 for s in image["gt"]]),
            np.array([bool(s["iscrowd"]) for s in image["gt"]]),
        )
        found = Segments(
            np.array([s["id"] for s in image["pred"]]), np.array([s["category_id"] - 1 for s in image["pred"]])
        )
        number = image["image"]
        counts = counts + match(maps[f"gt_{number}"], truth, maps[f"pred_{number}"], found, 4)
    for category, row in facts["per_class"].items():
        assert counts[int(category) - 1] == pytest.approx([row[k] for k in ("tp", "fp", "fn", "iou_sum")], abs=1e-12)
    result = summary(counts, [True, True, False, False], ("1", "2", "3", "4"))
    for suffix, group in (("", "all"), ("_th", "things"), ("_st", "stuff")):
        parts = {part: result[part.upper() + suffix] for part in ("pq", "sq", "rq")}
        assert parts == pytest.approx({part: facts[group][part] for part in parts}, abs=1e-12)
    for category, row in facts["per_class_pq"].items():
        assert result[f"PQ/{category}"] == pytest.approx(row["pq"], abs=1e-12)


def strip(*lengths):
    """A map of one row: lengths of pixels of 0, 1, 2 ..."""
    return np.repeat(np.arange(len(lengths)), lengths)[None]


def test_the_union_leaves_out_void():
    truth = target(strip(6, 10), [0])  # 6 of void, then 10 of a cat
    found = prediction(np.repeat([[1, 0]], [13, 3], 1), [0])  # 6 on void, 7 on the cat
    assert evaluator([(truth, found)]).result()["PQ"] == pytest.approx(7 / 10)


def test_half_is_no_match():
    truth = target(strip(0, 10), [0])
    assert evaluator([(truth, prediction(strip(5, 5), [0]))]).result()["PQ"] == 0  # an IoU of 0.5
    assert evaluator([(truth, prediction(strip(4, 6), [0]))]).result()["PQ"] == pytest.approx(0.6)


def test_another_class_is_no_match():
    truth, found = target(strip(0, 10), [0]), prediction(strip(0, 10), [1])
    result = evaluator([(truth, found)], per_class=True).result()
    assert (result["PQ"], result["PQ/cat"], result["PQ/dog"]) == (0, 0, 0)
    assert np.isnan(result["PQ/sky"])


def test_a_crowd_is_neither_matched_nor_missed():
    truth = target(strip(0, 10, 10), [0, 1], crowd=[1])
    dog = prediction(strip(10, 10), [1])
    assert evaluator([(truth, dog)]).result()["PQ"] == 1
    both = prediction(strip(0, 10, 10), [0, 1])
    assert evaluator([(truth, both)]).result() == evaluator([(truth, dog)]).result()


@pytest.mark.parametrize(("excused", "false"), [(5, 1.0), (6, 0.0)])
@pytest.mark.parametrize("crowd", [False, True])
def test_what_lies_on_void_or_crowd_for_more_than_half_is_excused(excused, false, crowd):
    lengths = (0, excused, 20 - excused) if crowd else (excused, 20 - excused)
    truth = target(strip(*lengths), [0, 2] if crowd else [2], crowd=[1] if crowd else [])
    found = prediction(np.repeat([[1, 2]], 10, 1), [0, 2])
    cat = straight_pq.averages(straight([(truth, found)]), [0])[0]
    assert evaluator([(truth, found)], per_class=True).result()["PQ/cat"] == pytest.approx(cat, nan_ok=True)
    assert cat == pytest.approx(0 if false else np.nan, nan_ok=True)


def test_a_crowd_of_another_class_excuses_nothing():
    truth = target(strip(0, 10), [1], crowd=[1])
    assert evaluator([(truth, prediction(strip(0, 10), [0]))], per_class=True).result()["PQ/cat"] == 0


def test_void_and_crowd_excuse_together():
    truth = target(strip(3, 3, 4), [0, 2], crowd=[1])
    result = evaluator([(truth, prediction(strip(0, 10), [0]))], per_class=True).result()
    assert np.isnan(result["PQ/cat"])


def test_regions_of_one_stuff_class_are_one_segment():
    """Two classes of the source may have become one of the head."""
    truth = target(strip(0, 6, 5, 4), [2, 1, 2])
    found = prediction(np.repeat([[1, 2, 1]], [6, 5, 4], 1), [2, 1])
    assert evaluator([(truth, found)]).result()["PQ"] == 1
    things = target(strip(0, 6, 5, 4), [0, 1, 0])
    assert evaluator([(things, prediction(found.segments, [0, 1]))]).result()["PQ"] < 1


class Catless(Toy):
    labels = {"panoptic": LabelSet(names=("puppy", "sky"), things=(True, False))}


def test_predictions_of_classes_that_the_source_does_not_know_are_left_out():
    truth, found = target(strip(0, 10, 10), [1, 2]), prediction(strip(0, 4, 6, 10), [0, 1, 2])
    judge = PanopticEvaluator(Catless(), NAMES, label_map={"puppy": "dog"}, per_class=True)
    judge.add([found], [truth], [info(1)])
    result = judge.result()
    assert np.isnan(result["PQ/cat"])
    assert (result["PQ/dog"], result["PQ/sky"]) == (0.6, 1)
    unmapped = PanopticEvaluator(Catless(), NAMES, per_class=True)
    unmapped.add([found], [truth], [info(1)])
    assert unmapped.result()["PQ/dog"] == 0  # left out too, so that the dog is missed


def test_predicted_segments_without_a_pixel_do_not_count():
    assert evaluator([(target(strip(0, 10), [0]), prediction(strip(0, 10), [0, 1]))]).result()["PQ"] == 1


def test_merging_in_any_order_gives_the_same_bits():
    pairs = [random_pair((9, i)) for i in range(12)]
    whole = evaluator(pairs).result()
    parts = [evaluator(pairs[i : i + 5], start=i) for i in (8, 4, 0)]  # two images in common
    parts[0].merge([part.state() for part in parts[1:]])
    assert parts[0].result() == whole


def test_images_without_truth_do_not_count():
    judge = PanopticEvaluator(Toy(), NAMES)
    judge.add([prediction(strip(0, 4), [0])], [None], [info(1)])
    assert np.isnan(list(judge.result().values())).all()
    judge.add([prediction(strip(4), [])], [target(strip(4), [])], [info(2)])
    assert np.isnan(list(judge.result().values())).all()


def test_an_image_without_pixels():
    empty = np.zeros((0, 4), int)
    assert evaluator([(target(empty, []), prediction(empty, []))]).result()["PQ"] == pytest.approx(np.nan, nan_ok=True)


def test_errors_name_the_image():
    with pytest.raises(DataError, match=r"image 0 \(0.png\): .*1x4 and 1x5"):
        evaluator([(target(strip(0, 4), [0]), prediction(strip(0, 5), [0]))])
    with pytest.raises(DataError, match=r"image 0 \(0.png\): segment 2 of the predicted map"):
        evaluator([(target(strip(0, 4), [0]), prediction(strip(0, 2, 2), [0]))])
