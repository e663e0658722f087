"""Small nets learn to translate: scenes to their edges, and edges to scenes, better than those who learn nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from visionkit.config import parse_pipeline
from visionkit.data.pairs import PaintedSource
from visionkit.evaluate.pictures import PicturesEvaluator
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.types import LabelSet, PicturePrediction, PictureTarget

PIPELINE = """
heads: {{picture: {{name: pix2pix, downs: 5, width: 12, judge_layers: 1, judge_width: 8, dropout: 0.0}}}}
sources:
  shapes:
    name: painted
    paint: edges
    reverse: {reverse}
    train: {{source: {train}}}
    val: {{source: {val}}}
train:
  steps: {steps}
  batch_size: 4
  workers: 0
  channels_last: false
  checkpoint_every: 1000
  optimizer: {{name: adamw, lr: 0.002, betas: [0.5, 0.999], weight_decay: 0.0}}
  transforms: [{{name: resize, size: 32}}, hflip]
evaluate: {{batch_size: 4, transforms: [{{name: resize, size: 32}}]}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def scenes(root: Path, split: str) -> dict[str, object]:
    return {"name": "shapes", "root": str(root / split), "size": 32, **SPLITS[split]}


SPLITS = {"train": {"images": 48, "seed": 2}, "val": {"images": 8, "seed": 3}}


def baselines(root: Path, reverse: bool) -> dict[str, dict[str, float]]:
    """Metrics of the image itself, and of the mean of the pictures that were learnt from."""
    learnt, held_out = (PaintedSource(source=scenes(root, s), paint="edges", reverse=reverse) for s in SPLITS)
    pairs = [(sample := held_out.load(i, ("picture",)), sample.targets["picture"]) for i in range(len(held_out))]
    targets = [learnt.load(i, ("picture",)).targets["picture"] for i in range(len(learnt))]
    mean = torch.stack([t.picture.float() / 255 for t in targets if isinstance(t, PictureTarget)]).mean(0)
    out = {}
    for name in ("image", "mean"):
        evaluator = PicturesEvaluator(held_out, LabelSet(()))
        made = [PicturePrediction(sample.image.float() / 255 if name == "image" else mean) for sample, _ in pairs]
        evaluator.add(made, [target for _, target in pairs], [sample.info for sample, _ in pairs])
        out[name] = evaluator.result()
    return out


@pytest.mark.parametrize(("reverse", "steps"), [(False, 60), (True, 90)], ids=["shapes_to_edges", "edges_to_shapes"])
def test_a_small_net_learns_both_ways(reverse: bool, steps: int, root: Path, tmp_path: Path) -> None:
    text = PIPELINE.format(
        reverse=str(reverse).lower(), steps=steps, train=scenes(root, "train"), val=scenes(root, "val")
    )
    found = train(parse_pipeline(text, "twin.yaml"), PluginManager(), tmp_path / "run", accelerator="cpu")
    for name, other in baselines(root, reverse).items():
        assert found["shapes/picture/L1"] < other["L1"], (name, found, other)
        assert found["shapes/picture/SSIM"] > other["SSIM"], (name, found, other)
