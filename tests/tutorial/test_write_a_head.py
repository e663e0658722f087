"""The tutorial "Write a head in an afternoon", done word for word, with fewer and smaller images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from visionkit.config import load_pipeline
from visionkit.plugins import PluginManager
from visionkit.train import train

SMALLER = ["sources.shapes.train.images=40", "sources.shapes.train.size=64", "sources.shapes.val.images=8",
           "sources.shapes.val.size=64", "train.workers=0"]  # fmt: skip


@pytest.fixture(scope="module")
def depth_page(page: Any) -> Any:
    return page("tutorial/write-a-head.md")


@pytest.fixture(scope="module")
def folder(depth_page: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works: the file that the blocks make together, and the pipeline."""
    folder = tmp_path_factory.mktemp("afternoon")
    (folder / "depth.py").write_text("\n\n".join(block.strip() + "\n" for block in depth_page.blocks("python")))
    (pipeline,) = depth_page.blocks("yaml")
    (folder / "depth.yaml").write_text(pipeline)
    return folder


@pytest.fixture
def workshop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def short(pipeline: str, *more: str) -> Any:
    return load_pipeline(pipeline, [*SMALLER, *more])


def test_the_page_says_how_long_the_file_is(folder: Path, depth_page: Any) -> None:
    lines = (folder / "depth.py").read_text().splitlines()
    said = re.search(r"(\d+)\s+lines \((\d+) without blank ones\)", depth_page.text)
    assert said is not None
    assert [int(n) for n in said.groups()] == [len(lines), len([line for line in lines if line])]


def test_every_command_of_the_page_works(workshop: Path, depth_page: Any, run: Any) -> None:
    for line in depth_page.commands():
        arguments = shlex.split(line)[1:]
        if arguments[0] in ("train", "validate"):
            settings = [*SMALLER, "train.steps=2", "train.warmup.steps=0"]
            arguments += [word for setting in settings for word in ("--set", setting)]
        status, output = run(arguments)
        assert status == 0, f"{line}: {output}"
    assert len(list((workshop / "runs/depth/pictures/shapes").glob("*.jpg"))) == 8
    written = cv2.imread(str(workshop / "out/depth/000001.png"), cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16
    assert written.shape == (128, 128)
    assert set(json.loads((workshop / "runs/depth/metrics.json").read_text())) >= {
        "shapes/depth/AbsRel",
        "shapes/depth/RMSE",
        "shapes/depth/delta1",
        "shapes/semantic/mIoU",
    }


def test_the_head_learns_more_than_the_mean(workshop: Path) -> None:
    plugins = PluginManager(files=["depth.py"])
    pipeline = short("depth.yaml", "train.steps=25")
    mean = mean_depth(plugins.load("source", "depth_shapes")(images=40, seed=0, size=64))
    held_out = plugins.load("source", "depth_shapes")(images=8, seed=1, size=64)

    metrics = train(pipeline, plugins, workshop / "runs" / "learnt", accelerator="cpu")

    judge = plugins.load("evaluator", "depth")(held_out, held_out.labels["depth"])
    for index in range(len(held_out)):
        sample = held_out.load(index, ["depth"])
        constant = plugins.load("head", "depth").makes(torch.full((64, 64), mean))
        judge.add([constant], [sample.targets["depth"]], [sample.info])
    assert metrics["shapes/depth/AbsRel"] < 0.6 * judge.result()["AbsRel"]


def mean_depth(source: Any) -> float:
    known = [source.load(i, ["depth"]).targets["depth"].depth for i in range(len(source))]
    return float(torch.cat([depth[depth > 0] for depth in known]).mean())


def test_the_metric_is_that_of_the_paper(workshop: Path) -> None:
    plugins = PluginManager(files=["depth.py"])
    source = plugins.load("source", "depth_shapes")(images=1, size=64)
    sample = source.load(0, ["depth"])
    truth = type(sample.targets["depth"])(torch.tensor([[2.0, 4.0], [0.0, 1.0]]))
    found = plugins.load("head", "depth").makes(torch.tensor([[2.2, 2.0], [7.0, 1.0]]))

    one, other = (plugins.load("evaluator", "depth")(source, source.labels["depth"]) for _ in range(2))
    assert np.isnan(one.result()["AbsRel"])
    one.add([found], [truth], [sample.info])
    other.add([found], [truth], [sample.info])
    one.merge([other.state()])

    assert one.result() == pytest.approx({"AbsRel": (0.1 + 0.5) / 3, "RMSE": (4.04 / 3) ** 0.5, "delta1": 2 / 3})


def test_depth_follows_its_image_through_mirror_crop_and_padding(workshop: Path) -> None:
    plugins = PluginManager(files=["depth.py"])
    sample = plugins.load("source", "depth_shapes")(images=1, size=64).load(0, ["depth"])
    mirrored = plugins.load("transform", "hflip")(probability=1.0)(sample)
    assert torch.equal(mirrored.targets["depth"].depth, sample.targets["depth"].depth.flip(1))
    cropped = plugins.load("transform", "scale_jitter_crop")(size=32, scale=(1.0, 1.0))(sample)
    assert cropped.targets["depth"].depth.shape == (32, 32)
    padded = cropped.targets["depth"].padded((40, 48))
    assert padded.depth.shape == (40, 48)
    assert not padded.depth[32:].any()


def test_predictions_are_in_original_coordinates_wherever_the_image_went(workshop: Path) -> None:
    """A depth map of the input, mirrored and enlarged, is read back as it was."""
    plugins = PluginManager(files=["depth.py"])
    sample = plugins.load("source", "depth_shapes")(images=1, size=64).load(0, ["depth"])
    moved = plugins.load("transform", "resize")(size=[128, 192])(sample)
    moved = plugins.load("transform", "hflip")(probability=1.0)(moved)
    head = plugins.load("head", "depth").__new__(plugins.load("head", "depth"))
    head.__dict__["stride"] = 1
    found = head.original(moved.targets["depth"].depth, moved.info)
    truth = sample.targets["depth"].depth
    assert float(((found - truth).abs() < 0.2).float().mean()) > 0.9
