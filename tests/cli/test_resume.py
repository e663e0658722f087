"""``visionkit eval`` and ``visionkit predict``: killed in the middle, resumed, with the same files in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from visionkit.cli import main

PLUGIN = '''
import os
import signal

import torch
from visionkit import Component, hookimpl
from visionkit.model import Backbone, Head
from visionkit.types import BoxPrediction, FeatureSpec, Level, Output, PanopticPrediction, SemanticPrediction


class Stem(Backbone):
    def __init__(self, *, levels=None):
        super().__init__()
        self.spec = FeatureSpec({"c1": Level(3, 1)})
        self.scale = torch.nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images):
        return {"c1": images * self.scale}


class Boxes(Head):
    task, makes, loss_names, levels, evaluators = "boxes", BoxPrediction, (), ("c1",), ("coco_bbox",)

    def forward(self, features, batch, upstream):
        return Output()

    def predict(self, output, batch):
        """As the name of the image says, whatever is on it; the third image may be this process's last."""
        numbers = [int(info.path.rsplit("/")[-1].split(".")[0]) for info in batch.info]
        if os.environ.get("KILL_AT") in map(str, numbers):
            os.kill(os.getpid(), signal.SIGKILL)
        return [self.one(torch.Generator().manual_seed(n), info) for n, info in zip(numbers, batch.info)]

    def one(self, generator, info):
        corner, scores = torch.rand(5, 2, generator=generator) * 30, torch.rand(5, generator=generator)
        return BoxPrediction(torch.cat((corner, corner + 20), 1), scores, torch.zeros(5).long())


class Stuff(Boxes):
    task, makes, evaluators = "semantic", SemanticPrediction, ("semantic",)

    def one(self, generator, info):
        return SemanticPrediction(torch.randint(0, 3, info.original_size, generator=generator).to(torch.uint8))


class Both(Boxes):
    task, makes, evaluators = "panoptic", PanopticPrediction, ("pq",)

    def one(self, generator, info):
        segments = torch.randint(0, 3, info.original_size, generator=generator).int()
        return PanopticPrediction(segments, torch.tensor([0, 1]), torch.ones(2))


@hookimpl
def visionkit_components():
    return [
        Component("backbone", "stem", ":Stem"),
        Component("head", "toy_boxes", ":Boxes"),
        Component("head", "toy_stuff", ":Stuff"),
        Component("head", "toy_both", ":Both"),
    ]
'''

PIPELINE = """
backbone: stem
heads:
  boxes: {{name: toy_boxes}}
  stuff: {{name: toy_stuff}}
  both: {{name: toy_both}}
sources:
  shapes: {{name: shapes, val: {{root: {root}/val, images: 5, size: 64}}}}
train: {{workers: 0}}
evaluate: {{batch_size: 2, pictures: 3}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from visionkit.config import load_pipeline
    from visionkit.data.wiring import build_sources, resolve_labels
    from visionkit.model.build import build_model
    from visionkit.model.run import write_run
    from visionkit.plugins import PluginManager

    folder = tmp_path_factory.mktemp("resume")
    (folder / "toys.py").write_text(PLUGIN)
    (folder / "toys.yaml").write_text(PIPELINE.format(root=folder))
    plugins, pipeline = PluginManager(files=[str(folder / "toys.py")]), load_pipeline(str(folder / "toys.yaml"))
    labels = resolve_labels(pipeline, plugins, build_sources(pipeline, plugins, "val"))
    write_run(folder / "run", pipeline, labels, build_model(pipeline, plugins, labels))
    return folder / "run"


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    assert not end.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "journal"), [("eval", "predictions/shapes/predictions.jsonl"), ("predict", "predictions.jsonl")]
)
def test_a_killed_command_resumes_to_the_same_files(run: Path, tmp_path: Path, command: str, journal: str) -> None:
    arguments = [command, str(run), "--plugin", str(run.parent / "toys.py"), "--device", "cpu"]
    if command == "predict":
        arguments += [str(run.parent / "val" / "images"), "--batch-size", "2"]
    call(*arguments, "--out", tmp_path / "whole")
    images = sorted((run.parent / "val" / "images").iterdir())

    program = [sys.executable, "-c", "from visionkit.cli import main; main()", *arguments, "--out", tmp_path / "out"]
    killed = subprocess.run(program, env={**os.environ, "KILL_AT": str(int(images[2].stem))})
    assert killed.returncode == -signal.SIGKILL
    lines = (tmp_path / "out" / journal).read_text().splitlines()
    assert len(lines) == 1 + 2  # the images of the first batch
    assert not list((tmp_path / "out").glob("*.json"))

    with open(tmp_path / "out" / journal, "a") as file:
        file.write('{"image": "half a li')
    call(*arguments, "--out", tmp_path / "out", "--resume")
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_an_image_that_has_changed_is_predicted_again_with_its_batch(run: Path, tmp_path: Path) -> None:
    arguments = ("eval", run, "--plugin", run.parent / "toys.py", "--device", "cpu")
    call(*arguments, "--out", tmp_path)
    first = contents(tmp_path)
    image = sorted((run.parent / "val" / "images").iterdir())[1]
    os.utime(image, (1, 1))
    call(*arguments, "--out", tmp_path, "--resume")
    journal = "predictions/shapes/predictions.jsonl"
    second = contents(tmp_path)
    assert {name for name in first if first[name] != second[name]} == {journal}
    assert second[journal].startswith(first[journal])
    assert second[journal].count(b"\n") == first[journal].count(b"\n") + 1  # the others of its batch came out the same


def test_an_evaluation_of_something_else_does_not_resume(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("eval", run, "--plugin", run.parent / "toys.py", "--device", "cpu", "--out", tmp_path)
    call(*arguments)
    first = contents(tmp_path)
    call(*arguments, "--resume", "--set", "evaluate.metrics.boxes=[coco_bbox]")  # other metrics of the same predictions
    assert contents(tmp_path) == first
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--resume", "--set", "evaluate.batch_size=1"])
    assert end.value.code == 2
    assert "cannot resume: batch_size was 2 and is now 1" in capsys.readouterr().err
    assert contents(tmp_path) == first


def test_an_unwritable_output_is_told_before_the_run_is_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for more in (["--out", str(tmp_path / "file")], ["--json", str(tmp_path / "file" / "metrics.json")]):
        with pytest.raises(SystemExit) as end:
            main(["eval", str(run), *more])  # without its plugin, the run cannot be read
        assert end.value.code == 2
        assert "the output needs a folder" in capsys.readouterr().err


def test_metrics_are_written_before_anything_is_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        assert json.loads((tmp_path / "metrics.json").read_text())
        assert (tmp_path / "predictions" / "shapes" / "boxes.json").exists()
        raise MemoryError

    monkeypatch.setattr("visionkit.evaluate.runner.comparison", fail)
    call("eval", run, "--plugin", run.parent / "toys.py", "--device", "cpu", "--out", tmp_path)
    assert len([line for line in caplog.messages if "no visualization: MemoryError" in line]) == 3
    assert not (tmp_path / "pictures").exists()


def test_panoptic_files_stay_in_their_folder_whatever_the_image_id(tmp_path: Path) -> None:
    import torch

    from visionkit.evaluate.runner import _write_panoptic
    from visionkit.types import ImageInfo, LabelSet, PanopticPrediction

    prediction = PanopticPrediction(torch.ones(2, 3, dtype=torch.int32), torch.tensor([0]), torch.ones(1))
    ids = ["../../x", "/etc/x", "a/b", "a_b", "x" * 300, "nul\0", "", "..", "line\nbreak", 7]
    names = set()
    for number in ids:
        info = ImageInfo(number, "", (2, 3), (2, 3))
        (record,) = _write_panoptic(prediction, info, LabelSet(("sky",), (1,)), tmp_path / "folder")
        assert record["image_id"] == number
        names.add(record["file_name"])
    assert {path.name for path in (tmp_path / "folder").iterdir()} == names
    assert len(names) == len(ids)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_interrupted_prediction_keeps_its_results(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visionkit.infer import PredictionWriter

    add, calls = PredictionWriter.add, []

    def interrupted(self: PredictionWriter, *arguments: object, **options: object) -> None:
        calls.append(options)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *arguments, **options)

    monkeypatch.setattr(PredictionWriter, "add", interrupted)
    with pytest.raises(SystemExit) as end:
        main(["predict", str(run), str(run.parent / "val" / "images"), "--out", str(tmp_path), "--device", "cpu",
              "--plugin", str(run.parent / "toys.py")])  # fmt: skip
    assert end.value.code == 130
    assert len({record["image_id"] for record in json.loads((tmp_path / "boxes.json").read_text())}) == 2
