"""The building blocks of two-stage detectors, against detectron2's and others' outputs for the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from visionkit.layers.boxes import (
    IGNORED,
    OBJECTLESS,
    SoftNMS,
    cell_anchors,
    decode,
    encode,
    grid_anchors,
    match_iou,
    soft_nms,
)
from visionkit.layers.paste import paste_masks
from visionkit.layers.roi import RegionPool
from visionkit.rle import decode as decode_rle
from visionkit.types import Anchors, FeatureSpec, ImageInfo, LabelSet, Level
from visionkit_rcnn.roi_keypoint import RoIKeypoint, cells_of, peaks
from visionkit_rcnn.rpn import RPN, RPNOutput

DATA = Path(__file__).parent.parent / "data"
PYRAMID = FeatureSpec({f"p{k}": Level(3, 2**k) for k in range(2, 6)})


def arrays(folder: str) -> dict[str, Tensor]:
    with np.load(DATA / folder / "io.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def said() -> dict[str, Tensor]:
    return arrays("detectron2_ops")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(said: dict[str, Tensor], aligned: bool, ratio: int) -> None:
    pool = RegionPool(FeatureSpec({"p2": Level(3, 4)}), ("p2",), 7, aligned=aligned, sampling_ratio=ratio)
    found = pool({"p2": said["feat"]}, [said["boxes"]])
    want = said[f"roialign_{'aligned' if aligned else 'legacy'}_sr{ratio}"]
    torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def test_levels(said: dict[str, Tensor]) -> None:
    pool = RegionPool(PYRAMID, tuple(PYRAMID), 7)
    assert torch.equal(pool.level_of(said["level_boxes"]) + 2, said["levels"].long())


@pytest.mark.parametrize(("name", "weights"), [("rpn", (1, 1, 1, 1)), ("roi", (10, 10, 5, 5))])
def test_box_code(said: dict[str, Tensor], name: str, weights: tuple[float, ...]) -> None:
    deltas = encode(said["tgt_boxes"], said["src_boxes"], weights)
    torch.testing.assert_close(deltas, said[f"deltas_{name}"], atol=1e-4, rtol=1e-5)
    boxes = decode(1.5 * said[f"deltas_{name}"], said["src_boxes"], weights)
    torch.testing.assert_close(boxes, said[f"applied_{name}"], atol=1e-3, rtol=1e-5)


def test_growth_of_a_side_is_limited(said: dict[str, Tensor]) -> None:
    deltas = torch.tensor([0, 0, 9, 9.0]).expand(len(said["src_boxes"]), 4)
    torch.testing.assert_close(decode(deltas, said["src_boxes"]), said["applied_clamp"], atol=1e-3, rtol=1e-5)


def test_anchors(said: dict[str, Tensor]) -> None:
    for name, size, grid, stride in (("l0", 32, (3, 4), 4), ("l1", 64, (2, 2), 8)):
        cell = cell_anchors((size,), (0.5, 1.0, 2.0), rounded=False)
        found = grid_anchors(cell, grid, (stride, stride))
        torch.testing.assert_close(found, said[f"anchors_{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "low", "high", "best"), [("rpn", 0.3, 0.7, True), ("roi", 0.5, 0.5, False)])
def test_matches(said: dict[str, Tensor], name: str, low: float, high: float, best: bool) -> None:
    found = match_iou(said[f"match_{name}_quality"], low=low, high=high, best_of_each=best)
    label, index = said[f"match_{name}_label"], said[f"match_{name}_idx"].long()
    other = torch.where(label == 0, OBJECTLESS, IGNORED)
    assert torch.equal(found, torch.where(label == 1, index, other))


def test_suppression_within_classes(said: dict[str, Tensor]) -> None:
    keep = batched_nms(said["nms_boxes"], said["nms_scores"], said["nms_classes"], 0.5)
    assert torch.equal(keep, said["nms_keep_05"].long())


def test_best_proposals_of_two_levels(said: dict[str, Tensor]) -> None:
    spec = FeatureSpec({"a": Level(4, 4), "b": Level(4, 8)})
    rpn = RPN(
        spec, ("a", "b"), ((8,), (16,)), (1.0,), convs=1, iou=(0.3, 0.7), samples=8, positives=0.5, beta=0.0, nms=0.6,
        score=0.0,
    )  # fmt: skip
    boxes = (said["rpn_boxes0"], said["rpn_boxes1"])
    output = RPNOutput(
        (said["rpn_logits0"], said["rpn_logits1"]),
        tuple(torch.zeros_like(b) for b in boxes),  # so that anchors are proposals
        Anchors(tuple(b[0] for b in boxes)),
        [ImageInfo(0, "", (80, 100), (80, 100))],
    )
    found = rpn.propose(output, before_nms=40, after_nms=25)[0]
    torch.testing.assert_close(found, said["rpn_top_boxes"], atol=1e-4, rtol=0)


def test_masks_are_pasted_at_the_centres_of_pixels(said: dict[str, Tensor]) -> None:
    found = paste_masks(said["paste_probs"], said["paste_boxes"], 80, 100, exact=True)
    own = torch.stack([torch.from_numpy(decode_rle(rle)) for rle in found]).bool()
    assert (own != said["pasted"]).sum() == 0


def test_keypoints_are_found_in_heatmaps(said: dict[str, Tensor]) -> None:
    heatmaps = said["kp_logits"].float()
    points, values = peaks(heatmaps, said["kp_boxes"])
    torch.testing.assert_close(points, said["kp_decoded"][..., :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(values, said["kp_decoded"][..., 2], atol=1e-4, rtol=0)
    labels = LabelSet(("person",), keypoints=("a", "b", "c"))
    head = RoIKeypoint(PYRAMID, labels, convs=(4,), scores="softmax")
    torch.testing.assert_close(head.scores_of(values, heatmaps), said["kp_decoded"][..., 3], atol=1e-5, rtol=0)


def test_cells_of_keypoints(said: dict[str, Tensor]) -> None:
    cells = cells_of(said["kp_targets_in"], said["kp_boxes"], 56)
    valid = said["kp_valid"].bool()
    assert torch.equal(cells >= 0, valid)
    assert torch.equal(cells[valid], said["kp_targets"].long()[valid])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms(method: SoftNMS) -> None:
    said = arrays("soft_nms")
    boxes, scores = said["boxes"].split((4, 1), 1)
    inclusive = boxes + torch.tensor([0, 0, 1, 1.0])  # their sides count the last pixel too
    one_class = torch.zeros(len(boxes), dtype=torch.int64)
    keep, values = soft_nms(inclusive, scores[:, 0], one_class, method=method)
    torch.testing.assert_close(boxes[keep], said[f"soft_{method}"][:, :4])
    torch.testing.assert_close(values, said[f"soft_{method}"][:, 4], atol=1e-6, rtol=1e-5)


def test_soft_nms_of_several_classes_is_that_of_each() -> None:
    torch.manual_seed(0)
    corner = torch.rand(60, 2) * 40
    boxes, scores = torch.cat((corner, corner + 10 + torch.rand(60, 2) * 30), 1), torch.rand(60)
    labels = torch.randint(0, 3, (60,))
    keep, values = soft_nms(boxes, scores, labels, method="gaussian", floor=0.05)
    assert (values.diff() <= 0).all()
    assert (values >= 0.05).all()
    for label in range(3):
        own = (labels == label).nonzero()[:, 0]
        alone, of_class = soft_nms(boxes[own], scores[own], labels[own], method="gaussian", floor=0.05)
        mine = labels[keep] == label
        assert torch.equal(own[alone], keep[mine])
        torch.testing.assert_close(of_class, values[mine])
    best, first = soft_nms(boxes, scores, labels, method="gaussian", floor=0.05, most=7)
    assert torch.equal(best, keep[:7])
    assert torch.equal(first, values[:7])
    none, nothing = soft_nms(boxes[:0], scores[:0], labels[:0], method="linear")
    assert none.shape == nothing.shape == (0,)
    assert none.dtype == torch.int64
