"""Small components that keep their contracts, to plant defects in."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionkit import Backbone, Evaluator, Head, Neck, Sample, Source, Transform
from visionkit.data.geometry import whole_image
from visionkit.layers.semantic import semantic_cross_entropy, semantic_predictions
from visionkit.train.balance import Balancer
from visionkit.types import (
    BoxPrediction,
    FeatureSpec,
    ImageInfo,
    LabelSet,
    Level,
    Mean,
    Output,
    SemanticOutput,
    SemanticPrediction,
    SemanticTarget,
)


class Sound(Head):
    """A class for every pixel, with what changes between training and evaluation.

    Args:
        level: the level that is read.
        width: channels of its hidden layer.
    """

    task = "semantic"
    makes = SemanticPrediction
    output = SemanticOutput
    loss_names = ("entropy",)
    evaluators = ("semantic",)
    exportable = True

    def __init__(self, spec: FeatureSpec, labels: LabelSet, *, level: str = "p2", width: int = 16) -> None:
        super().__init__(spec, labels)
        self.levels = (level,)
        self.stride = spec[level].stride
        self.hidden = nn.Sequential(nn.Conv2d(spec[level].channels, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.1)
        self.score = nn.Conv2d(width, len(labels), 1)

    def forward(self, features, batch, upstream):
        return SemanticOutput(self.score(self.drop(F.relu(self.hidden(features[self.levels[0]])))))

    def losses(self, output, batch):
        return {"entropy": semantic_cross_entropy(output.logits, batch, stride=self.stride)}

    def predict(self, output, batch):
        return semantic_predictions(output.logits, batch, stride=self.stride)


@dataclass
class BoxOutput(Output):
    boxes: Tensor  # (B, 4): one box an image
    scores: Tensor  # (B,)


class SoundBoxes(Head):
    """One box an image, around all objects."""

    task = "boxes"
    makes = BoxPrediction
    output = BoxOutput
    loss_names = ("box",)

    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.levels = ("c4",)
        self.score = nn.Linear(spec["c4"].channels, 5)

    def forward(self, features, batch, upstream):
        said = self.score(features["c4"].mean((2, 3))).float()
        height, width = batch.images.shape[-2:]
        near, far = said[:, :2].sigmoid() * 0.5, 0.5 + said[:, 2:4].sigmoid() * 0.5
        return BoxOutput(torch.cat((near, far), 1) * said.new_tensor((width, height) * 2), said[:, 4].sigmoid())

    def losses(self, output, batch):
        terms = [output.scores.sum() * 0.0]
        for box, target in zip(output.boxes, batch.targets):
            if len(target):
                around = torch.cat((target.boxes[:, :2].amin(0), target.boxes[:, 2:].amax(0)))
                terms.append((box - around).abs().mean() / 32)
        return {"box": Mean(torch.stack(terms).sum(), max(len(terms) - 1, 0))}

    def predict(self, output, batch):
        return [
            BoxPrediction(info.boxes_to_original(box[None]), score[None], torch.zeros(1, dtype=torch.int64))
            for info, box, score in zip(batch.info, output.boxes.detach(), output.scores.detach())
        ]


@dataclass
class MemoryOutput(SemanticOutput):
    memory: Tensor  # (B, classes, h, w): the logits


class SoundMemory(Sound):
    """As :class:`Sound`, smoothed over the frames of a clip."""

    output = MemoryOutput
    remembers = True

    def forward(self, features, batch, upstream):
        logits = super().forward(features, batch, upstream).logits
        before = upstream.get("memory")
        logits = logits if before is None else (logits + before) / 2
        return MemoryOutput(logits, logits.detach())


class SoundPhases(Sound):
    """As :class:`Sound`, with a critic that is trained in a phase of its own."""

    phase_loss_names = {"critic": ("judgement",)}

    def __init__(self, spec: FeatureSpec, labels: LabelSet) -> None:
        super().__init__(spec, labels)
        self.critic = nn.Conv2d(len(labels), 1, 1)

    def phases(self):
        critic = list(self.critic.parameters())
        return {"main": [p for p in self.parameters() if all(p is not c for c in critic)], "critic": critic}

    def phase_losses(self, phase, output, batch):
        if phase == "main":
            return self.losses(output, batch)
        return {"judgement": self.critic(output.logits).square().mean()}


class SoundBackbone(Backbone):
    """Two levels.

    Args:
        width: channels of the first.
    """

    def __init__(self, *, levels: Collection[str] | None = None, width: int = 8) -> None:
        super().__init__()
        wanted = [name for name in ("c2", "c3") if levels is None or name in levels]
        self.spec = FeatureSpec({"c2": Level(width, 4), "c3": Level(2 * width, 8)}).only(wanted)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU())
        self.deep = nn.Conv2d(width, 2 * width, 2, 2) if "c3" in wanted else None

    def forward(self, images):
        made = {"c2": self.stem(images)}
        if self.deep is not None:
            made["c3"] = self.deep(made["c2"])
        return {name: made[name] for name in self.spec}


class SoundNeck(Neck):
    """Both levels in one width."""

    def __init__(self, spec: FeatureSpec, *, levels: Collection[str] | None = None) -> None:
        super().__init__()
        wanted = [name for name in ("p3", "p4") if levels is None or name in levels]
        self.spec = FeatureSpec({name: Level(8, 2 ** int(name[1:])) for name in wanted})
        self.reads = tuple(f"c{name[1:]}" for name in wanted)
        self.convs = nn.ModuleDict({name: nn.Conv2d(spec[name].channels, 8, 1) for name in self.reads})

    def forward(self, features):
        return {f"p{name[1:]}": conv(features[name]) for name, conv in self.convs.items()}


class SoundSource(Source):
    """Stripes that are made when they are asked for.

    Args:
        images: how many.
    """

    def __init__(self, *, images: int = 4) -> None:
        self.images = images
        self.labels = {"semantic": LabelSet(("left", "right"))}

    def __len__(self) -> int:
        return self.images

    def load(self, index, tasks):
        draw = torch.Generator().manual_seed(index)
        image = torch.randint(0, 100, (3, 40, 64), generator=draw, dtype=torch.uint8)
        labels = torch.zeros(40, 64, dtype=torch.uint8)
        border = 16 + 8 * (index % 4)
        labels[:, border:] = 1
        image[:, :, border:] += 100
        info = ImageInfo(id=index, path="", original_size=(40, 64), size=(40, 64))
        return Sample(image, info, {"semantic": SemanticTarget(labels)} if "semantic" in tasks else {})


class SoundEvaluator(Evaluator):
    """The share of pixels that are right."""

    reads = SemanticPrediction

    def __init__(self, source: Source, labels: LabelSet) -> None:
        super().__init__(source, labels)
        self.seen: dict[int | str, tuple[int, int]] = {}

    def add(self, predictions, targets, info):
        for prediction, target, image in zip(predictions, targets, info):
            self.seen[image.id] = int((prediction.labels == target.labels).sum()), target.labels.numel()

    def state(self):
        return self.seen

    def merge(self, states):
        for state in states:
            self.seen = state | self.seen

    def result(self):
        right, pixels = np.array(list(self.seen.values()) or [(0, 0)]).sum(0).tolist()
        return {"accuracy": right / pixels if pixels else math.nan}


class SoundTransform(Transform):
    """Mirrors half of the images."""

    def __call__(self, sample):
        return whole_image(sample, mirror=True).sample(sample) if float(torch.rand(())) < 0.5 else sample


class SoundBalancer(Balancer):
    """The mean of the heads' losses, each in units of its first value."""

    def __init__(self, heads, *, weights: dict[str, float] | None = None) -> None:
        """Args: see the base."""
        super().__init__(heads, weights=weights)
        self.register_buffer("first", torch.zeros(len(heads)))

    def forward(self, losses, labelled):
        totals = self.totals(losses)
        for i, head in enumerate(self.heads):
            if labelled[head] and not self.first[i]:
                self.first[i] = totals[head].detach()
        unit = torch.where(self.first > 0, self.first, 1.0)
        return torch.stack([totals[head] / unit[i] for i, head in enumerate(self.heads)]).mean()
