"""Mask R-CNN and RetinaNet (ResNet-50, FPN) against torchvision's, with the same weights and the same detections.

torchvision's model gets random weights that are spread as trained ones are, so that it finds exactly 100 objects of
many classes on every image; they are imported by the command's own importer. Both models are timed from pixels to
predictions, ours by :class:`~visionkit.infer.Predictor`'s steps, and both end with the masks at the size of the image:
torchvision's as pictures, ours as run lengths. A training step is losses, gradients and SGD with momentum.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from visionkit.cli.import_weights import command
from visionkit.infer import Predictor
from visionkit.model.run import LoadedRun, load_model
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, InstanceTarget, MixedBatch, Prediction

MASK, RETINA = "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"
TITLES = {MASK: "Mask R-CNN", RETINA: "RetinaNet"}
BAR, BAR_BF16 = 1 / 0.90, 1 / 0.55
DETECTIONS, OBJECTS = 100, 8


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Inference on 480x640 in batches of 1 and 4, training steps on two of 512x512; quick: 160x224 and 128x128."""
    size, side, rounds = ((160, 224), 128, 1) if quick else ((480, 640), 512, 5)
    rows, fast = [], bf16_device()
    for name in (MASK, RETINA):
        pair, title = Pair(name, size), TITLES[name]
        rows += [row(f"{title}, batch {count}", *pair.inference(count, rounds), BAR) for count in (1, 4)]
        if fast is not None:
            rows.append(row(f"{title}, batch 1, bf16", *pair.inference(1, rounds, fast, bf16=True), BAR_BF16))
        rows.append(row(f"{title}, training, batch 2", *pair.training(2, side, max(1, rounds // 2)), BAR))
    if fast is None:
        print("no rows in bf16: here is neither a GPU nor a processor that multiplies in bf16", file=sys.stderr)
    return rows


def bf16_device() -> str | None:
    """Where bf16 is faster than float32: a GPU, else a processor that multiplies in bf16, else nowhere."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu" if torch.cpu._is_avx512_bf16_supported() else None


def row(name: str, ours: list[float], peer: list[float], bar: float) -> dict[str, Any]:
    """Ratios are taken round by round, so that a machine that slows down slows both."""
    return {
        "name": name,
        "ours": f"{median(ours) * 1e3:.0f} ms",
        "peer": f"torchvision {median(peer) * 1e3:.0f} ms",
        "ratio": median(b / a for a, b in zip(ours, peer)),
        "bar": bar,
    }


class Pair:
    """The same detector twice: torchvision's and ours, on images of one ``size`` (height, width)."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.name, self.size = name, size
        self.folder = TemporaryDirectory()
        self.run = Path(self.folder.name) / "run"
        theirs = self.peer(size)
        spread_out(theirs, [as_float(picture(*size))])
        self.weights = theirs.state_dict()
        torch.save(self.weights, Path(self.folder.name) / "weights.pth")
        command(f"torchvision/{name}", Path(self.folder.name) / "weights.pth", self.run)

    def peer(self, size: tuple[int, int]) -> nn.Module:
        """torchvision's model as it is with published weights: fixed batch norms, the first stage frozen."""
        options: dict[str, Any] = {"min_size": min(size), "max_size": max(size)}
        body: dict[str, Any] = {"backbone_name": "resnet50", "weights": None, "norm_layer": FrozenBatchNorm2d}
        if self.name == MASK:
            return detection.MaskRCNN(
                resnet_fpn_backbone(**body), 91, box_detections_per_img=DETECTIONS, **options
            ).eval()  # fmt: skip
        extra = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        backbone = resnet_fpn_backbone(**body, **extra)
        return detection.RetinaNet(backbone, 91, detections_per_img=DETECTIONS, **options).eval()

    def ours(self) -> LoadedRun:
        """Our model with its weights."""
        settings = (f"heads.boxes.detections={DETECTIONS}", "backbone.frozen_stages=1")
        return load_model(self.run, PluginManager(), settings)

    def inference(
        self, count: int, rounds: int, device: str = "cpu", *, bf16: bool = False
    ) -> tuple[list[float], list[float]]:  # fmt: skip
        """Seconds of ``rounds`` passes over ``count`` images, ours and theirs in turn."""
        images = [picture(*self.size) for _ in range(count)]
        pixels = [as_float(image).to(device) for image in images]
        run, precision = self.ours(), "bf16-mixed" if bf16 else "32-true"
        predictor = Predictor(run.model, run.labels, device=device, precision=precision, fold=True)
        peer = self.peer(self.size)
        peer.load_state_dict(self.weights)
        peer.to(device)

        def theirs() -> list[dict[str, Tensor]]:
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                return [{name: x.cpu() for name, x in found.items()} for found in peer(pixels)]

        def ours() -> list[dict[str, Prediction]]:
            return predictor.predict(images, batch_size=count)

        if not bf16:
            check_alike(ours(), theirs())
        return in_turn(ours, theirs, rounds)

    def training(self, count: int, side: int, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of ``rounds`` training steps on ``count`` images of ``side`` x ``side``, ours and theirs in turn."""
        images = torch.stack([torch.from_numpy(picture(side, side)).permute(2, 0, 1) for _ in range(count)])
        model = self.ours().model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        peer = self.peer((side, side)).train()
        peer.load_state_dict(self.weights)
        targets = [objects(side, len(model.head("boxes").labels)) for _ in range(count)]
        info = tuple(ImageInfo(i, "", (side, side), (side, side)) for i in range(count))
        batch = MixedBatch(images, info, dict.fromkeys(model.order, targets))
        first = 1 if self.name == MASK else 0  # its background
        told = [{"boxes": t.boxes, "labels": t.labels + first, "masks": t.masks} for t in targets]

        def ours() -> Tensor:
            losses, _ = model.losses(batch.normalised(model.mean, model.std))
            return torch.stack([value for named in losses.values() for value in named.values()]).sum()

        def theirs() -> Tensor:
            return torch.stack(list(peer([image / 255 for image in images], told).values())).sum()

        return in_turn(step_of(model, ours), step_of(peer, theirs), rounds)


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each, ``rounds`` times after one warm-up."""
    for step in (ours, theirs):
        step()
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [a for a, _ in times], [b for _, b in times]


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of SGD with momentum; its rate is 0, so that all steps do the same work."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], Any]) -> float:
    """How long one call takes, whatever it has only asked a GPU to do included."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def spread_out(model: Any, images: list[Tensor]) -> None:
    """Give a random detector batch norms and last layers as a trained one has: many and different detections."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    if isinstance(model, detection.RetinaNet):
        layers = [(model.head.classification_head.cls_logits, -6.0, 0.9), (model.head.regression_head.bbox_reg, 0, 0.2)]
    else:
        rpn, boxes, masks = model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor
        layers = [
            (rpn.cls_logits, 0, 2.0), (rpn.bbox_pred, 0, 0.2), (boxes.cls_score, 0, 2.0), (boxes.bbox_pred, 0, 0.5),
            (masks.mask_fcn_logits, 0, 2.0),
        ]  # fmt: skip
    for layer, mean, std in layers:
        spread(layer, mean, std, lambda: model(images))


def spread(layer: nn.Module, mean: float, std: float, run: Callable[[], Any]) -> None:
    """Rescale a random layer so that each of its outputs has this mean and deviation."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.transpose(0, 1).flatten(1)))
    run()
    hook.remove()
    out = torch.cat(seen, 1)
    factor = std / out.std(1).clamp(min=1e-6)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - out.mean(1)) * factor + mean)


def check_alike(ours: list[dict[str, Prediction]], theirs: list[dict[str, Tensor]]) -> None:
    """Both must do the same work: as many detections, nearly all of them the very same (ties may fall either way)."""
    for mine, want in zip(ours, theirs):
        found: Any = mine["boxes"]
        if len(found) != DETECTIONS or len(want["boxes"]) != DETECTIONS:
            raise RuntimeError(f"{len(found)} and {len(want['boxes'])} detections instead of {DETECTIONS} each")
        near = (box_iou(found.boxes, want["boxes"]) > 0.99) & ((found.scores[:, None] - want["scores"]).abs() < 1e-3)
        if (same := int(near.any(1).sum())) < 0.95 * DETECTIONS:
            raise RuntimeError(
                f"only {same} of {DETECTIONS} detections are the same: the comparison would mean nothing"
            )


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: coloured patches; in noise a random network would see the same everywhere."""
    coarse = torch.randint(0, 256, (1, 3, height // 32, width // 32), dtype=torch.uint8)
    return F.interpolate(coarse, size=(height, width))[0].permute(1, 2, 0).contiguous().numpy()


def as_float(image: np.ndarray) -> Tensor:
    """(3, H, W) in 0 ... 1."""
    return torch.from_numpy(image).permute(2, 0, 1) / 255


def objects(side: int, classes: int) -> InstanceTarget:
    """Ellipses of an eighth to a half of the image's side."""
    extent = (torch.rand(OBJECTS, 2) * 0.375 + 0.125) * side
    corner = torch.rand(OBJECTS, 2) * (side - extent)
    boxes = torch.cat((corner, corner + extent), 1)
    x = (torch.arange(side) + 0.5 - corner[:, :1]) / extent[:, :1] * 2 - 1
    y = (torch.arange(side) + 0.5 - corner[:, 1:]) / extent[:, 1:] * 2 - 1
    masks = (x[:, None, :].square() + y[:, :, None].square() <= 1).byte()
    labels, ids = torch.randint(0, classes, (OBJECTS,)), torch.arange(OBJECTS)
    return InstanceTarget(boxes, labels, torch.zeros(OBJECTS, dtype=torch.bool), extent.prod(1), ids, masks)
