"""Options of the R-CNN heads, and the rules that are easily got wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from tests.unit.backbones import Levels
from visionkit.layers.boxes import decode as decode_box
from visionkit.layers.boxes import encode
from visionkit.layers.paste import paste_masks
from visionkit.model import MultiTaskModel
from visionkit.rle import decode
from visionkit.types import Anchors, FeatureSpec, ImageInfo, InstanceTarget, LabelSet, Level, MixedBatch
from visionkit_rcnn.rcnn import RCNN, Regions
from visionkit_rcnn.roi_keypoint import RoIKeypoint
from visionkit_rcnn.roi_mask import RoIMask
from visionkit_rcnn.rpn import RPN, RPNOutput

SPEC = FeatureSpec({f"p{k}": Level(8, 2**k) for k in range(2, 7)})
LABELS = LabelSet(("a", "b", "c"), keypoints=("left", "right"))
SIZE = (96, 128)


def target(boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> InstanceTarget:
    """Objects that fill the left half of their boxes, with two keypoints each."""
    b = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(b), *SIZE, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, b.int().tolist()):
        mask[top:bottom, left : (left + right) // 2] = 1
    keypoints = torch.cat((b.view(-1, 2, 2), torch.full((len(b), 2, 1), 2.0)), -1)
    return InstanceTarget(
        b, torch.tensor(labels), torch.zeros(len(b), dtype=torch.bool), masks.flatten(1).sum(1).float(),
        torch.arange(len(b)), masks, keypoints,
    )  # fmt: skip


OBJECTS = target([[4, 8, 60, 70], [50, 20, 122, 90]], [1, 2])


def model_of(**heads: nn.Module) -> MultiTaskModel:
    return MultiTaskModel(Levels(SPEC, kernel=3), None, heads)  # type: ignore[arg-type]


def boxes_head(**options: Any) -> RCNN:
    """A small one whose random weights find objects of every class everywhere."""
    torch.manual_seed(1)
    head = RCNN(SPEC, LABELS, fcs=(16,), **{"score": 0.0, "detections": 20, **options})
    nn.init.normal_(head.branch.deltas.weight, std=0.3)
    nn.init.normal_(head.branch.classes.weight, std=0.5)
    return head


def batch_of(*targets: InstanceTarget, heads: Sequence[str] = ("boxes",)) -> MixedBatch:
    info = tuple(ImageInfo(i, "", SIZE, SIZE) for i in range(max(1, len(targets))))
    images = torch.rand(len(info), 3, *SIZE, generator=torch.Generator().manual_seed(3))
    return MixedBatch(images, info, {head: list(targets) for head in heads} if targets else {})


def test_a_mask_is_cropped_to_the_region_and_not_to_its_object() -> None:
    region = torch.tensor([[10, 12, 38, 40.0]])
    assert OBJECTS.masks is not None
    found = OBJECTS.masks.crop_and_resize(region, torch.tensor([0]), 28, aligned=True)[0]
    assert torch.equal(found, OBJECTS.masks.dense()[0, 12:40, 10:38].float())  # one cell a pixel
    assert 0 < found.mean() < 1


def test_masks_do_not_learn_from_background() -> None:
    torch.manual_seed(0)
    boxes = boxes_head()
    model = model_of(boxes=boxes, masks=RoIMask(SPEC, LABELS, convs=(8,), hidden=8))
    batch = batch_of(OBJECTS, heads=("boxes", "masks"))
    empty = torch.tensor([[60, 0, 90, 15], [0, 75, 40, 95.0]])
    assert box_iou(empty, OBJECTS.boxes).max() < 0.1

    def loss(regions: Tensor) -> Tensor:
        boxes.choose = lambda rpn, targets: [regions]  # type: ignore[method-assign]
        return model.losses(batch)[0]["masks"]["mask"]

    torch.testing.assert_close(loss(torch.cat((OBJECTS.boxes, empty))), loss(OBJECTS.boxes))
    assert loss(empty) == 0


def test_only_the_channel_of_the_own_class_learns() -> None:
    torch.manual_seed(0)
    masks = RoIMask(SPEC, LABELS, convs=(8,), hidden=8)
    model = model_of(boxes=boxes_head(), masks=masks)
    model.losses(batch_of(OBJECTS, heads=("boxes", "masks")))[0]["masks"]["mask"].backward()
    assert masks.logits.bias is not None
    assert masks.logits.bias.grad is not None
    assert [bool(g != 0) for g in masks.logits.bias.grad] == [False, False, True, True]  # background, a, b, c


def test_branches_run_on_the_final_boxes_only() -> None:
    heads: dict[str, Any] = {
        "boxes": boxes_head(detections=7),
        "masks": RoIMask(SPEC, LABELS, convs=(8,), hidden=8),
        "keypoints": RoIKeypoint(SPEC, LABELS, convs=(8,)),
    }
    model = model_of(**heads)
    seen: dict[str, list[int]] = {}
    for name in ("masks", "keypoints"):
        heads[name].conv.register_forward_hook(
            lambda module, args, out, name=name: seen.setdefault(name, []).append(len(args[0]))
        )
    heads["boxes"].branch.register_forward_hook(
        lambda module, args, out: seen.setdefault("boxes", []).append(len(args[0]))
    )
    found = model.predict(batch_of())
    assert len(found["masks"][0].rles) == len(found["keypoints"][0].keypoints) == 7
    assert seen["masks"] == seen["keypoints"] == [7]
    assert seen["boxes"][0] > 100


def proposer(nms: float = 0.7) -> RPN:
    spec = FeatureSpec({"a": Level(4, 4), "b": Level(4, 8)})
    return RPN(
        spec, ("a", "b"), ((8,), (16,)), (1.0,), convs=1, iou=(0.3, 0.7), samples=8, positives=0.5, beta=0.0, nms=nms,
        score=0.0,
    )  # fmt: skip


def test_proposals_of_different_levels_do_not_suppress_one_another() -> None:
    box = torch.tensor([[10, 10, 40, 50.0]])
    nearly = box + torch.tensor([0, 0, 1, 1.0])
    levels = (torch.cat((box, nearly)), box)
    output = RPNOutput(
        (torch.tensor([[3.0, 2.0]]), torch.tensor([[1.0]])),
        tuple(torch.zeros(1, len(level), 4) for level in levels),
        Anchors(levels),
        [ImageInfo(0, "", SIZE, SIZE)],
    )
    found = proposer().propose(output, before_nms=10, after_nms=10)[0]
    torch.testing.assert_close(found, torch.cat((box, box)))  # once a level, and not the weaker neighbour


def test_more_than_a_thousand_proposals() -> None:
    head = boxes_head(rpn_before_nms=3000, rpn_after_nms=1500, rpn_nms=0.95)
    model = model_of(boxes=head)
    batch = batch_of()
    regions = model.run_heads(model.branches(model.features(batch.images)), batch, {"boxes": [0]})["boxes"]
    assert len(head.rpn.propose(regions.rpn, **head.proposals)[0]) == 1500
    assert len(head.detect(regions)[0].boxes) == 20


@pytest.mark.parametrize("low", [10.6, 10.5, 10.4])
def test_pixels_are_in_a_pasted_mask_when_their_centres_are(low: float) -> None:
    high = low + 20
    box = torch.tensor([[low, low, high, high]])
    pasted = decode(paste_masks(torch.ones(1, 28, 28), box, 60, 60, exact=True)[0])
    inside = [x for x in range(60) if low <= x + 0.5 <= high]
    assert np.flatnonzero(pasted[20]).tolist() == inside
    assert np.flatnonzero(pasted[:, 20]).tolist() == inside


def test_a_mirrored_mask_is_pasted_as_the_mirror_image() -> None:
    torch.manual_seed(0)
    masks = F.interpolate(torch.rand(6, 1, 4, 4), size=28, mode="bicubic")[:, 0].clamp(0, 1)
    corner = torch.rand(6, 2) * 60 - 15  # some reach over the edges
    boxes = torch.cat((corner, corner + 5 + torch.rand(6, 2) * 50), 1)
    mirrored = torch.stack((80 - boxes[:, 2], boxes[:, 1], 80 - boxes[:, 0], boxes[:, 3]), 1)
    straight = [decode(rle) for rle in paste_masks(masks, boxes, 70, 80, exact=True)]
    back = [decode(rle)[:, ::-1] for rle in paste_masks(masks.flip(2), mirrored, 70, 80, exact=True)]
    assert sum(int(mask.sum()) for mask in straight) > 1000
    assert sum(int((a != b).sum()) for a, b in zip(straight, back)) <= 1  # but for rounding


@pytest.mark.parametrize(("box", "pixels"), [([5, 5, 5, 9], 0), ([90, 5, 99, 9], 0), ([-9, -9, -2, -1], 0)])
def test_masks_without_room_are_empty(box: list[float], pixels: int) -> None:
    for exact in (True, False):
        pasted = paste_masks(torch.ones(1, 28, 28), torch.tensor([box], dtype=torch.float32), 40, 50, exact=exact)
        if exact or box[2] != box[0]:
            assert int(decode(pasted[0]).sum()) == pixels


def without_background(state: dict[str, Tensor], names: Sequence[str], rows: int) -> dict[str, Tensor]:
    return {k: v[rows:] if k.startswith(tuple(names)) else v for k, v in state.items()}


def test_deltas_and_masks_of_the_background_change_nothing() -> None:
    torch.manual_seed(0)
    heads = (boxes_head(rpn_samples=10**6, samples=10**6), RoIMask(SPEC, LABELS, convs=(8,), hidden=8))
    bare = (
        boxes_head(rpn_samples=10**6, samples=10**6, background=False),
        RoIMask(SPEC, LABELS, convs=(8,), hidden=8, background=False),
    )
    bare[0].load_state_dict(without_background(heads[0].state_dict(), ["branch.deltas."], 4))
    bare[1].load_state_dict(without_background(heads[1].state_dict(), ["logits."], 1))
    model = model_of(boxes=heads[0], masks=heads[1])
    other = MultiTaskModel(model.backbone, None, {"boxes": bare[0], "masks": bare[1]})
    batch = batch_of(OBJECTS, heads=("boxes", "masks"))
    torch.testing.assert_close(model.losses(batch)[0], other.losses(batch)[0])
    found, again = model.predict(batch)["masks"][0], other.predict(batch)["masks"][0]
    torch.testing.assert_close(found.boxes, again.boxes)
    assert found.rles == again.rles


@pytest.mark.parametrize("agnostic", [False, True])
def test_each_region_regresses_the_box_of_its_own_class(agnostic: bool) -> None:
    head = boxes_head(class_agnostic=agnostic)
    model = model_of(boxes=head)
    model.losses(batch_of(OBJECTS))[0]["boxes"]["box_delta"].backward()
    assert head.branch.deltas.bias is not None
    assert head.branch.deltas.bias.grad is not None
    learns = head.branch.deltas.bias.grad.view(-1, 4).abs().sum(1) > 0
    assert learns.tolist() == ([True] if agnostic else [False, False, True, True])


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_box_regression_is_smooth_l1_over_all_samples(beta: float) -> None:
    head = boxes_head(beta=beta)
    model = model_of(boxes=head)
    regions = torch.cat((OBJECTS.boxes + torch.tensor([1, 2, 3, -1.0]), torch.tensor([[0, 80, 30, 95.0]])))
    head.choose = lambda rpn, targets: [regions]  # type: ignore[method-assign]
    batch = batch_of(OBJECTS)
    losses, outputs = model.losses(batch)
    _, deltas = head.branch(head.pool(outputs["boxes"].features, [regions]))
    aims = encode(OBJECTS.boxes, regions[:2], (10.0, 10.0, 5.0, 5.0))
    off = (deltas[torch.arange(2), OBJECTS.labels + 1] - aims).abs()
    each = torch.where(off < beta, 0.5 * off.square() / max(beta, 1e-9), off - 0.5 * beta)
    torch.testing.assert_close(losses["boxes"]["box_delta"], each.sum() / 3)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_of_the_head_is_the_plain_rule(method: str) -> None:
    soft = boxes_head(soft_nms=method, nms=0.2, score=0.2, detections=30)
    free = boxes_head(nms=1.0, score=0.2, detections=10**6)
    free.load_state_dict(soft.state_dict())
    backbone = Levels(SPEC, kernel=3)
    batch = batch_of()
    everything = MultiTaskModel(backbone, None, {"boxes": free}).predict(batch)["boxes"][0]
    found = MultiTaskModel(backbone, None, {"boxes": soft}).predict(batch)["boxes"][0]

    iou = box_iou(everything.boxes, everything.boxes) * (everything.labels[:, None] == everything.labels)
    scores, kept = everything.scores.tolist(), []
    while len(kept) < 30 and max(scores) >= 0.2:
        best = max(range(len(scores)), key=scores.__getitem__)
        kept.append((best, scores[best]))
        for i, overlap in enumerate(iou[best].tolist()):
            if method == "gaussian":
                scores[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap > 0.2:
                scores[i] *= 1 - overlap
        scores[best] = -1.0
    assert len(kept) > 5
    assert any(score < everything.scores[row] - 1e-3 for row, score in kept)
    torch.testing.assert_close(found.boxes, everything.boxes[[row for row, _ in kept]], atol=1e-3, rtol=0)
    torch.testing.assert_close(found.scores, torch.tensor([score for _, score in kept]), atol=1e-4, rtol=0)


def cascade(**options: Any) -> RCNN:
    head = boxes_head(class_agnostic=True, cascade=(0.6, 0.7), rpn_samples=10**6, samples=10**6, **options)
    for branch in head.later:
        nn.init.normal_(branch.deltas.weight, std=0.3)
        nn.init.normal_(branch.classes.weight, std=0.5)
    return head


@torch.no_grad()
def test_a_cascade_refines_the_boxes_of_the_stage_before() -> None:
    head = cascade(nms=1.0, detections=10**6)
    model = model_of(boxes=head)
    batch = batch_of()
    features = model.features(batch.images)
    regions = model.run_heads(model.branches(features), batch, {"boxes": [0]})["boxes"]
    boxes = head.rpn.propose(regions.rpn, **head.proposals)[0]
    scores: list[Tensor] = []
    for i, branch in enumerate((head.branch, *head.later), start=1):
        logits, deltas = branch(head.pool(features, [boxes]))
        scores.append(logits.softmax(1))
        boxes = decode_box(deltas[:, 0], boxes, (10.0 * i, 10.0 * i, 5.0 * i, 5.0 * i))
        boxes = torch.stack((boxes[:, 0::2].clamp(0, 128), boxes[:, 1::2].clamp(0, 96)), 2).flatten(1)
    mean = (scores[0] + scores[1] + scores[2]) / 3
    found = head.detect(regions)[0]
    order = mean[:, 1:].flatten().argsort(descending=True)[:50]
    torch.testing.assert_close(found.scores[:50], mean[:, 1:].flatten()[order])
    torch.testing.assert_close(found.boxes[:50], boxes[order // 3])
    assert torch.equal(found.labels[:50], order % 3)


def test_each_stage_of_a_cascade_learns_at_an_iou_of_its_own() -> None:
    head = cascade(beta=0.0)
    model = model_of(boxes=head)
    batch = batch_of(OBJECTS)
    objects = OBJECTS.boxes
    regions = torch.cat((objects, objects + torch.tensor([6, 4, -2, -3.0]), torch.tensor([[0, 80, 30, 95.0]])))
    head.choose = lambda rpn, targets: [regions]  # type: ignore[method-assign]
    losses, outputs = model.losses(batch)
    boxes, of_class, of_delta, positives = regions, [], [], []
    for i, (branch, iou) in enumerate(zip((head.branch, *head.later), (0.5, 0.6, 0.7)), start=1):
        weights = (10.0 * i, 10.0 * i, 5.0 * i, 5.0 * i)
        overlap, index = box_iou(boxes, objects).max(1)
        on = overlap >= iou
        logits, deltas = branch(head.pool(outputs["boxes"].features, [boxes]))
        labels = torch.where(on, OBJECTS.labels[index] + 1, 0)
        of_class.append(F.cross_entropy(logits, labels))
        of_delta.append((deltas[on, 0] - encode(objects[index[on]], boxes[on], weights)).abs().sum() / len(regions))
        positives.append(int(on.sum()))
        boxes = decode_box(deltas[:, 0].detach(), boxes, weights)
        boxes = torch.stack((boxes[:, 0::2].clamp(0, 128), boxes[:, 1::2].clamp(0, 96)), 2).flatten(1)
    assert positives[0] == 4
    assert positives[-1] > 0
    torch.testing.assert_close(losses["boxes"]["box_class"], torch.stack(of_class).sum())
    torch.testing.assert_close(losses["boxes"]["box_delta"], torch.stack(of_delta).sum())
    assert [len(s.boxes) for s in outputs["boxes"].samples([OBJECTS])] == [5]  # what other heads learn from
    losses["boxes"]["box_class"].backward()
    assert all(branch.classes.weight.grad.abs().sum() > 0 for branch in (head.branch, *head.later))


def test_a_cascade_is_class_agnostic() -> None:
    with pytest.raises(ValueError, match="class_agnostic: true"):
        RCNN(SPEC, LABELS, cascade=(0.6,))


def test_exact_anchors_stand_on_the_stride_and_keep_their_fractions() -> None:
    info = [ImageInfo(0, "", (48, 88), (48, 88))]
    features = {"a": torch.zeros(1, 4, 12, 22), "b": torch.zeros(1, 4, 6, 12)}  # 88 pixels in 12 columns
    rpn = proposer()
    measured = rpn(features, (48, 88), info).anchors.levels[1].view(6, 12, 4)
    rpn.make_anchors.exact, rpn.make_anchors.ratios = True, (0.5,)
    exact = rpn(features, (48, 88), info).anchors.levels[1].view(6, 12, 4)
    assert measured[0, 11].tolist() == [7 * 11 - 8, -8, 7 * 11 + 8, 8]
    width, height = 16 * 2**0.5, 16 / 2**0.5
    want = [88 - width / 2, 16 - height / 2, 88 + width / 2, 16 + height / 2]
    torch.testing.assert_close(exact[2, 11], torch.tensor(want))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_in_the_branches_bear_images_with_nothing_on_them(norm: Any) -> None:
    torch.manual_seed(0)
    model = model_of(
        boxes=boxes_head(convs=(8,), norm=norm),
        masks=RoIMask(SPEC, LABELS, convs=(8,), hidden=8, norm=norm),
        keypoints=RoIKeypoint(SPEC, LABELS, convs=(8,), norm=norm),
    ).train()
    nothing = InstanceTarget.empty(SIZE, 2, masks=True)
    for objects in (nothing, OBJECTS):
        losses, outputs = model.losses(batch_of(objects, heads=tuple(model.heads)))
        assert isinstance(outputs["boxes"], Regions)
        total = torch.stack([loss for named in losses.values() for loss in named.values()]).sum()
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(value.isfinite().all() for value in model.state_dict().values())
