"""Pictures over time: a column an evaluation, the same images, and a training that does not notice."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import torch

from visionkit.config import Pipeline, parse_pipeline
from visionkit.plugins import PluginManager
from visionkit.train import train

PIPELINE = """
heads: {{picture: {{name: pix2pix, downs: 5, width: 4, judge_layers: 1, judge_width: 4}}}}
sources:
  shapes:
    name: painted
    train: {{source: {{name: shapes, root: "{root}/train", images: 4, seed: 2, size: 128}}}}
    val: {{source: {{name: shapes, root: "{root}/val", images: 3, seed: 3, size: 128}}}}
train:
  steps: {steps}
  batch_size: 1
  workers: 0
  checkpoint_every: 1
  optimizer: {{name: adamw, lr: 0.01}}
  transforms: [{{name: resize, size: 32}}]
evaluate: {{every: {every}, pictures: 2, transforms: [{{name: resize, size: 32}}]}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def pipeline(root: Path, steps: int, every: str) -> Pipeline:
    return parse_pipeline(PIPELINE.format(root=root, steps=steps, every=every), "paint.yaml")


def columns(run: Path) -> float:
    """Pictures in a row of the sheet; they are square, and there are two rows."""
    sheet = cv2.imread(str(run / "pictures" / "shapes" / "over_time_picture.jpg"))
    return round(sheet.shape[1] / 132)


def test_every_evaluation_is_a_column_and_a_resumed_run_goes_on(root: Path, tmp_path: Path) -> None:
    train(pipeline(root, 1, "1"), PluginManager(), tmp_path / "run", accelerator="cpu")
    assert columns(tmp_path / "run") == 3  # image, step 1, target
    train(pipeline(root, 3, "1"), PluginManager(), tmp_path / "run", accelerator="cpu", resume=True)
    assert columns(tmp_path / "run") == 5
    kept = tmp_path / "run" / "pictures" / "shapes" / "over_time" / "picture"
    assert sorted(path.name for path in kept.iterdir()) == [f"{step:07d}_{i}.png" for step in (1, 2, 3) for i in (0, 1)]
    first, last = (cv2.imread(str(kept / f"{step:07d}_0.png")) for step in (1, 3))
    assert first.shape == (128, 128, 3)
    assert (first != last).any()


def test_the_training_is_the_same_with_and_without_them(root: Path, tmp_path: Path) -> None:
    states = []
    for name, every in (("often", "1"), ("once", "null")):
        train(pipeline(root, 3, every), PluginManager(), tmp_path / name, accelerator="cpu")
        states.append(torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"])
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
