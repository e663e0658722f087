"""PCK, AUC and mean error against a plain computation joint by joint, and by hand."""

import copy
import math

import pytest
import torch

from visionkit.data import Source
from visionkit.errors import DataError
from visionkit.evaluate import CocoKeypoints, PckEvaluator
from visionkit.types import ImageInfo, InstanceTarget, KeypointPrediction, LabelSet

NAMES = ("head", "neck", "hip", "foot")
SIGMAS = (0.03, 0.08, 0.1, 0.09)
LABELS = LabelSet(("robot", "mouse"), keypoints=NAMES, sigmas=SIGMAS)


class Toy(Source):
    labels = {"keypoints": LABELS}

    def __len__(self):
        return 0

    def load(self, index, tasks):
        raise NotImplementedError


def info(number):
    return ImageInfo(id=number, path=f"{number}.png", original_size=(200, 300), size=(200, 300))


def target(boxes, keypoints, labels=None, crowd=None):
    boxes, n = torch.tensor(boxes, dtype=torch.float32).view(-1, 4), len(boxes)
    return InstanceTarget(
        boxes=boxes,
        labels=torch.tensor(labels or [0] * n, dtype=torch.int64),
        crowd=torch.tensor(crowd or [False] * n, dtype=torch.bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1) * 0.6,
        ids=torch.arange(n),
        keypoints=torch.tensor(keypoints, dtype=torch.float32).view(n, 4, 3),
    )


def prediction(keypoints, labels=None, scores=None):
    n = len(keypoints)
    points = torch.tensor(keypoints, dtype=torch.float32).view(n, -1, 2) if n else torch.zeros(0, 4, 2)
    return KeypointPrediction(
        boxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]] * n).view(n, 4),
        scores=torch.tensor(scores or [0.9] * n, dtype=torch.float32),
        labels=torch.tensor(labels or [0] * n, dtype=torch.int64),
        keypoints=torch.cat((points, torch.ones(*points.shape[:2], 1)), 2),
    )


def evaluator_of(pairs, **options):
    evaluator = PckEvaluator(Toy(), LABELS, **options)
    for number, (seen, truth) in enumerate(pairs):
        evaluator.add([seen], [truth], [info(number)])
    return evaluator


def random_pairs(images=20, seed=0):
    """Objects of two classes, some of them crowds or without a labelled joint; too many or too few predictions."""
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.rand(*size, generator=g)

    pairs = []
    for _ in range(images):
        n = int(draw(1) * 5)
        corner = draw(n, 2) * 100
        extent = draw(n, 2) * 80 + 5
        points = corner[:, None] + draw(n, 4, 2) * extent[:, None]
        visible = (draw(n, 4, 1) * 3).floor() * (draw(n, 1, 1) < 0.85)
        labels = (draw(n) * 2).long()
        truth = target(
            torch.cat((corner, corner + extent), 1).tolist(),
            torch.cat((points, visible), 2).tolist(),
            labels.tolist(),
            (draw(n) < 0.15).tolist(),
        )
        again = torch.cat((points, points))[: int(draw(1) * 2 * n + 1)]
        order = torch.randperm(len(again), generator=g)
        noisy = again + torch.randn(again.shape, generator=g) * draw(len(again), 1, 1) * 20
        guess = torch.where(draw(len(again)) < 0.8, torch.cat((labels, labels))[: len(again)], 1)
        seen = prediction(noisy[order].tolist(), guess[order].tolist(), draw(len(again)).tolist())
        pairs.append((seen, truth))
    return pairs


def plainly(pairs, thresholds, segment=None, factor=1.0, min_score=0.0, least=1):
    """The same, one joint after the other."""
    relative, pixels, found, objects = [], [], 0, 0
    for seen, truth in pairs:
        made = [
            (points[:, :2].tolist(), label)
            for points, label, score in zip(seen.keypoints, seen.labels.tolist(), seen.scores.tolist())
            if score >= min_score
        ]
        people = []
        for i, points in enumerate(truth.keypoints.tolist()):
            counted = [k for k in range(4) if points[k][2] >= least]
            if truth.crowd[i] or not counted:
                continue
            left, top, right, bottom = truth.boxes[i].tolist()
            size = max(right - left, bottom - top)
            if segment is not None:
                a, b = points[segment[0]], points[segment[1]]
                size = math.dist(a[:2], b[:2]) if a[2] and b[2] else None
            people.append((points, counted, int(truth.labels[i]), size, float(truth.areas[i])))
        ranked = []
        for p, (points, counted, label, _, area) in enumerate(people):
            for m, (guess, its) in enumerate(made):
                if its == label:
                    apart = [math.dist(points[k][:2], guess[k]) for k in counted]
                    oks = [math.exp(-(d**2) / (2 * area * (2 * SIGMAS[k]) ** 2)) for d, k in zip(apart, counted)]
                    ranked.append((-sum(oks) / len(oks), sum(apart) / len(apart), p, m, apart))
        objects += len(people)
        taken = {}
        for _, _, p, m, apart in sorted(ranked):
            if p not in taken and all(m != other for other, _ in taken.values()):
                taken[p] = m, apart
        for p, (_, counted, _, size, _) in enumerate(people):
            apart = taken[p][1] if p in taken else [math.inf] * len(counted)
            found += p in taken
            pixels += apart if p in taken else []
            relative += [d / (size * factor) for d in apart] if size else []
    out = {f"PCK@{t:g}": sum(d <= t for d in relative) / len(relative) for t in thresholds}
    steps = 4000  # the curve itself, summed up
    top = max(thresholds)
    curve = [sum(d <= top * (s + 0.5) / steps for d in relative) / len(relative) for s in range(steps)]
    return out | {
        "AUC": sum(curve) / steps,
        "mean_error_px": sum(pixels) / len(pixels),
        "found": found / objects,
    }


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, {}),
        ({"segment": ("head", "neck"), "factor": 0.6}, {"segment": (0, 1), "factor": 0.6}),
        ({"min_score": 0.4}, {"min_score": 0.4}),
        ({"only_visible": True}, {"least": 2}),
    ],
    ids=["box", "segment", "score", "visible"],
)
def test_against_a_plain_computation(options, plain):
    pairs = random_pairs()
    thresholds = [0.1, 0.5]
    result = evaluator_of(pairs, thresholds=thresholds, **options).result()
    expected = plainly(pairs, thresholds, **plain)
    assert 0 < expected["PCK@0.1"] < expected["PCK@0.5"] < 1
    assert expected["found"] < 1
    assert result.pop("AUC") == pytest.approx(expected.pop("AUC"), abs=2e-4)
    assert result == pytest.approx(expected, rel=1e-6)


ONE = target([[10, 10, 50, 90]], [[20, 20, 2, 20, 30, 1, 20, 60, 0, 30, 80, 2]])
"""One object 80 pixels high, whose hip is not labelled."""


def test_one_object_by_hand():
    seen = prediction([[20, 24, 26, 38, 999, 999, 30, 80]])  # 4, 10, not counted and 0 pixels away
    result = evaluator_of([(seen, ONE)], thresholds=[0.05, 0.1, 0.2], per_keypoint=True).result()
    assert [result[f"PCK@{t}"] for t in (0.05, 0.1, 0.2)] == pytest.approx([2 / 3, 2 / 3, 1])  # 4, 8 and 16 pixels
    assert result["AUC"] == pytest.approx((12 / 16 + 6 / 16 + 1) / 3)
    assert result["mean_error_px"] == pytest.approx(14 / 3)
    assert result["found"] == 1
    assert [result[f"mean_error_px/{name}"] for name in NAMES] == pytest.approx([4, 10, math.nan, 0], nan_ok=True)
    assert [result[f"PCK@0.05/{name}"] for name in NAMES] == pytest.approx([1, 0, math.nan, 1], nan_ok=True)


def test_pckh_measures_by_the_head():
    seen = prediction([[20, 24, 20, 36, 999, 999, 30, 80]])  # head to neck: 10 pixels
    options = {"segment": ("neck", "head"), "metric": "PCKh", "thresholds": [0.5]}
    assert evaluator_of([(seen, ONE)], **options).result()["PCKh@0.5"] == pytest.approx(2 / 3)
    assert evaluator_of([(seen, ONE)], **options, factor=0.6).result()["PCKh@0.5"] == pytest.approx(1 / 3)
    headless = target([[10, 10, 50, 90]], [[20, 20, 0, 20, 30, 1, 20, 60, 0, 30, 80, 2]])
    result = evaluator_of([(seen, headless)], **options).result()
    assert math.isnan(result["PCKh@0.5"])
    assert math.isnan(result["AUC"])
    assert result["mean_error_px"] == pytest.approx(3)  # 6 and 0: pixels need no size


def test_who_was_not_found_is_wrong_in_pck_and_apart_in_the_error():
    truth = target([[10, 10, 50, 90], [100, 10, 140, 90]], [[20, 20, 2] * 4, [120, 20, 2] * 4])
    nobody = KeypointPrediction(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 4, 3))
    result = evaluator_of([(prediction([[20, 23] * 4]), truth)]).result()
    assert [result[f"PCK@{t}"] for t in (0.05, 0.1, 0.2, 0.5)] == [0.5] * 4
    assert result["AUC"] == pytest.approx(0.5 * (1 - 3 / 40))
    assert (result["mean_error_px"], result["found"]) == (3, 0.5)
    for seen in (nobody, prediction([[20, 20] * 4], labels=[1]), prediction([[20, 20] * 4], scores=[0.2])):
        result = evaluator_of([(seen, truth)], min_score=0.3).result()
        assert (result["PCK@0.5"], result["AUC"], result["found"]) == (0, 0, 0)
        assert math.isnan(result["mean_error_px"])


def test_people_are_paired_by_similarity_whatever_the_order():
    """The first prediction is near to both; it belongs to the one that it is nearer to."""
    truth = target([[10, 10, 50, 90], [18, 10, 58, 90]], [[20, 20, 2] * 4, [28, 20, 2] * 4])
    both = [[26, 20] * 4, [17, 20] * 4]
    for seen in (prediction(both), prediction(both[::-1])):
        result = evaluator_of([(seen, truth)]).result()
        assert (result["mean_error_px"], result["found"]) == (2.5, 1)


def test_people_too_far_away_for_similarity_are_paired_by_distance():
    truth = target([[10, 10, 20, 20], [30, 10, 40, 20]], [[15, 15, 2] * 4, [35, 15, 2] * 4])
    result = evaluator_of([(prediction([[9000, 15] * 4, [8000, 15] * 4]), truth)]).result()
    assert result["found"] == 1
    assert result["mean_error_px"] == pytest.approx((7965 + 8985) / 2)


def test_nothing_to_judge():
    crowd = target([[10, 10, 50, 90]], [[20, 20, 2] * 4], crowd=[True])
    unlabelled = target([[10, 10, 50, 90]], [[20, 20, 0] * 4])
    seen = prediction([[20, 20] * 4])
    without = InstanceTarget.empty()
    for pairs in ([], [(seen, None)], [(seen, crowd)], [(seen, unlabelled)], [(seen, without)],
                  [(seen, InstanceTarget.empty(num_keypoints=4))]):  # fmt: skip
        assert all(map(math.isnan, evaluator_of(pairs, per_keypoint=True).result().values()))


def test_processes_that_saw_some_images_twice():
    pairs = random_pairs()
    whole = evaluator_of(pairs)
    first, second = evaluator_of(pairs[:5]), PckEvaluator(Toy(), LABELS)
    for number in range(3, len(pairs)):
        second.add([pairs[number][0]], [pairs[number][1]], [info(number)])
    first.merge([copy.deepcopy(second.state())])
    assert first.result() == whole.result()


@pytest.mark.parametrize("evaluator", [PckEvaluator, CocoKeypoints])
def test_a_wrong_number_of_sigmas_is_told_at_once(evaluator):
    with pytest.raises(DataError, match=r"4 keypoints need 4 sigmas above 0, not \[0.1, 0.1\]"):
        evaluator(Toy(), LABELS, sigmas=[0.1, 0.1])


def test_sigmas_have_their_order_of_precedence():
    bare = LabelSet(("robot", "mouse"), keypoints=NAMES)

    class Without(Toy):
        labels = {"keypoints": bare}

    assert PckEvaluator(Toy(), LABELS, sigmas=[0.2] * 4).sigmas.tolist() == [0.2] * 4
    assert PckEvaluator(Without(), LABELS).sigmas.tolist() == list(SIGMAS)
    assert PckEvaluator(Toy(), bare).sigmas.tolist() == list(SIGMAS)
    assert PckEvaluator(Without(), bare).sigmas.tolist() == [0.05] * 4


def test_errors_say_what_is_allowed():
    with pytest.raises(ValueError, match=r"no keypoint 'haed' among head, neck, hip, foot; did you mean 'head'\?"):
        PckEvaluator(Toy(), LABELS, segment=("haed", "neck"))
    with pytest.raises(ValueError, match=r"thresholds and factor must be above 0, not \[0.1, 0\] and 1"):
        PckEvaluator(Toy(), LABELS, thresholds=[0.1, 0])
    with pytest.raises(DataError, match=r"0.png: a prediction of 3 keypoints; the labels name 4"):
        evaluator_of([(prediction([[1, 2] * 3]), ONE)])
