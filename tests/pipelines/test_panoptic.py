"""A run with a panoptic head leaves files that ``coco-eval`` judges as the run did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visionkit.cli import main
from visionkit.evaluate import evaluate_panoptic

HALVES = str(Path(__file__).parents[1] / "plugins" / "halves.py")
PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads: {{halves: {{name: halves}}}}
sources:
  shapes:
    name: shapes
    train: {{root: {root}/train, images: 4, size: 64}}
    val: {{root: {root}/val, images: 9, seed: 1, size: [64, 80]}}
train: {{steps: 1, batch_size: 2, optimizer: {{name: sgd, lr: 0.01}}, workers: 0}}
evaluate: {{batch_size: 2, pictures: 1}}
"""


def call(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments), "--plugin", HALVES])
    assert not end.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoptic")
    (folder / "halves.yaml").write_text(PIPELINE.format(root=folder))
    call("train", folder / "halves.yaml", "--out", folder / "run")
    return folder / "run"


def test_eval_leaves_results_that_coco_eval_reads(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0.02 < metrics["shapes/halves/PQ"] < 0.9
    judged = evaluate_panoptic(run.parent / "val" / "panoptic.json", run / "predictions" / "shapes" / "halves.json")
    assert {f"shapes/halves/{name}": value for name, value in judged.items()} == pytest.approx(metrics)
    assert len(list((run / "pictures" / "shapes").iterdir())) == 1


def test_predict_does_too(run: Path, tmp_path: Path) -> None:
    call(
        "predict",
        run,
        run.parent / "val" / "images",
        "--out",
        tmp_path,
        "--annotations",
        run.parent / "val" / "panoptic.json",
    )
    judged = evaluate_panoptic(
        run.parent / "val" / "panoptic.json", tmp_path / "halves.json", dt_folder=tmp_path / "halves"
    )
    assert judged["PQ"] == pytest.approx(json.loads((run / "metrics.json").read_text())["shapes/halves/PQ"])
