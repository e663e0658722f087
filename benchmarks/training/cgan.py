"""Whether a conditional GAN makes what it is asked for: a classifier that knows real pictures alone says what it sees.

    python -m benchmarks.training.cgan [--out FOLDER] [--set KEY=VALUE ...]

Trains ``pipelines/cgan_shapes.yaml``, some three minutes on two CPU cores, and a small classifier on the same pictures.
Prints, class by class, how many of the real and of the made pictures are recognised, and how different the made ones of
a class are; ``sheet.jpg`` in the folder shows some. Exits with 1 where fewer than 80 % of the made ones are recognised.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from visionkit.config import load_pipeline
from visionkit.data.base import Source
from visionkit.data.wiring import build_sources
from visionkit.draw import sheet
from visionkit.infer import load
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.types import ClassPictures, ClassTarget

BAR = 0.8
NOISES = 200
CLASSIFIER_STEPS = 400


def images_of(source: Source) -> tuple[Tensor, Tensor]:
    """All images of a source, grey (N, 1, H, W) in 0 ... 1, and their classes (N,)."""
    samples = [source.load(i, ("class",)) for i in range(len(source))]
    targets = [sample.targets["class"] for sample in samples]
    labels = torch.stack([target.label for target in targets if isinstance(target, ClassTarget)])
    return torch.stack([sample.image[:1] for sample in samples]) / 255.0, labels


def classifier(images: Tensor, labels: Tensor) -> nn.Module:
    """Two convolutions and a linear layer, trained."""
    torch.manual_seed(0)
    classes = int(labels.max()) + 1
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.LazyLinear(classes),
    )  # fmt: skip
    net(images[:1])
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(CLASSIFIER_STEPS):
        rows = torch.randint(len(images), (64,))
        noisy = (images[rows] + 0.1 * torch.randn_like(images[rows])).clamp(0, 1)  # made pictures are not quite clean
        loss = nn.functional.cross_entropy(net(noisy), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def made_by(run: Path, size: int) -> Tensor:
    """(noises, classes, 1, H, W) in 0 ... 1: what a run makes of every class from each of many noises."""
    predictor = load(run)
    blank = np.zeros((size, size, 3), np.uint8)  # an image is not looked at; its number decides on the noise
    (head,) = predictor.labels
    found = [result.predictions[head] for result in predictor.stream([blank] * NOISES)]
    return torch.stack([one.pictures[:, :1] for one in found if isinstance(one, ClassPictures)])


@torch.no_grad()
def shares(net: nn.Module, images: Tensor, labels: Tensor, classes: int) -> list[float]:
    """How many of each class are recognised."""
    right = (net(images).argmax(1) == labels).float()
    return [float(right[labels == label].mean()) for label in range(classes)]


def main() -> int:
    """Train what is missing, print the table; 0 if the bar is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/cgan_shapes"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    plugins, pipeline = PluginManager(), load_pipeline("cgan_shapes", options.overrides)
    if not (options.out / "weights.safetensors").exists():
        train(pipeline, plugins, options.out, resume=(options.out / "checkpoints" / "last.pt").exists())
    learnt, held_out = (next(iter(build_sources(pipeline, plugins, split).values())) for split in ("train", "val"))
    names = learnt.labels["class"].names
    net = classifier(*images_of(learnt))
    made = made_by(options.out, int(learnt.load(0, ()).image.shape[1]))
    asked = torch.arange(len(names)).repeat(NOISES)
    real, of_made = shares(net, *images_of(held_out), len(names)), shares(net, made.flatten(0, 1), asked, len(names))
    spread = made.std(0).mean((1, 2, 3)).tolist()

    table = Table(title="Recognised by a classifier that was trained on real pictures")
    for column in ("class", "real", "made", "spread"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for i, name in enumerate(names):
        table.add_row(name, f"{real[i]:.0%}", f"{of_made[i]:.0%}", f"{spread[i]:.3f}")
    mean = sum(of_made) / len(names)
    table.add_row(
        "all", f"{sum(real) / len(names):.0%}", f"{mean:.0%}", f"{sum(spread) / len(names):.3f}", style="bold"
    )
    Console().print(table)
    tiles = [np.repeat((made[i, c, 0].numpy() * 255).astype(np.uint8)[..., None], 3, 2).repeat(3, 0).repeat(3, 1)
             for i in range(8) for c in range(len(names))]  # fmt: skip
    cv2.imwrite(str(options.out / "sheet.jpg"), sheet(tiles, len(names), names))
    return 0 if mean >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
