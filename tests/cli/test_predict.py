"""``visionkit predict``, on a run whose heads come from a plugin file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from visionkit import load
from visionkit.cli import main
from visionkit.cli.predict import find_images, name_files
from visionkit.config import load_pipeline
from visionkit.model.build import build_model
from visionkit.model.run import write_run
from visionkit.plugins import PluginManager
from visionkit.types import LabelSet

PLUGIN = '''
import torch
from visionkit import Component, hookimpl
from visionkit.data import Transform
from visionkit.model import Backbone, Head
from visionkit.types import BoxPrediction, FeatureSpec, Level, Output, SemanticPrediction


class Stem(Backbone):
    def __init__(self, *, levels=None):
        super().__init__()
        self.spec = FeatureSpec({"c1": Level(3, 1)})
        self.scale = torch.nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images):
        return {"c1": images * self.scale}


class Whole(Head):
    task, makes, loss_names, levels = "boxes", BoxPrediction, (), ("c1",)

    def forward(self, features, batch, upstream):
        return Output()

    def predict(self, output, batch):
        """A box around the whole image: that of the network's input, put back."""
        boxes = [i.boxes_to_original(torch.tensor([[0.0, 0.0, i.size[1], i.size[0]]])) for i in batch.info]
        return [BoxPrediction(box, torch.ones(1), torch.zeros(1).long()) for box in boxes]


class Ground(Whole):
    task, makes = "semantic", SemanticPrediction

    def predict(self, output, batch):
        return [SemanticPrediction(torch.ones(i.original_size, dtype=torch.uint8)) for i in batch.info]


class Nothing(Transform):
    def __call__(self, sample):
        return sample


@hookimpl
def visionkit_components():
    return [
        Component("backbone", "stem", ":Stem"),
        Component("head", "whole", ":Whole"),
        Component("head", "ground", ":Ground"),
        Component("transform", "nothing", ":Nothing"),
    ]
'''

PIPELINE = """
backbone: stem
heads:
  whole: {name: whole}
  ground: {name: ground}
evaluate:
  transforms: [nothing]
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plugin") / "toys.py"
    file.write_text(PLUGIN)
    return file


@pytest.fixture(scope="module")
def run(plugin: Path) -> Path:
    file = plugin.with_name("toys.yaml")
    file.write_text(PIPELINE)
    plugins = PluginManager(files=[str(plugin)])
    pipeline = load_pipeline(str(file))
    labels = {"whole": LabelSet(("picture",), (3,)), "ground": LabelSet(("sky", "grass"), things=(False, False))}
    folder = plugin.with_name("run")
    write_run(folder, pipeline, labels, build_model(pipeline, plugins, labels))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name, size in (("a/1.jpg", (40, 60)), ("b/1.jpg", (50, 30)), ("b/2.png", (20, 20))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((*size, 3), 90, np.uint8))
    return folder


def predict(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["predict", *map(str, arguments)])
    return int(stopped.value.code or 0)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_images(
    run: Path, plugin: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert predict(run, images, "--out", out, "--plugin", plugin, "--device", "cpu", "--batch-size", 2) == 0
    names = {"a/1", "b/1", "b/2"}
    assert files_in(out) == {
        "whole.json",
        *(f"ground/{name}.png" for name in names),
        *(f"pictures/{name}.jpg" for name in names),
    }
    records = json.loads((out / "whole.json").read_text())
    assert {(r["image_id"], r["category_id"], *r["bbox"]) for r in records} == {
        ("a/1.jpg", 3, 0, 0, 60, 40),
        ("b/1.jpg", 3, 0, 0, 30, 50),
        ("b/2.png", 3, 0, 0, 20, 20),
    }
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"3 images -> {out}: whole.json (3), ground/ (3), pictures/ (3)"
    assert "predict 3/3" in said.err


def test_one_head_no_pictures_and_a_second_time_into_the_same_folder(run: Path, plugin: Path, images: Path) -> None:
    out = images / "out"  # what is written there is no input the next time
    for _ in range(2):
        assert predict(run, images, "--out", out, "--plugin", plugin, "--heads", "ground", "--no-pictures") == 0
        assert files_in(out) == {"ground/a/1.png", "ground/b/1.png", "ground/b/2.png"}


def test_ids_come_from_an_annotation_file(run: Path, plugin: Path, images: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    entries = [{"id": 11, "file_name": "a/1.jpg"}, {"id": 12, "file_name": "1.jpg"}, {"id": 13, "file_name": "2.png"}]
    truth.write_text(json.dumps({"images": entries}))
    out = tmp_path / "out"
    arguments = ("--out", out, "--plugin", plugin, "--annotations", truth, "--heads", "whole")
    assert predict(run, images / "a", f"{images}/b/*", *arguments) == 0
    assert [r["image_id"] for r in json.loads((out / "whole.json").read_text())] == [11, 12, 13]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{images}/nothing*"], "nothing*: no such image, folder or pattern"),
        (
            ["{images}", "--heads", "grund"],
            "no head 'grund' in this run (heads: whole, ground); did you mean 'ground'?",
        ),
        (["{images}", "--device", "cuda:77"], "device 'cuda:77' is not available"),
        (["{images}", "--source", "shapes"], "no source 'shapes' in this run"),
        (["{images}", "--annotations", "{images}/none.json"], "none.json: cannot be read"),
        (["{images}/a/1.jpg", "{images}/bad.jpg"], "bad.jpg"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    run: Path, plugin: Path, images: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    (images / "bad.jpg").write_bytes((images / "a/1.jpg").read_bytes()[:200])
    given = [argument.format(images=images) for argument in arguments]
    assert predict(run, *given, "--out", images / "out", "--plugin", plugin) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (images / "out" / "whole.json").exists()


def test_a_broken_image_can_be_skipped(
    run: Path, plugin: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (images / "a/0.jpg").write_bytes((images / "a/1.jpg").read_bytes()[:200])
    assert predict(run, images, "--out", tmp_path / "out", "--plugin", plugin, "--on-error", "skip") == 0
    said = capsys.readouterr()
    assert "3 images (1 skipped)" in said.out
    assert "0.jpg" in said.err
    assert predict(run, images / "a/0.jpg", "--out", tmp_path / "o", "--plugin", plugin, "--on-error", "skip") == 2


def test_a_folder_that_is_no_run(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert predict(tmp_path, images, "--out", tmp_path / "out") == 2
    assert "is no run folder" in capsys.readouterr().err


def test_load_in_python(run: Path, plugin: Path, images: Path) -> None:
    predictor = load(run, plugins=[str(plugin)], device="cpu")
    assert predictor.heads == ("whole", "ground")
    (found,) = predictor.predict(images / "b/1.jpg")
    assert found["whole"].boxes.tolist() == [[0, 0, 30, 50]]


def test_images_are_found_once_and_in_order(images: Path) -> None:
    found = find_images([f"{images}/b/*.jpg", str(images), str(images / "a/1.jpg")])
    assert [os.path.relpath(path, images) for path in found] == ["b/1.jpg", "a/1.jpg", "b/2.png"]


def test_names_never_meet() -> None:
    assert name_files([Path("a/1.jpg"), Path("b/1.jpg")]) == ["a/1", "b/1"]
    assert name_files([Path("1.jpg"), Path("1.png"), Path("2.png")]) == ["1.jpg", "1.png", "2.png"]
