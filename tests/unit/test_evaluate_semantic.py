"""The semantic metrics against torchmetrics and by hand."""

import copy
import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from visionkit.data import Source
from visionkit.errors import DataError
from visionkit.evaluate import SemanticEvaluator
from visionkit.types import ImageInfo, LabelSet, SemanticPrediction, SemanticTarget


class Toy(Source):
    labels = {}

    def __len__(self):
        return 0

    def load(self, index, tasks):
        raise NotImplementedError


def info(number, size=(20, 30)):
    return ImageInfo(id=number, path=f"{number}.png", original_size=size, size=size)


def evaluate(pairs, classes, **options):
    names = LabelSet(names=tuple(f"c{i}" for i in range(classes)))
    evaluator = SemanticEvaluator(Toy(), names, **options)
    for number, (seen, truth) in enumerate(pairs):
        target = None if truth is None else SemanticTarget(truth)
        evaluator.add([SemanticPrediction(seen)], [target], [info(number)])
    return evaluator


def random_pairs(classes, used, images=4):
    g = torch.Generator().manual_seed(classes)
    pairs = []
    for _ in range(images):
        truth = torch.randint(0, used, (20, 30), generator=g)
        seen = torch.where(torch.rand(20, 30, generator=g) < 0.7, truth, torch.randint(0, used, (20, 30), generator=g))
        truth[torch.rand(20, 30, generator=g) < 0.1] = 255
        pairs.append((seen.to(torch.uint8), truth.to(torch.uint8)))
    return pairs


@pytest.mark.parametrize(("classes", "used"), [(2, 2), (5, 3), (40, 37), (254, 200)])
def test_against_torchmetrics(classes, used):
    pairs = random_pairs(classes, used)
    result = evaluate(pairs, classes, per_class=True).result()
    seen, truth = (torch.stack(side).long() for side in zip(*pairs))
    options = {"num_classes": classes, "ignore_index": 255}
    present = torch.unique(torch.cat((seen[truth != 255], truth[truth != 255])))
    each = MulticlassJaccardIndex(average="none", **options)(seen, truth)
    assert result["mIoU"] == pytest.approx(float(each[present].mean()), abs=1e-6)
    assert result["mIoU"] == pytest.approx(float(MulticlassJaccardIndex(**options)(seen, truth)), abs=1e-6)
    assert result["pixel_accuracy"] == pytest.approx(float(MulticlassAccuracy(average="micro", **options)(seen, truth)))
    recall = MulticlassAccuracy(average="none", **options)(seen, truth)[torch.unique(truth[truth != 255])]
    assert result["mean_accuracy"] == pytest.approx(float(recall.mean()), abs=1e-6)
    for c in range(classes):
        assert result[f"IoU/c{c}"] == pytest.approx(float(each[c]) if c in present else math.nan, abs=1e-6, nan_ok=True)


def test_by_hand():
    seen = torch.tensor([[0, 0, 1, 1], [2, 2, 1, 1]], dtype=torch.uint8)
    truth = torch.tensor([[0, 0, 0, 1], [255, 255, 1, 1]], dtype=torch.uint8)
    result = evaluate([(seen, truth)], 4, per_class=True).result()
    # 2 is only predicted where nothing counts, 3 nowhere: neither is in the mean.
    assert result["mIoU"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert result["pixel_accuracy"] == pytest.approx(5 / 6)
    assert result["mean_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert [result[f"IoU/c{c}"] for c in range(4)] == pytest.approx([2 / 3, 3 / 4, math.nan, math.nan], nan_ok=True)


def test_another_value_may_be_ignored():
    seen = torch.tensor([[0, 1, 1, 0]], dtype=torch.uint8)
    truth = torch.tensor([[0, 1, 0, 1]], dtype=torch.int64)
    assert evaluate([(seen, truth)], 2, ignore=0).result()["pixel_accuracy"] == 0.5


def test_nothing_to_judge():
    blank = torch.full((20, 30), 255, dtype=torch.uint8)
    zeros = torch.zeros(20, 30, dtype=torch.uint8)
    for pairs in ([], [(zeros, None)], [(zeros, blank)]):
        assert all(map(math.isnan, evaluate(pairs, 3, per_class=True).result().values()))


def test_processes_that_saw_some_images_twice():
    pairs = random_pairs(5, 5)
    whole = evaluate(pairs, 5)
    parts = [evaluate(pairs[:3], 5), evaluate([], 5)]
    for number in (2, 3):
        parts[1].add([SemanticPrediction(pairs[number][0])], [SemanticTarget(pairs[number][1])], [info(number)])
    parts[0].merge([copy.deepcopy(parts[1].state())])
    assert parts[0].result() == whole.result()
    assert (parts[0].confusion() == whole.confusion()).all()


def test_errors_name_the_image():
    zeros = torch.zeros(20, 30, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"image 0 \(0.png\): a prediction of \(20, 30\) pixels for .* of \(20, 31\)"):
        evaluate([(zeros, torch.zeros(20, 31, dtype=torch.uint8))], 2)
    with pytest.raises(DataError, match=r"image 0 \(0.png\): label 7 in the truth; there are 2 classes, and 255 is"):
        evaluate([(zeros, zeros + 7)], 2)
    with pytest.raises(DataError, match=r"labels 0 \(truth\) and 2 \(prediction\) of 2 classes"):
        evaluate([(zeros + 2, zeros)], 2)
