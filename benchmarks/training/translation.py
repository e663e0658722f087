"""Image translation on a small real set: nuclei under the microscope, against two baselines that anybody has.

    VISIONKIT_REAL_DATA=FOLDER python -m benchmarks.training.translation [--out FOLDER] [--set KEY=VALUE ...] [NAME ...]

pix2pix makes pictures of label maps, and label maps of pictures. CycleGAN learns the first from the same files, where
the truth is known, though its losses never hold a picture against it; and then from two kinds of microscopy, where
there is none. What is left to compare there are the colours: a Fréchet distance of the means and deviations of the
channels.

The baselines are the image itself, and the mean of all training pictures. Ten to twenty minutes each on two CPU cores;
a run that is in the folder is not trained again, and one that was interrupted goes on. Prints a table over time;
sheets over time are in the run folders, under ``pictures``.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from visionkit.config import Pipeline, load_pipeline
from visionkit.data.base import Source
from visionkit.data.geometry import Geometry
from visionkit.data.wiring import build_sources
from visionkit.evaluate.pictures import PicturesEvaluator
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.types import LabelSet, PicturePrediction, PictureTarget

PAIRS = "{{name: pairs, train: {{images: {data}/nuclei_paired/train}}, val: {{images: {data}/nuclei_paired/test}}}}"
RUNS = {
    "pix2pix": ("nuclei_pix2pix", ()),
    "pix2pix_back": ("nuclei_pix2pix_back", ()),
    "cyclegan_of_pairs": ("nuclei_cyclegan", (f"sources.nuclei={PAIRS}",)),
    "cyclegan": ("nuclei_cyclegan", ("evaluate.metrics={{picture: [{{name: pictures, inception: {colours}}}]}}",)),
}
"""Name -> pipeline, and what is changed in it."""
BETTER = {"L1": "lower", "SSIM": "higher", "FID": "lower"}


class Colours(nn.Module):
    """Means and deviations of the channels of pictures (B, 3, H, W) uint8, in 0 ... 1: (B, 6)."""

    def forward(self, pictures: Tensor) -> Tensor:
        x = pictures.float().flatten(2) / 255.0
        return torch.cat((x.mean(2), x.std(2)), 1)


def trained(pipeline: Pipeline, out: Path) -> dict[int, dict[str, float]]:
    """Metrics by step of a run, trained now or earlier."""
    if not (out / "weights.safetensors").exists():
        train(pipeline, PluginManager(), out, resume=(out / "checkpoints" / "last.pt").exists())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {key.rsplit("/", 1)[1]: value for key, value in line["metrics"].items()}
        for line in lines
        if "metrics" in line
    }


def baselines(pipeline: Pipeline, colours: Path | None) -> dict[str, dict[str, float]]:
    """Metrics of those who make nothing of an image, and of those who always make the same."""
    plugins = PluginManager()
    learnt, held_out = (next(iter(build_sources(pipeline, plugins, split).values())) for split in ("train", "val"))
    mean = mean_picture(learnt)
    said: dict[str, Callable[[Tensor], Tensor]] = {
        "the image itself": lambda image: image.float() / 255.0,
        "the mean picture": lambda image: nn.functional.interpolate(mean[None], size=image.shape[1:])[0],
    }
    return {name: judged(held_out, make, colours) for name, make in said.items()}


def mean_picture(source: Source, side: int = 256) -> Tensor:
    """(3, side, side) in 0 ... 1."""
    total = torch.zeros(3, side, side)
    for i in range(len(source)):
        picture = target_of(source, i).picture
        total += Geometry((0, 0, picture.shape[2], picture.shape[1]), (side, side)).image(picture) / 255.0
    return total / len(source)


def judged(source: Source, make: Callable[[Tensor], Tensor], colours: Path | None) -> dict[str, float]:
    """Metrics of a function from images to pictures, by the evaluator that judges heads."""
    evaluator = PicturesEvaluator(source, LabelSet(()), inception=None if colours is None else str(colours))
    for i in range(len(source)):
        sample = source.load(i, ())
        evaluator.add([PicturePrediction(make(sample.image))], [target_of(source, i)], [sample.info])
    return evaluator.result()


def target_of(source: Source, index: int) -> PictureTarget:
    """What an image is to be turned into."""
    target = source.load(index, ("unpaired",)).targets["unpaired"]
    assert isinstance(target, PictureTarget)
    return target


def show(name: str, found: dict[int, dict[str, float]], others: dict[str, dict[str, float]]) -> Table:
    """A row an evaluation, above the baselines; the last row says who is beaten."""
    columns = ["FID"] if "FID" in found[max(found)] else ["L1", "SSIM"]
    table = Table(title=name)
    for column in ("", *(f"{c} of colours" if c == "FID" else c for c in columns)):
        table.add_column(column, justify="right" if column else "left")
    for step, metrics in found.items():
        table.add_row(f"step {step}", *(f"{metrics[c]:.3f}" for c in columns))
    table.add_section()
    for who, metrics in others.items():
        table.add_row(who, *(f"{metrics[c]:.3f}" for c in columns))
    last = found[max(found)]
    beaten = [all((last[c] < o[c]) == (BETTER[c] == "lower") for o in others.values()) for c in columns]
    table.add_row("both beaten", *("yes" if yes else "no" for yes in beaten), style="bold")
    return table


def main() -> None:
    """Train what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/translation"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    colours = options.out / "colours.pt"
    torch.jit.script(Colours()).save(str(colours))
    places = {"data": os.environ.get("VISIONKIT_REAL_DATA", "../shared/data"), "colours": colours}
    for name in options.names:
        shipped, changes = RUNS[name]
        pipeline = load_pipeline(shipped, [*(change.format(**places) for change in changes), *options.overrides])
        found = trained(pipeline, options.out / name)
        Console().print(show(name, found, baselines(pipeline, colours if name == "cyclegan" else None)))


if __name__ == "__main__":
    main()
