"""Semantic + boxes + masks + keypoints in one pass on a shared ResNet-50-FPN, against the three single models.

All are visionkit's: what is measured is the sharing, not the kernels. Detectors carry random weights that put a fixed
number of boxes on every image: 20 (COCO has 7 objects an image), and for information 100, the most that COCO counts.
The more boxes, the less there is to share: the keypoint branch has eight convolutions of 512 channels for every box,
which both sides pay. The last row holds the pass against the sum of its parts, each timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from visionkit.model import Head, MultiTaskModel
from visionkit.types import ImageInfo, LabelSet, MixedBatch
from visionkit_backbones.fpn import FPN
from visionkit_backbones.timm_backbone import TimmBackbone
from visionkit_rcnn.rcnn import RCNN
from visionkit_rcnn.roi_keypoint import RoIKeypoint
from visionkit_rcnn.roi_mask import RoIMask
from visionkit_semantic.semantic_fpn import SemanticFPN

THINGS = LabelSet(
    ("person", *(f"thing {i}" for i in range(1, 80))), keypoints=tuple(f"keypoint {i}" for i in range(17))
)
REGIONS = LabelSet(tuple(f"region {i}" for i in range(54)))


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Milliseconds an image of 480x640, batch 1, medians of interleaved passes; quick: 160x224 and few boxes."""
    size, rounds = ((160, 224), 2) if quick else ((480, 640), 7)
    few, many = (5, 10) if quick else (20, 100)
    shared, apart, parts = measure(size, few, rounds)
    shared_many, apart_many, _ = measure(size, many, max(1, rounds // 2))
    name = "4 tasks on one ResNet-50-FPN"
    return [
        row(f"{name}, {few} boxes", shared, "three models", apart, 1.5),
        row(f"{name}, {many} boxes", shared_many, "three models", apart_many, None),
        row(f"the same pass and its parts, {few} boxes", shared, "sum of parts", parts, 1 / 1.05),
    ]


def measure(size: tuple[int, int], boxes: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds, a round each: the shared pass, the three models together, and the parts of the shared pass together."""
    torch.manual_seed(0)
    shared = model(boxes, "semantic", "boxes", "masks", "keypoints")
    single = [model(boxes, "semantic"), model(boxes, "boxes", "masks"), model(boxes, "boxes", "keypoints")]
    batch = images(size)
    together, apart, parts = [], [], []
    with torch.inference_mode():
        for one in (shared, *single[1:]):
            check_detections(one, batch, boxes)
        for _ in range(rounds + 1):
            together.append(seconds(lambda: shared.predict(batch)))
            apart.append(sum(seconds(lambda one=one: one.predict(batch)) for one in single))
            parts.append(sum(part_seconds(shared, batch).values()))
    return together[1:], apart[1:], parts[1:]  # the first was the warm-up


def row(name: str, ours: list[float], what: str, peer: list[float], bar: float | None) -> dict[str, Any]:
    """Ratios are taken round by round, so that a machine that slows down slows both."""
    return {
        "name": name,
        "ours": f"{median(ours) * 1e3:.0f} ms",
        "peer": f"{what} {median(peer) * 1e3:.0f} ms",
        "ratio": median(b / a for a, b in zip(ours, peer)),
        "bar": bar,
    }


def model(detections: int, *tasks: str) -> MultiTaskModel:
    """A ResNet-50-FPN with the heads of these tasks, as in the papers."""
    backbone = TimmBackbone(model="resnet50", levels=["c2", "c3", "c4", "c5"])
    spec = FPN(backbone.spec).spec
    heads: dict[str, Head] = {}
    for task in tasks:
        if task == "semantic":
            heads[task] = SemanticFPN(spec, REGIONS)
        elif task == "boxes":
            heads[task] = surely_finding(RCNN(spec, THINGS, detections=detections))
        else:
            heads[task] = (RoIMask if task == "masks" else RoIKeypoint)(spec, THINGS)
    read = {level for head in heads.values() for level in head.levels}
    neck = FPN(backbone.spec, levels=[level for level in spec if level in read])
    return MultiTaskModel(backbone, neck, heads).to(memory_format=torch.channels_last).eval()


def surely_finding(head: RCNN) -> RCNN:
    """Untrained scores are all below the threshold: one class is lifted above it on every proposal."""
    torch.nn.init.constant_(head.branch.classes.bias[1:2], 8.0)
    return head


def images(size: tuple[int, int]) -> MixedBatch:
    """One image of random pixels, ready for a model."""
    pixels = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    return MixedBatch(pixels, (ImageInfo(0, "", size, size),), {}).normalised(mean, std)


def check_detections(one: MultiTaskModel, batch: MixedBatch, count: int) -> None:
    """Every model must do the same work."""
    found = len(one.predict(batch)["boxes"][0])  # type: ignore[arg-type]
    if found != count:
        raise RuntimeError(f"{found} detections instead of {count}: the comparison would mean nothing")


def part_seconds(one: MultiTaskModel, batch: MixedBatch) -> Mapping[str, float]:
    """Backbone, neck and each head on inputs that are there already."""
    assert one.backbone is not None
    assert one.neck is not None
    features: dict[str, torch.Tensor] = one.backbone(batch.images)
    times = {"backbone": seconds(lambda: one.backbone(batch.images)), "neck": seconds(lambda: one.neck(features))}
    features = {**features, **one.neck(features)}
    view = batch.view("", [0], targets=False)
    outputs: dict[str, Any] = {}
    for name in one.order:
        head = one.head(name)
        upstream = {port: outputs[other] for port, other in one.reads[name].items()}
        mine = {level: features[level] for level in head.levels}

        def step(name: str = name, head: Head = head, mine: Any = mine, upstream: Any = upstream) -> None:
            outputs[name] = head(mine, view, upstream)
            head.predict(outputs[name], view)

        times[name] = seconds(step)
    return times


def seconds(step: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start
