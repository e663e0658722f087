"""``visionkit coco-eval``: the official numbers to the last digit, without torch, and one line for a mistake."""

import gzip
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from visionkit.cli import main

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def golden(repository, tmp_path_factory):
    """The folder of real annotations, example detections and official numbers."""
    folder = tmp_path_factory.mktemp("golden")
    for file in (repository / "tests/data/coco_eval_golden").iterdir():
        data = file.read_bytes()
        (folder / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(data) if file.suffix == ".gz" else data)
    return folder


def call(golden, kind, *more, dt=None):
    """Exit status of the command."""
    dt = dt or golden / f"dt_{kind}.json"
    gt = golden / "gt_instances_val2014_100.json"
    try:
        main(["coco-eval", "--gt", str(gt), "--dt", str(dt), "--type", kind, *map(str, more)])
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("backend", ["fast", "pycocotools"])
def test_prints_the_expected_numbers(golden, kind, backend, capsys, tmp_path):
    assert call(golden, kind, "--backend", backend, "--json", tmp_path / "out" / "metrics.json") == 0
    expected = json.loads((golden / "expected_stats.json").read_text())[kind]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [[name, f"{value:.6f}"] for name, value in zip(NAMES, expected)]
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: round(value, 6) for name, value in written.items()} == dict(zip(NAMES, expected))


def test_per_class(golden, capsys):
    assert call(golden, "bbox", "--per-class") == 0
    out = capsys.readouterr().out
    assert "AP/person" in out
    assert len(out.splitlines()) == len(NAMES) + 80


def test_mistakes_are_one_line_and_status_2(golden, capfd, tmp_path):
    bad = tmp_path / "bad.json"
    record = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1}
    for text, message in (
        (json.dumps([record]), "detection number 1 has the image_id 1, which the ground truth"),
        ("[{]", f"{bad}:1: not valid JSON"),
        ("{}", "COCO results must be a list of detections"),
    ):
        bad.write_text(text)
        assert call(golden, "bbox", dt=bad) == 2
        error = capfd.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1, error
    assert call(golden, "bbox", dt=tmp_path / "none.json") == 2
    assert "none.json: no such file" in capfd.readouterr().err
    assert call(golden, "boxes", dt=bad) == 2


def test_needs_no_torch(golden):
    code = (
        "import sys; from visionkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'cv2', 'timm'} & set(sys.modules)"
    )
    files = ["--gt", golden / "gt_instances_val2014_100.json", "--dt", golden / "dt_bbox.json"]
    call = [sys.executable, "-c", code, "coco-eval", *map(str, files), "--type", "bbox"]
    assert subprocess.run(call).returncode == 0


def panoptic_set(folder):
    """Two strips of cat and sky, and a prediction that is off by two of ten pixels."""
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    segments = [{"id": 3, "category_id": 1, "iscrowd": 0}, {"id": 200, "category_id": 2, "iscrowd": 0}]
    rows = [{"image_id": 7, "file_name": "7.png", "segments_info": segments}]
    image = {"id": 7, "file_name": "7.jpg", "height": 1, "width": 20}
    data = {"truth": {"images": [image], "annotations": rows, "categories": categories}, "found": {"annotations": rows}}
    for name, edge in (("truth", 10), ("found", 12)):
        (folder / name).mkdir()
        (folder / f"{name}.json").write_text(json.dumps(data[name]))
        pixels = np.zeros((1, 20, 3), np.uint8)
        pixels[:, :edge, 2], pixels[:, edge:, 2] = 3, 200  # OpenCV writes BGR, and the id begins with red
        cv2.imwrite(str(folder / name / "7.png"), pixels)
    return ["coco-eval", "--gt", str(folder / "truth.json"), "--dt", str(folder / "found.json"), "--type", "panoptic"]


def status(arguments):
    try:
        main(arguments)
    except SystemExit as end:
        return end.code or 0
    return 0


def test_panoptic(tmp_path, capsys):
    call = panoptic_set(tmp_path)
    assert status([*call, "--json", str(tmp_path / "out.json"), "--per-class"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    cat, sky = 10 / 12, 8 / 10
    expected = {"PQ": (cat + sky) / 2, "SQ": (cat + sky) / 2, "RQ": 1, "PQ_th": cat, "SQ_th": cat, "RQ_th": 1}
    expected |= {"PQ_st": sky, "SQ_st": sky, "RQ_st": 1, "PQ/cat": cat, "PQ/sky": sky}
    assert lines == {name: f"{value:.6f}" for name, value in expected.items()}
    assert json.loads((tmp_path / "out.json").read_text()) == pytest.approx(expected)


def test_panoptic_folders(tmp_path, capsys):
    call = panoptic_set(tmp_path)
    assert status([*call, "--gt-folder", str(tmp_path / "truth"), "--dt-folder", str(tmp_path / "truth")]) == 0
    assert "PQ     1.000000" in capsys.readouterr().out
    assert status([*call, "--dt-folder", str(tmp_path / "none")]) == 2
    assert "none: no such folder of panoptic PNGs" in capsys.readouterr().err


def test_panoptic_mistakes_are_one_line(golden, tmp_path, capsys):
    call = panoptic_set(tmp_path)
    assert status([*call, "--backend", "pycocotools"]) == 2
    assert "leave the option out" in capsys.readouterr().err
    (tmp_path / "found" / "7.png").unlink()
    assert status(call) == 2
    error = capsys.readouterr().err
    assert "7.png: no such file" in error
    assert len(error.strip().splitlines()) == 1
    assert status([*call[:-1], "bbox", "--gt-folder", str(tmp_path)]) == 2
    assert "are for --type panoptic, not bbox" in capsys.readouterr().err


def test_panoptic_needs_no_torch(tmp_path):
    code = (
        "import sys; from visionkit.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, *panoptic_set(tmp_path)]).returncode == 0


def test_panoptic_areas_that_are_not_those_of_the_maps(tmp_path, capsys):
    call = panoptic_set(tmp_path)
    data = json.loads((tmp_path / "truth.json").read_text())
    data["annotations"][0]["segments_info"][1]["area"] = 1
    (tmp_path / "truth.json").write_text(json.dumps(data))
    assert status(call) == 0
    captured = capsys.readouterr()
    assert "PQ     0.816667" in captured.out
    assert "truth.json: the area of 1 of 2 segments is not their number of pixels (segment 200" in captured.err
    assert len(captured.err.splitlines()) == 1


def test_panoptic_metrics_of_nothing_are_no_numbers(tmp_path, capsys):
    call = panoptic_set(tmp_path)
    for name in ("truth", "found"):
        data = json.loads((tmp_path / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(data | {"annotations": []}))
    assert status([*call, "--json", str(tmp_path / "out.json")]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()} == {"n/a"}
    assert set(json.loads((tmp_path / "out.json").read_text()).values()) == {None}
