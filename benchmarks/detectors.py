"""Mask R-CNN and RetinaNet (ResNet-50, FPN) against torchvision's, with the same weights and the same detections.

torchvision's model gets random weights that are spread as trained ones are, so that it finds exactly 100 objects of
many classes on every image; they are imported by the command's own importer. Both models are timed from pixels to
predictions, ours by :class:`~visionkit.infer.Predictor`'s steps, and both end with the masks at the size of the image:
torchvision's as pictures, ours as run lengths. A training step is losses, gradients and SGD with momentum.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks._peers import as_float, bf16_device, in_turn, picture, row, spread, step_of
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
        told = [{"boxes": t.boxes, "labels": t.labels + first, "masks": t.masks.dense()} for t in targets]

        def ours() -> Tensor:
            losses, _ = model.losses(batch.normalised(model.mean, model.std))
            return torch.stack([value for named in losses.values() for value in named.values()]).sum()

        def theirs() -> Tensor:
            return torch.stack(list(peer([image / 255 for image in images], told).values())).sum()

        return in_turn(step_of(model, ours), step_of(peer, theirs), rounds)


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
