"""The COCO evaluators of predictions: ids, label maps, merging, and ground truth made of targets."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from visionkit import rle
from visionkit.data import Source
from visionkit.evaluate import CocoBoxes, CocoKeypoints, CocoMasks
from visionkit.evaluate import evaluate_coco as evaluate_files
from visionkit.types import BoxPrediction, ImageInfo, InstanceTarget, KeypointPrediction, LabelSet, MaskPrediction

HEIGHT, WIDTH, POINTS = 60, 80, 4
THEIRS = LabelSet(names=("cat", "dog", "cow"), ids=(17, 4, 21))
TASKS = ("boxes", "masks", "keypoints")
KINDS = {"boxes": (CocoBoxes, "bbox"), "masks": (CocoMasks, "segm"), "keypoints": (CocoKeypoints, "keypoints")}


def evaluate_coco(*args, **options):
    """The official metrics; NaN, as in all evaluators, where COCO's tools say -1."""
    return without_nothing(evaluate_files(*args, **options))


def without_nothing(metrics):
    return {name: pytest.approx(np.nan if v == -1 else v, abs=0, rel=0, nan_ok=True) for name, v in metrics.items()}


class Toy(Source):
    """Annotations without images; with or without a COCO dictionary."""

    def __init__(self, truth=None, labels=THEIRS, tasks=TASKS):
        self.labels = dict.fromkeys(tasks, labels)
        self.truth = truth

    def __len__(self):
        return 0

    def load(self, index, tasks):
        raise NotImplementedError

    def coco_ground_truth(self):
        return copy.deepcopy(self.truth)


def make(seed=0, images=6, labels=THEIRS, names=False):
    """A COCO dictionary, the same as targets in the labels of the source, and predictions in them."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip(labels.ids, labels.names)],
    }
    infos, targets, predictions = [], [], []
    for n in range(images):
        number = f"{n}.jpg" if names else n + 10
        truth["images"].append({"id": number, "height": HEIGHT, "width": WIDTH})
        infos.append(ImageInfo(id=number, path="", original_size=(HEIGHT, WIDTH), size=(HEIGHT, WIDTH)))
        count = int(rng.integers(0, 5))
        corner = rng.integers(0, 40, (count, 2))
        boxes = np.concatenate((corner, corner + rng.integers(5, 20, (count, 2))), 1).astype(np.float32)
        masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int)):
            mask[y0:y1, x0:x1] = 1
            mask[y0, x0] = 0
        label = rng.integers(0, len(labels), count)
        crowd = rng.random(count) < 0.2
        points = np.concatenate(
            (boxes[:, None, :2] + rng.integers(0, 9, (count, POINTS, 2)), rng.integers(0, 3, (count, POINTS, 1))), 2
        )
        for i in range(count):
            x0, y0, x1, y1 = boxes[i].tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": labels.ids[label[i]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(masks[i].sum()),
                    "iscrowd": int(crowd[i]),
                    "segmentation": rle.encode(masks[i]),
                    "keypoints": points[i].ravel().tolist(),
                    "num_keypoints": int((points[i, :, 2] > 0).sum()),
                }
            )
        t = torch.from_numpy
        areas = t(masks.sum((1, 2)).astype(np.float32))
        ids = torch.arange(count)
        targets.append(InstanceTarget(t(boxes), t(label), t(crowd), areas, ids, t(masks), t(points.astype(np.float32))))
        # Found again with noise, twice each, and some with the wrong label.
        again = np.tile(boxes, (2, 1)) + rng.integers(-2, 3, (2 * count, 4)) * 0.5
        guess = np.where(rng.random(2 * count) < 0.8, np.tile(label, 2), rng.integers(0, len(labels), 2 * count))
        where = np.tile(points[:, :, :2], (2, 1, 1)) + rng.normal(0, 1, (2 * count, POINTS, 2))
        predictions.append(
            {
                "boxes": t(again.astype(np.float32)),
                "scores": t(rng.random(2 * count).astype(np.float32)),
                "labels": t(guess),
                "rles": [rle.encode(np.roll(masks[i % count], i // count, 1)) for i in range(2 * count)],
                "keypoints": t(np.concatenate((where, np.ones((2 * count, POINTS, 1))), 2).astype(np.float32)),
            }
        )
    return truth, targets, predictions, infos


def of_kind(task, p):
    plain = p["boxes"], p["scores"], p["labels"]
    if task == "boxes":
        return BoxPrediction(*plain)
    return MaskPrediction(*plain, rles=p["rles"]) if task == "masks" else KeypointPrediction(*plain, p["keypoints"])


def expected(task, truth, predictions, infos, labels=THEIRS, **options):
    """The same by the files that a run writes."""
    records = [r for p, i in zip(predictions, infos) for r in of_kind(task, p).to_coco(i.id, labels)]
    return evaluate_coco(truth, records, KINDS[task][1], backend="pycocotools", **options)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("names", [False, True])
def test_results_are_those_of_the_results_file(task, names):
    truth, _, predictions, infos = make(names=names)
    evaluator = KINDS[task][0](Toy(truth), THEIRS, per_class=True)
    assert not evaluator.needs_targets
    for i in range(0, len(infos), 2):
        made = [of_kind(task, p) for p in predictions[i : i + 2]]
        evaluator.add(made, [None, None][: len(made)], infos[i : i + 2])
    result = evaluator.result()
    assert result == expected(task, truth, predictions, infos, per_class=True)
    assert 0 < result["AP"] < 1
    assert {"AP/cat", "AP/dog", "AP/cow"} < result.keys()


@pytest.mark.parametrize("task", TASKS)
def test_ground_truth_made_of_targets_gives_the_same(task):
    truth, targets, predictions, infos = make()
    evaluator = KINDS[task][0](Toy(), THEIRS)
    assert evaluator.needs_targets
    # An image without a target is not annotated, and does not count.
    extra = dataclasses.replace(infos[0], id=99)
    evaluator.add([of_kind(task, p) for p in predictions], targets, infos)
    evaluator.add([of_kind(task, predictions[1])], [None], [extra])
    assert evaluator.result() == expected(task, truth, predictions, infos)


def test_only_the_images_that_were_added_are_judged():
    truth, _, predictions, infos = make()
    evaluator = CocoBoxes(Toy(truth), THEIRS)
    assert np.isnan(list(evaluator.result().values())).all()
    evaluator.add([of_kind("boxes", p) for p in predictions[:3]], [None] * 3, infos[:3])
    some = [i.id for i in infos[:3]]
    assert evaluator.result() == expected("boxes", truth, predictions[:3], infos, image_ids=some)


@pytest.mark.parametrize("source", ["file", "targets"])
def test_processes_that_saw_some_images_twice(source):
    truth, targets, predictions, infos = make()
    toy = Toy(truth if source == "file" else None)
    made = [of_kind("masks", p) for p in predictions]
    parts = [CocoMasks(toy, THEIRS) for _ in range(3)]
    for rank, part in enumerate(parts):
        mine = [i % len(infos) for i in range(rank, len(infos) + 3, 3)]  # the last round begins anew
        part.add([made[i] for i in mine], [targets[i] for i in mine], [infos[i] for i in mine])
    states = [copy.deepcopy(part.state()) for part in parts]
    parts[1].merge([states[0], states[2]])
    assert parts[1].result() == expected("masks", truth, predictions, infos)


@pytest.mark.parametrize("source", ["file", "targets"])
def test_classes_of_the_source_are_mapped_merged_and_dropped(source):
    truth, targets, predictions, infos = make(images=12)
    ours = LabelSet(names=("bird", "pet"))  # the source knows no bird; cats and dogs are pets, cows are nothing
    label_map = {"cat": "pet", "dog": "pet", "cow": None}
    table = torch.tensor([1, 1, -1])
    evaluator = CocoBoxes(Toy(truth if source == "file" else None), ours, label_map=label_map)
    made = [BoxPrediction(p["boxes"], p["scores"], (p["labels"] < 2).long()) for p in predictions]
    evaluator.add(made, [t.relabel(table) for t in targets], infos)

    pets = copy.deepcopy(truth)
    pets["annotations"] = [a | {"category_id": 17} for a in pets["annotations"] if a["category_id"] != 21]
    pets["categories"] = [{"id": 17, "name": "pet"}]
    records = [r for p, i in zip(predictions, infos) for r in of_kind("boxes", p).to_coco(i.id, THEIRS)]
    records = [r | {"category_id": 17} for r in records if r["category_id"] != 21]
    assert evaluator.result() == evaluate_coco(pets, records, "bbox", backend="pycocotools")


def test_masks_may_be_judged_by_their_boxes():
    truth, _, predictions, infos = make()
    evaluator = CocoBoxes(Toy(truth, tasks=("masks",)), THEIRS)
    evaluator.add([of_kind("masks", p) for p in predictions], [None] * len(infos), infos)
    assert evaluator.result() == expected("boxes", truth, predictions, infos)


def test_where_sigmas_come_from():
    truth, _, predictions, infos = make()

    def result(ours=THEIRS, theirs=THEIRS, **options):
        evaluator = CocoKeypoints(Toy(truth, labels=theirs), ours, **options)
        evaluator.add([of_kind("keypoints", p) for p in predictions], [None] * len(infos), infos)
        return evaluator.result()

    def by(value):
        return expected("keypoints", truth, predictions, infos, sigmas=[value] * POINTS)

    with_sigmas = [dataclasses.replace(THEIRS, sigmas=(s,) * POINTS) for s in (0.1, 0.2)]
    assert result() == by(0.05)
    assert result(theirs=with_sigmas[0]) == by(0.1)
    assert result(ours=with_sigmas[1], theirs=with_sigmas[0]) == by(0.2)
    assert result(ours=with_sigmas[1], sigmas=[0.3] * POINTS) == by(0.3)


def test_limit_of_detections():
    truth, _, predictions, infos = make()
    evaluator = CocoBoxes(Toy(truth), THEIRS, max_detections=2, backend="pycocotools")
    evaluator.add([of_kind("boxes", p) for p in predictions], [None] * len(infos), infos)
    result = evaluator.result()
    assert result == expected("boxes", truth, predictions, infos, max_dets=[1, 2])
    assert "AR2" in result
