"""Weights that were trained elsewhere: for a backbone's ``pretrained``, ``train.init`` and ``import-weights``."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.harness import rehearse
from tests.fuzz.surfaces.coco import require
from tests.fuzz.surfaces.label_maps import plugin_manager
from tests.fuzz.tensors import change_tensors, damage_file, save_tree
from visionkit.config import load_pipeline
from visionkit.model.build import build_model
from visionkit.model.importing import build_importer, import_model
from visionkit.train.optim import load_initial_weights
from visionkit.types import FeatureSpec, LabelSet
from visionkit_translation.cyclegan import CycleGAN
from visionkit_translation.pix2pix import Pix2Pix
from visionkit_translation.published_weights import resnet_names, unet_names

PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}{pretrained}}}
heads:
  semantic: {{name: fcn, levels: [c5, c4], hidden: 8}}
sources:
  shapes: {{name: shapes, heads: [semantic], train: {{images: 2, size: 64, root: FOLDER/scenes}}}}
train: {{steps: 1, batch_size: 2, workers: 0, {init}optimizer: {{name: sgd, lr: 0.01}}}}
"""
LABELS = {"semantic": LabelSet(tuple("abcdefghi"))}
# Name of a seed -> what its weights are for, and their file.
SEEDS = {
    "safetensors": ("pretrained", "weights.safetensors"),
    "state_dict": ("pretrained", "weights.pth"),
    "checkpoint": ("pretrained", "checkpoint.pth"),
    "arrays": ("pretrained", "weights.pkl"),
    "init": ("init", "weights.safetensors"),
    "init_checkpoint": ("init", "checkpoint.pt"),
    "cyclegan": ("cyclegan/resnet9", "latest_net_G.pth"),
    "pix2pix": ("pix2pix/unet256", "latest_net_G.pth"),
}
OTHER_USES = (
    *("pretrained", "init", "cyclegan/resnet9", "pix2pix/unet256", "smp/unet", "smp/deeplabv3plus", "semseg/pspnet50"),
    *("newell/hourglass2", "torchvision/retinanet_resnet50_fpn", "centernet/dla34", "yolact/resnet50", "nothing/here"),
)


def seeds(folder: Path) -> list[Path]:
    """Weights for each use, in each kind of file."""
    torch.manual_seed(0)
    plain = PIPELINE.format(pretrained="", init="")
    for name, (use, file) in SEEDS.items():
        place = folder / name
        place.mkdir()
        (place / "options.json").write_text(json.dumps({"use": use, "file": file}))
        (place / "pipeline.yaml").write_text(plain)
        tree = _weights(name, use, place)
        save_tree(tree, place / file)
        torch.save(tree, place / "tree.pth")
    for name in ("safetensors", "init_checkpoint", "cyclegan", "pix2pix"):
        rehearse(lambda name=name: run(Path(shutil.copytree(folder / name, folder / f"{name}_once"))))  # type: ignore[misc]
    return [folder / name for name in SEEDS]


def _weights(name: str, use: str, folder: Path) -> dict[str, Any]:
    if use == "cyclegan/resnet9":
        forth = CycleGAN(FeatureSpec(), LabelSet(()), blocks=1, width=4, judge_width=4).forth
        return _renamed(dict(forth.state_dict()), resnet_names(1))
    if use == "pix2pix/unet256":
        unet = Pix2Pix(FeatureSpec(), LabelSet(()), downs=5, width=4, judge_width=4).generator
        return _renamed(dict(unet.state_dict()), unet_names(5))
    model = build_model(load_pipeline(str(folder / "pipeline.yaml")), plugin_manager(), LABELS)
    if use == "init":
        state = dict(model.state_dict())
        return state if name == "init" else {"model": state, "average": None, "pipeline": "x", "step": 1}
    assert model.backbone is not None
    state = {key.removeprefix("body."): value for key, value in model.backbone.state_dict().items()}
    if name == "checkpoint":
        state = {f"module.{key}": value for key, value in state.items()}
        return {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}}}
    return state


def _renamed(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Names of ours, as those of the published program."""
    out = {}
    for name, value in state.items():
        for theirs, ours in sorted(names.items(), key=lambda pair: -len(pair[1])):
            if name.startswith(ours):
                out[theirs + name.removeprefix(ours)] = value
                break
    return out


def mutate(rng: Random, folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    path = folder / options["file"]
    if rng.random() < 0.7:
        tree: Any = torch.load(folder / "tree.pth", weights_only=False)
        torch.manual_seed(rng.randrange(1000))
        for _ in range(rng.choice((1, 1, 2, 3))):
            with contextlib.suppress(TypeError, RuntimeError, ValueError, NotImplementedError, AttributeError):
                tree = change_tensors(rng, tree)
        try:
            save_tree(tree, path, rng)
        except Exception:  # what cannot be written is no input
            damage_file(rng, path)
    else:
        damage_file(rng, path)
    if rng.random() < 0.1:
        options["use"] = rng.choice(OTHER_USES)
    if rng.random() < 0.05:
        options["file"] = rng.choice(("nothing.pth", ".", "", "options.json", "pipeline.yaml", "x" * 300, "a\0b"))
    (folder / "options.json").write_text(json.dumps(options))


def run(folder: Path) -> None:
    options = json.loads((folder / "options.json").read_text())
    states = [_loaded(folder, options, seed) for seed in (1, 2)]
    for name, tensor in states[0].items():
        same = torch.equal(tensor.nan_to_num(), states[1][name].nan_to_num())
        require(same, f"{name} is not from the file: it depends on the seed")


def _loaded(folder: Path, options: dict[str, str], seed: int) -> dict[str, torch.Tensor]:
    """The state of a model that was drawn from a seed, once the weights are loaded."""
    torch.manual_seed(seed)
    plugins, use, path = plugin_manager(), options["use"], folder / options["file"]
    if use not in ("pretrained", "init"):
        state = import_model(build_importer(plugins, use), path, plugins).model.state_dict()
        return {name: tensor for name, tensor in state.items() if ".forth." in name or ".generator." in name}
    pipeline = load_pipeline(str(_pipeline(folder, use, path)))
    model = build_model(pipeline, plugins, LABELS)
    load_initial_weights(model, pipeline)
    return dict(model.state_dict() if use == "init" else model.backbone.state_dict())  # type: ignore[union-attr]


def command(folder: Path) -> list[str]:
    options = json.loads((folder / "options.json").read_text())
    use, path = options["use"], folder / options["file"]
    if use in ("pretrained", "init"):
        return ["validate", str(_pipeline(folder, use, path))]
    return ["import-weights", use, str(path).replace("\0", "?"), "--out", str(folder / "run")]


def _pipeline(folder: Path, use: str, path: Path) -> Path:
    """The pipeline that names the file."""
    name = json.dumps(str(path))
    pretrained = f", pretrained: {name}" if use == "pretrained" else ""
    init = f"init: {name}, " if use == "init" else ""
    text = PIPELINE.format(pretrained=pretrained, init=init)
    file = folder / "pipeline.yaml"
    file.write_text(text.replace("FOLDER", str(folder)))
    return file
