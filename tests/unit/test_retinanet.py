"""RetinaNet: the rules that it promises to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, nms

from tests.unit.retinanet_objects import (
    LABELS,
    NOTHING,
    OBJECTS,
    ONE,
    SIZE,
    SPEC,
    WIDTH,
    batch_of,
    model_of,
    objects,
    output_of,
    small,
)
from visionkit.layers.anchors import PyramidAnchors
from visionkit.layers.boxes import IGNORED, OBJECTLESS, decode, match
from visionkit.layers.focal import focal_background, prior_bias
from visionkit.layers.towers import AnchorValues, Tower
from visionkit.model import MultiTaskModel
from visionkit.types import (
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    Level,
    Mean,
    MixedBatch,
)
from visionkit_dense_detection.retinanet import RetinaNet, best


def test_every_anchor_starts_from_the_prior() -> None:
    assert prior_bias(0.01) == pytest.approx(-4.59512, abs=1e-5)
    head = small()
    torch.testing.assert_close(head.classes.bias, torch.full((9 * 4,), -4.59512), atol=1e-5, rtol=0)
    output = output_of(model_of(), batch_of(ONE))
    scores = torch.cat(output.logits, 1).sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), atol=1e-3, rtol=0)
    assert not len(output.detections()[0].boxes)


# -- towers and anchors


def test_towers_are_shared_over_the_levels_but_not_with_each_other() -> None:
    torch.manual_seed(0)
    head = RetinaNet(SPEC, LABELS, channels=WIDTH, convs=2)
    x = torch.rand(1, WIDTH, 6, 7)
    for tower in (head.class_tower, head.box_tower):
        first, *others = tower([x] * 5)
        assert all(torch.equal(first, other) for other in others)
    owned = {id(p) for p in head.class_tower.parameters()}
    assert owned.isdisjoint(id(p) for p in head.box_tower.parameters())
    assert not torch.equal(head.class_tower([x])[0], head.box_tower([x])[0])
    of_a_tower = 2 * (WIDTH * WIDTH * 9 + WIDTH)
    assert sum(p.numel() for p in head.parameters()) == 2 * of_a_tower + 9 * (4 + 4) * (WIDTH * 9 + 1)


@pytest.mark.parametrize("norm", [None, "group"])
def test_a_tower_is_plain_convolutions(norm: Any) -> None:
    torch.manual_seed(0)
    tower = Tower(6, 8, 3, norm=norm)
    x = torch.rand(2, 6, 5, 4)
    want = x
    for i in range(3):
        block: Any = tower.conv[i]
        want = F.conv2d(want, block.conv.weight, block.conv.bias, padding=1)
        if norm:
            want = F.group_norm(want, block.norm.num_groups, block.norm.weight, block.norm.bias)
        want = want.relu()
    torch.testing.assert_close(tower([x])[0], want)
    assert Tower(6, 8, 0)([x])[0] is x
    assert Tower(6, 8, 0).channels == 6


def test_numbers_of_an_anchor_stand_at_its_row_column_and_place_in_the_cell() -> None:
    layer = AnchorValues(3, anchors=2, values=4)
    x = torch.rand(2, 3, 5, 6)
    maps = layer(x)
    values = layer.of_anchors([x])[0]
    assert values.shape == (2, 5 * 6 * 2, 4)
    row, column, place = 3, 4, 1
    said = maps[1, place * 4 : place * 4 + 4, row, column]
    torch.testing.assert_close(values[1, (row * 6 + column) * 2 + place], said)


def test_anchors_have_three_octave_scales_and_three_ratios() -> None:
    anchors = small().make_anchors([(12, 16), (6, 8), (3, 4), (2, 2), (1, 1)], SIZE)
    assert [len(level) for level in anchors.levels] == [9 * n for n in (192, 48, 12, 4, 1)]
    assert len(anchors.all()) == 9 * 257
    for level, boxes in enumerate(anchors.levels):
        size = boxes[:9, 2:] - boxes[:9, :2]
        sides = size.prod(1).sqrt()
        want = torch.tensor([32 * 2**level * 2 ** (i / 3) for i in range(3)])
        torch.testing.assert_close(sides, want.repeat(3))
        torch.testing.assert_close(size[:, 1] / size[:, 0], torch.tensor([0.5, 1, 2]).repeat_interleave(3))
    second = anchors.levels[0][9:18] - anchors.levels[0][:9]
    torch.testing.assert_close(second, torch.tensor([8.0, 0, 8, 0]).expand(9, 4))
    below = anchors.levels[0][16 * 9] - anchors.levels[0][0]
    torch.testing.assert_close(below, torch.tensor([0, 8.0, 0, 8]))


def test_anchors_in_whole_pixels() -> None:
    spec = FeatureSpec({"p6": Level(8, 64)})
    grids = [(13, 21)]
    exact = PyramidAnchors(spec, ["p6"], [(322,)], (0.5, 1.0))(grids, (800, 1344)).all()
    whole = PyramidAnchors(spec, ["p6"], [(322,)], (0.5, 1.0), exact=False)(grids, (800, 1344)).all()
    assert torch.equal(whole, whole.round())
    assert (exact[2] - exact[0]).tolist() == [64, 0, 64, 0]
    assert (whole[42] - whole[0]).tolist() == [0, 61, 0, 61]


def test_sizes_must_fit_the_levels() -> None:
    with pytest.raises(ValueError, match="equally many sizes for each of the 5 levels"):
        small(anchor_sizes=((32,), (64,)))
    with pytest.raises(ValueError, match="equally many channels"):
        RetinaNet(
            FeatureSpec({"p3": Level(8, 8), "p4": Level(4, 16)}),
            LABELS,
            levels=("p3", "p4"),
            anchor_sizes=((32,), (64,)),
        )


# -- what is learnt


def losses_by_hand(head: RetinaNet, output: Any, targets: Sequence[InstanceTarget]) -> tuple[float, float, int]:
    """Sums of both losses and the number of positives, anchor by anchor as the paper says it."""
    on_classes = on_boxes = positives = 0.0
    anchors = output.anchors.all()
    for logits, deltas, target in zip(torch.cat(output.logits, 1), torch.cat(output.deltas, 1), targets):
        iou = box_iou(anchors, target.boxes)
        for i, (row, said) in enumerate(zip(iou, logits)):
            most, which = row.max(0) if len(row) else (torch.tensor(0.0), torch.tensor(0))
            hit = most >= 0.5 or (len(row) and bool((row.eq(iou.amax(0)) & (row > 0)).any()))
            if not hit and most >= 0.4:
                continue
            truth = torch.zeros(len(said))
            if hit:
                positives += 1
                truth[target.labels[which]] = 1
                a, b = anchors[i], target.boxes[which]
                size, centre = a[2:] - a[:2], (a[:2] + a[2:]) / 2
                aim = torch.cat((((b[:2] + b[2:]) / 2 - centre) / size, ((b[2:] - b[:2]) / size).log()))
                on_boxes += float((deltas[i] - aim).abs().sum())
            p = said.sigmoid()
            pt, weight = torch.where(truth > 0, p, 1 - p), torch.where(truth > 0, 0.25, 0.75)
            on_classes += float((-weight * (1 - pt) ** 2 * pt.log()).sum())
    return on_classes, on_boxes, int(positives)


def test_losses_are_sums_over_the_anchors_with_an_object_of_the_whole_batch() -> None:
    model = model_of()
    targets = [OBJECTS, ONE]
    batch = batch_of(*targets)
    head: Any = model.head("boxes")
    with torch.no_grad():
        output = output_of(model, batch)
        found = head.losses(output, batch.view("boxes", [0, 1], targets=True))
    on_classes, on_boxes, positives = losses_by_hand(head, output, targets)
    assert positives > 20
    assert all(isinstance(loss, Mean) and int(loss.count) == positives for loss in found.values())
    assert found["class"].total.item() == pytest.approx(on_classes, rel=1e-4)
    assert found["box"].total.item() == pytest.approx(on_boxes, rel=1e-4)


def test_per_image_is_the_mean_of_what_images_alone_have() -> None:
    model = model_of(per_image=True)
    together, _ = model.losses(batch_of(OBJECTS, NOTHING, ONE))
    batch = batch_of(OBJECTS, NOTHING, ONE)
    alone = []
    for row, target in enumerate((OBJECTS, NOTHING, ONE)):
        part = MixedBatch(batch.images[row, None], batch.info[row : row + 1], {"boxes": [target]})
        alone.append(model.losses(part)[0]["boxes"])
    for name, loss in together["boxes"].items():
        torch.testing.assert_close(loss, torch.stack([a[name] for a in alone]).mean())


def test_anchors_between_the_thresholds_learn_nothing() -> None:
    model = model_of()
    batch = batch_of(OBJECTS)
    output = output_of(model, batch)
    for level in (*output.logits, *output.deltas):
        level.retain_grad()
    losses = model.head("boxes").losses(output, batch.view("boxes", [0], targets=True))
    torch.stack([loss.value() for loss in losses.values()]).sum().backward()
    on_classes = torch.cat([level.grad[0] for level in output.logits]).abs().sum(1)
    on_boxes = torch.cat([level.grad[0] for level in output.deltas]).abs().sum(1)
    (matched,) = output.matched([OBJECTS])
    iou = box_iou(output.anchors.all(), OBJECTS.boxes).amax(1)
    between = (iou >= 0.4) & (iou < 0.5) & (matched < 0)
    assert between.sum() > 5
    assert (matched[between] == IGNORED).all()
    assert (on_classes[between] == 0).all()
    assert (on_classes[~between] > 0).all()
    assert torch.equal(on_boxes > 0, matched >= 0)


def test_every_object_has_an_anchor_however_small_it_is() -> None:
    tiny = objects([[40, 40, 46, 45]], [0])
    (matched,) = output_of(model_of(), batch_of(tiny)).matched([tiny])
    overlap = box_iou(output_of(model_of(), batch_of(tiny)).anchors.all(), tiny.boxes)[:, 0]
    assert overlap.max() < 0.1
    assert torch.equal(matched == 0, overlap == overlap.max())


@pytest.mark.parametrize("targets", [(NOTHING,), (NOTHING, NOTHING), (objects([[0, 0, 128, 96]], [0], [True]),)])
@pytest.mark.parametrize("per_image", [False, True])
def test_without_any_object_all_is_background(targets: Sequence[InstanceTarget], per_image: bool) -> None:
    model = model_of(per_image=per_image)
    batch = batch_of(*targets)
    losses, outputs = model.losses(batch)
    logits = torch.cat(outputs["boxes"].logits, 1)
    matched = torch.stack([match(outputs["boxes"].anchors.all(), t.boxes, t.crowd, low=0.4, high=0.5) for t in targets])
    background = focal_background(logits[matched == OBJECTLESS]).sum() / (len(targets) if per_image else 1)
    torch.testing.assert_close(losses["boxes"]["class"], background)
    assert background > 0
    assert losses["boxes"]["box"] == 0
    torch.stack(list(losses["boxes"].values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_anchors_inside_a_crowd_are_ignored() -> None:
    crowd = objects([[64, 0, 128, 96], [4, 8, 40, 50]], [0, 1], [True, False])
    output = output_of(model_of(), batch_of(crowd))
    (matched,) = output.matched([crowd])
    anchors = output.anchors.all()
    inside = (anchors[:, 0] >= 64) & (anchors[:, 2] <= 128) & (anchors[:, 1] >= 0) & (anchors[:, 3] <= 96)
    assert inside.sum() > 10
    assert (matched[inside] == IGNORED).all()
    assert set(matched.tolist()) == {IGNORED, OBJECTLESS, 1}


@pytest.mark.parametrize("options", [{}, {"box_loss": "giou"}, {"beta": 0.1}, {"norm": "group"}])
def test_all_losses_reach_all_parameters(options: dict[str, Any]) -> None:
    model = model_of(**options)
    losses, _ = model.losses(batch_of(OBJECTS, NOTHING))
    torch.stack(list(losses["boxes"].values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# -- what is found


def lively(**options: Any) -> tuple[MultiTaskModel, MixedBatch, Any]:
    """A model whose answers differ from anchor to anchor."""
    model = model_of(**options)
    head: Any = model.head("boxes")
    batch = batch_of(NOTHING, NOTHING)
    batch = MixedBatch(batch.images, tuple(ImageInfo(i, "", s, s) for i, s in enumerate((SIZE, (80, 100)))), {})
    torch.manual_seed(4)
    with torch.no_grad():
        output = output_of(model, batch)
    output.logits = tuple(torch.randn_like(x) * 1.5 - 3 for x in output.logits)
    output.deltas = tuple(torch.randn_like(x) * 0.3 for x in output.deltas)
    return head, batch, output


def by_hand(head: RetinaNet, output: Any, row: int, size: tuple[int, int]) -> list[tuple[float, int, list[float]]]:
    """Score, label and box of what the paper's rules leave, one candidate after the other."""
    found: list[tuple[float, int, Tensor]] = []
    for logits, deltas, anchors in zip(output.logits, output.deltas, output.anchors.levels):
        scores = logits[row].sigmoid()
        anchor, label = (scores > head.score).nonzero(as_tuple=True)
        order = scores[anchor, label].argsort(descending=True)[: head.before_nms]
        for i in order.tolist():
            box = decode(deltas[row, anchor[i]], anchors[anchor[i]])
            box = torch.minimum(box.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
            if (box[2:] > box[:2]).all():
                found.append((float(scores[anchor[i], label[i]]), int(label[i]), box))
    kept = []
    for c in {label for _, label, _ in found}:
        mine = [f for f in found if f[1] == c]
        index = nms(torch.stack([f[2] for f in mine]), torch.tensor([f[0] for f in mine]), head.nms)
        kept += [mine[i] for i in index.tolist()]
    kept.sort(key=lambda f: -f[0])
    return [(score, label, box.tolist()) for score, label, box in kept[: head.max_detections]]


@pytest.mark.parametrize(
    "options", [{}, {"before_nms": 30, "score": 0.2, "detections": 12}, {"score": 0.0, "nms": 0.3}]
)
def test_detections_by_the_rules(options: dict[str, Any]) -> None:
    head, batch, output = lively(**options)
    predictions = head.predict(output, batch.view("boxes", [0, 1], targets=False))
    for row, prediction in enumerate(predictions):
        expected = by_hand(head, output, row, batch.info[row].size)
        assert len(prediction) == len(expected) == head.max_detections
        torch.testing.assert_close(prediction.scores, torch.tensor([s for s, _, _ in expected]))
        assert prediction.labels.tolist() == [c for _, c, _ in expected]
        torch.testing.assert_close(prediction.boxes, torch.tensor([b for _, _, b in expected]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("clip_first", [True, False])
def test_detections_know_their_anchor(clip_first: bool) -> None:
    _, batch, output = lively(clip_first=clip_first)
    anchors, deltas, logits = output.anchors.all(), torch.cat(output.deltas, 1), torch.cat(output.logits, 1)
    for row, (found, at) in enumerate(zip(output.detections(), output.found_at())):
        assert len(found.boxes) == len(at) > 50
        height, width = batch.info[row].size
        boxes = decode(deltas[row, at], anchors[at])
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2))
        torch.testing.assert_close(found.boxes, boxes)
        torch.testing.assert_close(found.scores, logits[row, at, found.labels].sigmoid())
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    second = output.rows([1], 2)
    assert second.detections()[0] is output.detections()[1]


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_best_are_those_of_a_full_sort(count: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 50, 4)
    logit, anchor, label = best(logits, count)
    want, index = logits.flatten(1).sort(dim=1, descending=True)
    n = min(count, 200)
    assert torch.equal(logit, want[:, :n])
    assert torch.equal(anchor * 4 + label, index[:, :n])


def test_no_class_and_no_image_suppresses_another() -> None:
    head, _, output = lively(score=0.5)
    for logits in output.logits:
        logits.fill_(-9)
    output.logits[0][:, 100, :2] = torch.tensor([4.0, 3.0])
    output.logits[0][:, 101, :1] = 2.0  # the same place, a little larger
    for deltas in output.deltas:
        deltas.zero_()
    assert box_iou(*output.anchors.levels[0][100:102].split(1)) > 0.5
    for found, anchors in head.detect(output):
        assert found.labels.tolist() == [0, 1]
        assert anchors.tolist() == [100, 100]


def test_bfloat16_is_near_float32() -> None:
    model = model_of().to(memory_format=torch.channels_last)
    batch = batch_of(OBJECTS, ONE)
    exact, _ = model.losses(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model.losses(batch)
        model.predict(batch)
    for name, loss in exact["boxes"].items():
        assert rough["boxes"][name].dtype == torch.float32
        torch.testing.assert_close(rough["boxes"][name], loss, rtol=0.05, atol=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu() -> None:
    model = model_of(score=0.0)
    batch = batch_of(OBJECTS, NOTHING)
    on_cpu, _ = model.losses(batch)
    predicted = model.predict(batch)["boxes"][0]
    model.cuda()
    on_cuda, _ = model.losses(batch.to("cuda"))
    torch.stack(list(on_cuda["boxes"].values())).sum().backward()
    for name, loss in on_cpu["boxes"].items():
        torch.testing.assert_close(on_cuda["boxes"][name].cpu(), loss, rtol=2e-3, atol=1e-4)
    again = model.predict(batch.to("cuda"))["boxes"][0]
    torch.testing.assert_close(again.scores.cpu(), predicted.scores, rtol=1e-2, atol=1e-3)
