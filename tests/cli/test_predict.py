"""``visionkit predict``, on a run whose heads come from a plugin file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from visionkit import load
from visionkit.cli import main
from visionkit.cli.predict import find_images
from visionkit.config import load_pipeline
from visionkit.infer import Predictor
from visionkit.model.build import build_model
from visionkit.model.run import write_run
from visionkit.plugins import PluginManager
from visionkit.results.files import output_names
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
        "predictions.jsonl",
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
        assert files_in(out) == {"ground/a/1.png", "ground/b/1.png", "ground/b/2.png", "predictions.jsonl"}


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
        (["{images}", "--annotations", "{images}/none.json"], "none.json: no such file"),
    ],
)
def test_mistakes_give_one_line_and_status_2(
    run: Path, plugin: Path, images: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
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
    assert "3 images (1 skipped, see skipped.json)" in said.out
    assert "0.jpg" in said.err
    (skipped,) = json.loads((tmp_path / "out" / "skipped.json").read_text())
    assert skipped["image_id"] == "a/0.jpg"
    assert "0.jpg" in skipped["reason"]
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
    assert output_names([Path("a/1.jpg"), Path("b/1.jpg")]) == ["a/1", "b/1"]
    assert output_names([Path("1.jpg"), Path("1.png"), Path("2.png")]) == ["1.jpg", "1.png", "2.png"]
    for places in (["A.jpg", "a.jpg"], ["x" * 250 + ".jpg", "x" * 250 + ".png"], ["d/" * 900 + "1.jpg", "1.jpg"]):
        names = output_names([Path(place) for place in places])
        assert len({name.casefold() for name in names}) == 2
        assert all(len(part) <= 160 for name in names for part in name.split("/"))


def test_a_broken_image_stops_the_command_and_keeps_the_results_before_it(
    run: Path, plugin: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = images / "bad.jpg"
    bad.write_bytes((images / "a/1.jpg").read_bytes()[:200])
    given = (run, images / "a/1.jpg", bad, images / "b/1.jpg", "--out", tmp_path / "out", "--plugin", plugin)
    assert predict(*given) == 2
    assert "bad.jpg" in next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    records = json.loads((tmp_path / "out" / "whole.json").read_text())
    assert [record["image_id"] for record in records] == ["a/1.jpg"]
    cv2.imwrite(str(bad), np.zeros((9, 8, 3), np.uint8))
    assert predict(*given, "--resume") == 0
    records = json.loads((tmp_path / "out" / "whole.json").read_text())
    assert [record["image_id"] for record in records] == ["a/1.jpg", "bad.jpg", "b/1.jpg"]


def test_a_resumed_call_predicts_what_is_left(
    run: Path, plugin: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a line of the journal: whole batches are predicted again, and all files are the same."""
    given = (run, images, "--plugin", plugin, "--device", "cpu", "--batch-size", 2)
    assert predict(*given, "--out", tmp_path / "whole") == 0
    assert predict(*given, "--out", tmp_path / "out") == 0
    journal = tmp_path / "out" / "predictions.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    (tmp_path / "out" / "whole.json").unlink()
    predicted = []
    monkeypatch.setattr("visionkit.infer.predictor.Predictor._run", counting(Predictor._run, predicted))
    assert predict(*given, "--out", tmp_path / "out", "--resume") == 0
    assert predicted == [1]  # the batch of two is complete
    assert predict(*given, "--out", tmp_path / "out", "--resume") == 0
    assert predicted == [1]
    names = files_in(tmp_path / "whole")
    assert names == files_in(tmp_path / "out")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)


def counting(function: Callable, counts: list[int]) -> Callable:
    def counted(self: Predictor, samples: list, heads: list[str]) -> object:
        counts.append(len(samples))
        return function(self, samples, heads)

    return counted


def test_another_call_does_not_resume(
    run: Path, plugin: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("--out", tmp_path / "out", "--plugin", plugin)
    assert predict(run, images, *given) == 0
    assert predict(run, images, *given, "--resume", "--batch-size", 2) == 2
    assert "cannot resume: batch_size was 1 and is now 2" in capsys.readouterr().err
    assert predict(run, images / "a", *given, "--resume") == 2
    assert "cannot resume: images was" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_told_at_once(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300), "/proc/out"):
        assert predict(tmp_path / "no-run", images, "--out", out) == 2  # before the run is opened
        assert capsys.readouterr().err.startswith(f"error: {out}: ")


def test_an_output_folder_that_holds_the_images(run: Path, plugin: Path, images: Path) -> None:
    """Only what the journal lists is left out, also when a later call writes other heads."""
    inputs = files_in(images)
    for heads in ("ground", "whole", "ground"):
        assert predict(run, images, "--out", images, "--plugin", plugin, "--heads", heads) == 0
        entries = [json.loads(line) for line in (images / "predictions.jsonl").read_text().splitlines()[1:]]
        assert {entry["image_id"] for entry in entries} == inputs
    assert set(map(str, find_images([f"{images}/**/*"], images))) == {str(images / name) for name in inputs}


def test_images_with_unusual_names(
    run: Path, plugin: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["x" * 251 + ".jpg", "50%s.jpg", "new\nline.jpg", os.fsdecode(b"b\xfcro.jpg"), "A.jpg", "a.jpg", "a.png"]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((images / "a/1.jpg").read_bytes())
    assert predict(run, tmp_path / "in", "--out", tmp_path / "out", "--plugin", plugin, "--heads", "ground") == 0
    assert len([name for name in files_in(tmp_path / "out") if name.startswith("ground/")]) == len(names)
    assert f"{len(names)} images -> " in capsys.readouterr().out
