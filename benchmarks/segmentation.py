"""Semantic segmentation (ResNet-50) against others with the same weights and the same label maps.

FCN and DeepLabv3 are torchvision's, as it builds them for published weights, auxiliary scores included; U-Net and
DeepLabv3+ are plain torch models of the same layers, written down here on torchvision's ResNet. Their weights are
random, with the statistics of batch norms taken from pictures. All are timed from pixels to a label map at the size of
the image, ours by :class:`~visionkit.infer.Predictor`'s steps. A training step is losses, gradients and SGD with
momentum.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50, segmentation
from torchvision.models.segmentation.deeplabv3 import ASPP

from benchmarks._peers import as_float, bf16_device, in_turn, picture, row, spread, step_of
from visionkit.config import parse_pipeline
from visionkit.infer import Predictor
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import load_state
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, LabelSet, MixedBatch, Prediction, SemanticTarget

CLASSES = 21
LABELS = LabelSet(tuple(f"class {i}" for i in range(CLASSES)))
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
INFERENCE, INFERENCE_BF16, TRAINING = 1 / 0.85, 1 / 0.50, 1 / 0.95

UNET = """
backbone: {name: timm, model: resnet50}
heads: {semantic: {name: unet, channels: [256, 128, 64, 32], norm: batch}}
"""
DEEPLAB_PLUS = """
backbone: {name: timm, model: resnet50, output_stride: 16}
heads: {semantic: {name: deeplab_v3plus, dropout: [0.5, 0.1]}}
"""


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Inference on 480x640 in batches of 1 and 4, training steps on two of 512x512; quick: 160x224 and 128x128."""
    size, side, rounds = ((160, 224), 128, 1) if quick else ((480, 640), 512, 5)
    rows, fast = [], bf16_device()
    for title, who, peer, text in (
        ("FCN", "torchvision", lambda: Torchvision("fcn_resnet50"), None),
        ("DeepLabv3", "torchvision", lambda: Torchvision("deeplabv3_resnet50"), None),
        ("U-Net", "plain torch", PlainUNet, UNET),
        ("DeepLabv3+", "plain torch", PlainDeepLabV3Plus, DEEPLAB_PLUS),
    ):
        pair = Pair(peer, text, size)
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
        text: the pipeline of ours, whose tensors come in the order of the peer's; ``None`` where there is an importer.
        size: of images.
    """

    def __init__(self, peer: Callable[[], Peer], text: str | None, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.make, self.size = peer, size
        one = peer()
        calibrate(one, torch.stack([as_float(picture(*size)) for _ in range(2)]))
        self.weights, plugins = one.state_dict(), PluginManager()
        if text is None:
            importer = plugins.load("importer", f"torchvision/{one.name}")()
            self.text, self.labels = importer.pipeline, importer.labels
            self.state = importer.convert({k.removeprefix("model."): v for k, v in self.weights.items()})
        else:
            self.text, self.labels = text, {"semantic": LABELS}
            names = self.ours(load=False).state_dict()
            self.state = dict(zip(names, self.weights.values(), strict=True))

    def ours(self, load: bool = True) -> MultiTaskModel:
        """Our model, with the weights."""
        model = build_model(parse_pipeline(self.text), PluginManager(), self.labels)
        if load:
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
        name: of it.
        last: the layer that scores.
    """

    name: str
    last: nn.Conv2d


class Torchvision(Peer):
    """A model of torchvision, auxiliary scores and all."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.model = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        )

    @property
    def last(self) -> nn.Conv2d:  # type: ignore[override]
        return self.model.classifier[4]  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        out = self.model(normalised(pixels))
        return out["out"], out["aux"]


class PlainResNet(nn.Module):
    """Features of torchvision's ResNet-50 at strides 2, 4, 8, 16 and 32, or 16 again."""

    def __init__(self, dilated: bool = False) -> None:
        super().__init__()
        body = resnet50(weights=None, replace_stride_with_dilation=[False, False, dilated])
        self.conv1, self.bn1, self.pool = body.conv1, body.bn1, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [torch.relu(self.bn1(self.conv1(x)))]
        x = self.pool(found[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            found.append(x)
        return found


def block(inputs: int, outputs: int, side: int = 3, dropout: float = 0.0) -> nn.Sequential:
    """Convolution, batch norm, ReLU, dropout."""
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Dropout(dropout))


class PlainUNet(Peer):
    """From stride 32 to 2 by transposed convolutions, two 3x3 ones on each level."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PlainResNet()
        widths, skips = (2048, 256, 128, 64, 32), (1024, 512, 256, 64)
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in zip(widths, widths[1:]))  # noqa: RUF007
        self.convs = nn.ModuleList(nn.Sequential(block(b + s, b), block(b, b)) for b, s in zip(widths[1:], skips))
        self.last = nn.Conv2d(widths[-1], CLASSES, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        *skips, x = self.body(normalised(pixels))
        for up, convs, skip in zip(self.up, self.convs, reversed(skips)):
            x = convs(torch.cat([skip, up(x)], 1))
        return (enlarged(self.last(x), pixels),)


class PlainDeepLabV3Plus(Peer):
    """torchvision's pyramid at stride 16, and the decoder of two 3x3 convolutions at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PlainResNet(dilated=True)
        self.aspp = ASPP(2048, [6, 12, 18])
        self.reduce = block(256, 48, 1)
        self.decoder = nn.Sequential(block(304, 256, dropout=0.1), block(256, 256, dropout=0.1))
        self.last = nn.Conv2d(256, CLASSES, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        _, low, _, _, x = self.body(normalised(pixels))
        x = enlarged(self.aspp(x), low)
        return (enlarged(self.last(self.decoder(torch.cat([x, self.reduce(low)], 1))), pixels),)


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) by the mean and deviation of ImageNet."""
    return (pixels - MEAN.to(pixels)) / STD.to(pixels)


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Bilinearly, to the size of another map."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


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
