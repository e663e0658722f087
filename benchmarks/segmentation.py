"""Semantic segmentation (ResNet-50) against others with the same weights and the same label maps.

FCN and DeepLabv3 are torchvision's, as it builds them for published weights, auxiliary scores included; U-Net and
DeepLabv3+ those of segmentation_models.pytorch (smp). Weights are random, with the statistics of batch norms taken from
pictures. All are timed from pixels to a label map at the size of the image, ours by
:class:`~visionkit.infer.Predictor`'s steps. A training step is losses, gradients and SGD with momentum.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation

from benchmarks._peers import as_float, bf16_device, in_turn, picture, row, spread, step_of
from visionkit.config import parse_pipeline
from visionkit.infer import Predictor
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, MixedBatch, Prediction, SemanticTarget

CLASSES = 21
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
INFERENCE, INFERENCE_BF16, TRAINING = 1 / 0.85, 1 / 0.50, 1 / 0.95


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Inference on 480x640 in batches of 1 and 4, training steps on two of 512x512; quick: 160x224 and 128x128."""
    size, side, rounds = ((160, 224), 128, 1) if quick else ((480, 640), 512, 5)
    rows, fast = [], bf16_device()
    peers: tuple[tuple[str, str, Callable[[], Peer]], ...] = (
        ("FCN", "torchvision", lambda: Torchvision("torchvision/fcn_resnet50")),
        ("DeepLabv3", "torchvision", lambda: Torchvision("torchvision/deeplabv3_resnet50")),
        ("U-Net", "smp", lambda: SegmentationModels("smp/unet", smp.Unet)),
        ("DeepLabv3+", "smp", lambda: SegmentationModels("smp/deeplabv3plus", smp.DeepLabV3Plus)),
    )
    for title, who, peer in peers:
        pair = Pair(peer, size)
        rows += [row(f"{title}, batch {n}", *pair.inference(n, rounds), INFERENCE, who) for n in (1, 4)]
        if fast is not None:
            times = pair.inference(1, rounds, fast, bf16=True)
            rows.append(row(f"{title}, batch 1, bf16", *times, INFERENCE_BF16, who))
        rows.append(row(f"{title}, training, batch 2", *pair.training(2, side, max(1, rounds // 2)), TRAINING, who))
    if fast is None:
        print("no rows in bf16: here is neither a GPU nor a processor that multiplies in bf16", file=sys.stderr)
    return rows


class Pair:
    """The same model twice, on images of one ``size`` (height, width).

    Args:
        peer: makes the other one, random.
        size: of images.
    """

    def __init__(self, peer: Callable[[], Peer], size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.make, self.size = peer, size
        one = peer()
        calibrate(one, torch.stack([as_float(picture(*size)) for _ in range(2)]))
        self.weights = one.state_dict()
        state = {name.removeprefix("model."): tensor for name, tensor in self.weights.items()}
        importer = PluginManager().load("importer", one.name)()
        self.text, self.labels = importer.describe(state)
        self.state = importer.convert(state)

    def ours(self) -> MultiTaskModel:
        """Our model, with the weights."""
        model = build_model(parse_pipeline(self.text), PluginManager(), self.labels)
        load_state(model, self.state, "the peer")
        return model

    def theirs(self) -> Peer:
        """The other one, with the weights."""
        model = self.make()
        model.load_state_dict(self.weights)
        return model

    def inference(
        self, count: int, rounds: int, device: str = "cpu", *, bf16: bool = False
    ) -> tuple[list[float], list[float]]:  # fmt: skip
        """Seconds of ``rounds`` passes over ``count`` images, ours and theirs in turn."""
        images = [picture(*self.size) for _ in range(count)]
        pixels = torch.stack([as_float(image) for image in images]).to(device)
        precision = "bf16-mixed" if bf16 else "32-true"
        predictor = Predictor(self.ours(), self.labels, device=device, precision=precision, fold=True)
        peer = self.theirs().to(device).eval()

        def theirs() -> Tensor:
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
                return peer(pixels)[0].argmax(1).to(torch.uint8).cpu()

        def ours() -> list[dict[str, Prediction]]:
            return predictor.predict(images, batch_size=count)

        if not bf16:
            check_alike(ours(), theirs())
        return in_turn(ours, theirs, rounds)

    def training(self, count: int, side: int, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of ``rounds`` training steps on ``count`` images of ``side`` x ``side``, ours and theirs in turn."""
        images = torch.stack([torch.from_numpy(picture(side, side)).permute(2, 0, 1) for _ in range(count)])
        labels = torch.from_numpy(np.stack([picture(side, side)[..., 0] % CLASSES for _ in range(count)]))
        model = self.ours().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        peer = self.theirs().train()
        info = tuple(ImageInfo(i, "", (side, side), (side, side)) for i in range(count))
        batch = MixedBatch(images, info, {"semantic": [SemanticTarget(one) for one in labels]})

        def ours() -> Tensor:
            losses, _ = model.losses(batch.normalised(model.mean, model.std))
            return torch.stack([value for named in losses.values() for value in named.values()]).sum()

        def theirs() -> Tensor:
            scores, *others = peer(images / 255)
            loss = F.cross_entropy(scores, labels.long())
            return torch.stack([loss, *(0.5 * F.cross_entropy(other, labels.long()) for other in others)]).sum()

        return in_turn(step_of(model, ours), step_of(peer, theirs), rounds)


class Peer(nn.Module):
    """Pixels in 0 ... 1 to scores at the size of the input, auxiliary ones after them.

    Attributes:
        name: of the importer of its weights.
        last: the layer that scores.
    """

    name: str
    last: nn.Conv2d


class Torchvision(Peer):
    """A model of torchvision, auxiliary scores and all."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.model = getattr(segmentation, name.rpartition("/")[2])(
            weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        )

    @property
    def last(self) -> nn.Conv2d:  # type: ignore[override]
        return self.model.classifier[4]  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        out = self.model(normalised(pixels))
        return out["out"], out["aux"]


class SegmentationModels(Peer):
    """A model of segmentation_models.pytorch on ResNet-50."""

    def __init__(self, name: str, model: type[nn.Module]) -> None:
        super().__init__()
        self.name = name
        self.model = model("resnet50", encoder_weights=None, classes=CLASSES)

    @property
    def last(self) -> nn.Conv2d:  # type: ignore[override]
        return self.model.segmentation_head[0]  # type: ignore[index,return-value]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self.model(normalised(pixels)),)


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) by the mean and deviation of ImageNet."""
    return (pixels - MEAN.to(pixels)) / STD.to(pixels)


@torch.no_grad()
def calibrate(model: Peer, pixels: Tensor) -> None:
    """Statistics of batch norms as pictures have them, and scores of some spread: different classes are then found."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(pixels)
    spread(model.last, 0.0, 1.0, lambda: model.eval()(pixels))


def check_alike(ours: list[dict[str, Prediction]], theirs: Tensor) -> None:
    """Both must do the same work: the same class of nearly all pixels (ties may fall either way), and several."""
    found: Any = torch.stack([one["semantic"].labels for one in ours])  # type: ignore[attr-defined]
    same, classes = float((found == theirs).float().mean()), len(theirs.unique())
    if same < 0.995 or classes < 3:
        raise RuntimeError(f"{same:.1%} of the labels are the same, of {classes} classes: it would mean nothing")
