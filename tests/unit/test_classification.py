"""A class for a whole image: GoogLeNet against its paper and torchvision, the head, and the accuracies."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import googlenet

from visionkit.config import load_pipeline, parse_pipeline
from visionkit.data import Source
from visionkit.data.label_sets import label_set
from visionkit.errors import DataError, UserError
from visionkit.evaluate import ClassificationEvaluator
from visionkit.model.build import build_model, placeholder_labels
from visionkit.model.importing import build_importer
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import Batch, ClassPrediction, ClassTarget, FeatureSpec, ImageInfo, LabelSet, Level
from visionkit_backbones.classification import Classification
from visionkit_backbones.googlenet import GoogLeNet

SPEC = FeatureSpec({"c4": Level(6, 16), "c5": Level(8, 32)})
LABELS = LabelSet(("cat", "dog", "cow"))


def info(height: int, width: int, number: int = 0) -> ImageInfo:
    return ImageInfo(number, "", (height, width), (height, width), (1.0, 0, 0, 0, 1.0, 0))


def view(images: Tensor, labels: list[int], sizes: list[tuple[int, int]] | None = None) -> Batch[ClassTarget]:
    own = sizes or [(images.shape[2], images.shape[3])] * len(images)
    targets = tuple(ClassTarget(torch.tensor(label)) for label in labels)
    return Batch(images, tuple(info(h, w, i) for i, (h, w) in enumerate(own)), targets)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- GoogLeNet


@torch.no_grad()
def test_maps_of_googlenet_are_those_of_table_1() -> None:
    with torch.device("meta"):
        made = GoogLeNet()(torch.zeros(1, 3, 224, 224))
    assert {name: tuple(x.shape[1:3]) for name, x in made.items()} == {
        "c1": (64, 112), "c2": (192, 56), "c3": (480, 28), "inception_4a": (512, 14), "inception_4d": (528, 14),
        "c4": (832, 14), "c5": (1024, 7),
    }  # fmt: skip


def test_the_pipeline_has_the_parameters_of_the_paper() -> None:
    """With both auxiliary classifiers, and without them."""
    pipeline, plugins = load_pipeline("googlenet_imagenet"), PluginManager()
    with torch.device("meta"):
        model = build_model(pipeline, plugins, placeholder_labels(pipeline, plugins))
    assert parameters(model) == 13_378_280
    assert parameters(model) - parameters(model.head("class").auxiliary) == 6_998_552


def test_the_third_branch_has_kernels_of_5x5() -> None:
    with torch.device("meta"):
        kernels = [m.kernel_size for m in GoogLeNet().modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((5, 5)) == 9


def test_a_googlenet_without_auxiliary_classifiers_is_imported_without_them() -> None:
    with torch.device("meta"):
        theirs = googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=3)
        importer = build_importer(PluginManager(), "torchvision/googlenet", ["transform_input=false"])
        text, labels = importer.describe(theirs.state_dict())
        mine = build_model(parse_pipeline(text, "googlenet"), PluginManager(), labels)
    assert mine.backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    assert importer.convert(theirs.state_dict()).keys() == mine.state_dict().keys()


@pytest.mark.parametrize("classes", [7, 1000])
@torch.no_grad()
def test_imported_weights_answer_as_torchvision_does(classes: int) -> None:
    """Its auxiliary classifiers too, which it asks in training only; and its change of pixels (transform_input)."""
    torch.manual_seed(0)
    theirs = googlenet(weights=None, transform_input=True, init_weights=False, num_classes=classes)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    importer = PluginManager().load("importer", "torchvision/googlenet")()
    text, labels = importer.describe(theirs.state_dict())
    with torch.device("meta"):
        mine = build_model(parse_pipeline(text, "googlenet"), PluginManager(), labels)
    mine.to_empty(device="cpu")
    load_state(mine, importer.convert(theirs.state_dict()), "googlenet")
    mine.eval(), theirs.eval()
    assert parameters(mine) == parameters(theirs)
    assert classes != 1000 or parameters(mine) == 13_004_888
    pixels = torch.rand(2, 3, 96, 96)
    maps: dict[str, Tensor] = {}
    for name, layer in (("aux1", theirs.inception4a), ("aux2", theirs.inception4d)):
        layer.register_forward_hook(lambda module, args, out, name=name: maps.update({name: out}))

    wanted = theirs((pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
                    / torch.tensor([0.229, 0.224, 0.225])[:, None, None])  # fmt: skip
    head = mine.head("class")
    output = head(mine.features((pixels - 0.5) / 0.5), view(pixels, [0, 1]), {})

    torch.testing.assert_close(output.logits, wanted, rtol=0, atol=1e-4)
    for i, name in enumerate(("aux1", "aux2")):
        seen = head.auxiliary[i](head._cells(output.auxiliary[i]))
        torch.testing.assert_close(seen, getattr(theirs, name)(maps[name]), rtol=0, atol=1e-4)


def test_a_layer_behind_the_last_level_that_is_read_is_not_built() -> None:
    assert "inception_4e" not in GoogLeNet(levels=["inception_4d"]).layers
    with pytest.raises(UserError, match="googlenet has no level 'p2'"):
        GoogLeNet(levels=["p2"])


# -- the head


def features(count: int = 2, side: int = 4) -> dict[str, Tensor]:
    return {"c4": torch.rand(count, 6, 2 * side, 2 * side), "c5": torch.rand(count, 8, side, side)}


def test_the_loss_is_that_of_the_classes_and_of_the_auxiliary_classifiers() -> None:
    torch.manual_seed(0)
    head = Classification(SPEC, LABELS, auxiliary={"c4": 0.3}, label_smoothing=0.1).eval()
    given, batch = features(), view(torch.zeros(2, 3, 128, 128), [2, 0])
    output = head(given, batch, {})
    loss = head.losses(output, batch)["classification"]
    truth = torch.tensor([2, 0])
    side = head.auxiliary[0](F.adaptive_avg_pool2d(given["c4"], 4))
    soft = 0.9 * F.one_hot(truth, 3) + 0.1 / 3
    wanted = -(soft * output.logits.log_softmax(1)).sum(1) - 0.3 * (soft * side.log_softmax(1)).sum(1)
    torch.testing.assert_close(loss.value(), wanted.mean())


def test_an_image_of_none_of_the_classes_teaches_nothing() -> None:
    head = Classification(SPEC, LABELS, auxiliary={"c4": 0.3}).eval()
    given, batch = features(), view(torch.zeros(2, 3, 128, 128), [1, -1])
    both = head.losses(head(given, batch, {}), batch)["classification"]
    first = {name: x[:1] for name, x in given.items()}
    alone = batch.rows([0])
    torch.testing.assert_close(both.value(), head.losses(head(first, alone, {}), alone)["classification"].value())
    none = view(torch.zeros(2, 3, 128, 128), [-1, -1])
    assert head.losses(head(given, none, {}), none)["classification"].value() == 0


def test_auxiliary_classifiers_are_not_asked_for_a_prediction() -> None:
    head = Classification(SPEC, LABELS, auxiliary={"c4": 0.3})
    head.auxiliary[0].register_forward_hook(lambda *_: pytest.fail("an auxiliary classifier ran"))
    for mode in (True, False):
        batch = view(torch.zeros(2, 3, 128, 128), [0, 1])
        assert len(head.train(mode).predict(head(features(), batch, {}), batch)) == 2


def test_windows_are_those_of_the_paper_and_fit_its_images_alone() -> None:
    head = Classification(SPEC, LABELS, auxiliary={"c4": 0.3}, auxiliary_pool="windows").eval()
    x = torch.rand(1, 6, 14, 14)
    pooled = head._cells(x)
    assert pooled.shape == (1, 6, 4, 4)
    torch.testing.assert_close(pooled[0, :, 1, 3], x[0, :, 3:8, 9:14].mean((1, 2)))
    with pytest.raises(UserError, match=r"not on 8x8; 'cells' does"):
        head._cells(x[..., :8, :8])


def test_padding_does_not_count() -> None:
    head = Classification(SPEC, LABELS).eval()
    given, sizes = features(), [(128, 128), (64, 96)]
    output = head(given, view(torch.zeros(2, 3, 128, 128), [0, 0], sizes), {})
    torch.testing.assert_close(output.logits[1], head.linear(given["c5"][1, :, :2, :3].mean((1, 2))))


def test_errors_of_the_head() -> None:
    with pytest.raises(UserError, match="c9"):
        Classification(SPEC, LABELS, auxiliary={"c9": 0.3})
    with pytest.raises(UserError, match="label_smoothing: 2"):
        Classification(SPEC, LABELS, label_smoothing=2.0)


# -- predictions and their metrics


def test_a_prediction_is_drawn_and_written_by_its_likeliest_classes() -> None:
    prediction = ClassPrediction(torch.tensor([0.2, 0.7, 0.1]))
    assert prediction.best(2) == [(1, pytest.approx(0.7)), (0, pytest.approx(0.2))]
    assert [(r["category_id"], r["image_id"]) for r in prediction.to_coco(7, LABELS)] == [(2, 7), (1, 7), (3, 7)]
    image = np.zeros((60, 90, 3), np.uint8)
    drawn = prediction.draw(image, LABELS)
    assert drawn.shape == image.shape
    assert drawn.any()
    assert not image.any()
    with pytest.raises(ValueError, match="must be floats"):
        ClassPrediction(torch.zeros(2, 3))


class Toy(Source):
    labels = {}

    def __len__(self) -> int:
        return 0

    def load(self, index, tasks):  # type: ignore[no-untyped-def]
        raise NotImplementedError


def evaluator(classes: int) -> ClassificationEvaluator:
    return ClassificationEvaluator(Toy(), LabelSet(tuple(f"c{i}" for i in range(classes))))


def test_accuracies_are_those_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, 12, generator=generator).softmax(1)
    truth = torch.randint(0, 12, (60,), generator=generator)
    parts = [evaluator(12), evaluator(12)]
    for i in range(60):
        parts[i % 2].add([ClassPrediction(scores[i])], [ClassTarget(truth[i])], [info(4, 4, i)])
    parts[1].add([ClassPrediction(scores[0])], [ClassTarget(truth[0])], [info(4, 4, 0)])  # seen by both
    parts[0].merge([copy.deepcopy(parts[1].state())])
    for k in (1, 5):
        metric = MulticlassAccuracy(12, top_k=k, average="micro")
        assert parts[0].result()[f"top{k}"] == pytest.approx(float(metric(scores, truth)))


def test_what_does_not_count() -> None:
    judge = evaluator(3)
    assert list(judge.result()) == ["top1", "top5"]
    assert all(map(math.isnan, judge.result().values()))
    even = ClassPrediction(torch.full((3,), 1 / 3))
    targets = [None, ClassTarget(torch.tensor(-1)), ClassTarget(torch.tensor(1))]
    judge.add([even] * 3, targets, [info(4, 4, i) for i in range(3)])
    assert judge.result() == {"top1": 0.0, "top5": 1.0}  # of equal ones, the first is the likeliest
    with pytest.raises(DataError, match="probabilities of 2 classes; there are 3"):
        judge.add([ClassPrediction(torch.rand(2))], targets[2:], [info(4, 4)])


def test_imagenet_is_a_label_set() -> None:
    assert len(label_set("imagenet")) == 1000
    assert label_set("imagenet").names[0] == "n01440764"
