"""Run folders whose checkpoint, weights or labels are damaged: ``train --resume``, ``train.init`` and ``predict``."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import PIL.Image
import safetensors.torch
import torch

from tests.fuzz.harness import rehearse
from tests.fuzz.mutations import mutate_json
from tests.fuzz.surfaces.label_maps import plugin_manager
from tests.fuzz.tensors import change_tensors, damage_file, save_tree
from visionkit.config import load_pipeline, parse_pipeline
from visionkit.data.shapes import write_shapes
from visionkit.infer import load
from visionkit.train import train

PIPELINE = """\
backbone: {{name: unet_encoder, width: 4, norm: batch, dropout: 0.0}}
heads:
  semantic: {{name: unet, levels: [c4, c3, c2, c1, c0], norm: batch}}
sources:
  shapes: {{name: shapes, train: {{images: 2, size: 48, root: FOLDER/scenes}}}}
train:
  steps: {steps}
  batch_size: 2
  workers: 0
  ema: {ema}
  optimizer: {{name: {optimizer}, lr: 0.01}}
  balancer: {{name: {balancer}}}
  checkpoint_every: 2
evaluate: {{pictures: 0}}
"""
RUNS = {
    "adam": {"ema": "null", "optimizer": "adamw", "balancer": "fixed"},
    "average": {"ema": "0.9", "optimizer": "sgd", "balancer": "uncertainty"},
}
USES = ("resume", "resume", "init", "init_file", "predict")
CHECKPOINT = "run/checkpoints/last.pt"


def seeds(folder: Path) -> list[Path]:
    """Two runs of two steps, for each use. Those that are resumed have no final weights yet."""
    out = []
    plugin_manager()
    for name, options in RUNS.items():
        first = folder / name
        write_shapes(str(first / "scenes"), 2, size=(48, 48))
        (first / "pipeline.yaml").write_text(PIPELINE.format(steps=2, **options))
        PIL.Image.new("RGB", (48, 48), (90, 120, 30)).save(first / "image.png")
        _train(first, resume=False)
        for number, use in enumerate(USES):
            place = Path(shutil.copytree(first, folder / f"{name}{number}"))
            (place / "options.json").write_text(json.dumps({"use": use, **options}))
            if number % 2:
                (place / "run" / "weights.safetensors").unlink()
            out.append(place)
    return out


def _train(folder: Path, *, resume: bool) -> None:
    """Train in a process of its own: threads of torch would not survive a fork."""

    def work() -> None:
        pipeline = parse_pipeline((folder / "pipeline.yaml").read_text().replace("FOLDER", str(folder)))
        train(pipeline, plugin_manager(), folder / "run", resume=resume)

    rehearse(work)


def mutate(rng: Random, folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    files = [folder / CHECKPOINT] * (4 if options["use"] in ("resume", "init_file") else 1)
    files += [folder / "run" / "weights.safetensors", folder / "run" / "weights.safetensors"]
    path = rng.choice([file for file in files if file.exists()])
    if options["use"] == "predict" and rng.random() < 0.2:
        mutate_json(rng, folder / "run" / "labels.json")
    elif rng.random() < 0.7:
        _change(rng, path)
    else:
        damage_file(rng, path)
    if rng.random() < 0.15:
        others = (folder / "run" / "labels.json", folder / "run" / "metrics.jsonl", folder / CHECKPOINT)
        other = rng.choice([file for file in others if file.is_file()] or [folder / "image.png"])
        damage_file(rng, other)


def _change(rng: Random, path: Path) -> None:
    """Other values in a checkpoint or in a file of weights."""
    # Not with load_file, which maps the file into memory: the file is about to be written.
    tree: Any = (
        safetensors.torch.load(path.read_bytes())
        if path.suffix == ".safetensors"
        else torch.load(path, weights_only=False)
    )
    for _ in range(rng.choice((1, 1, 2))):
        at = tree
        while isinstance(at, dict) and path.suffix == ".pt" and rng.random() < 0.6:  # deeper than most tensors are
            inner = [value for value in at.values() if isinstance(value, dict | list) and value]
            if not inner:
                break
            at = rng.choice(inner)
        with contextlib.suppress(TypeError, RuntimeError, ValueError, NotImplementedError, AttributeError):
            changed = change_tensors(rng, at)
            tree = changed if at is tree else tree
    try:
        save_tree(tree, path, rng)
    except Exception:  # what cannot be written is no input
        damage_file(rng, path)


def run(folder: Path) -> None:
    use = json.loads((folder / "options.json").read_text())["use"]
    plugins = plugin_manager()
    if use == "predict":
        load(folder / "run", device="cpu", plugins=plugins)
        return
    pipeline = load_pipeline(str(_pipeline(folder, use)))
    train(pipeline, plugins, folder / ("run" if use == "resume" else "new"), resume=use == "resume")


def command(folder: Path) -> list[str]:
    use = json.loads((folder / "options.json").read_text())["use"]
    if use == "predict":
        return ["predict", str(folder / "run"), str(folder / "image.png"), "--out", str(folder / "out")]
    pipeline = str(_pipeline(folder, use))
    if use == "resume":
        return ["train", pipeline, "--out", str(folder / "run"), "--resume"]
    return ["train", pipeline, "--out", str(folder / "new")]


def _pipeline(folder: Path, use: str) -> Path:
    """The pipeline of one more step, or of a new run that begins with the weights of the old one."""
    options = json.loads((folder / "options.json").read_text())
    text = PIPELINE.format(steps=3 if use == "resume" else 1, **{key: options[key] for key in RUNS["adam"]})
    path = folder / "pipeline.yaml"
    # A resumed run must name the same data as before.
    place = folder
    if use == "resume":
        old = (folder / "run" / "pipeline.yaml").read_text()
        place = Path(old.partition("root: ")[2].partition("/scenes")[0].strip())
    text = text.replace("FOLDER", str(place))
    if use != "resume":
        init = folder / "run" if use == "init" else folder / CHECKPOINT
        text = text.replace("  batch_size: 2\n  workers", f"  batch_size: 2\n  init: {init}\n  workers")
    path.write_text(text)
    return path
