"""Every mistake of a user's is one clear line and exit status 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from visionkit.cli import main

PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 8, 8]}}}}
neck: {{name: fpn, channels: 8}}
heads:
  boxes: {{name: rcnn, fcs: [8], samples: 8}}
sources:
  mine:
    name: coco
    train: {{images: {root}/images, annotations: {root}/instances.json}}
    val: {{images: {root}/images, annotations: {root}/instances.json}}
train:
  steps: 1
  batch_size: 2
  workers: 0
"""


def annotations() -> dict:
    def box(number: int, image: int) -> dict:
        return {"id": number, "image_id": image, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0,
                "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}  # fmt: skip

    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in (1, 2)]
    return {"images": images, "categories": [{"id": 1, "name": "cell"}], "annotations": [box(11, 1), box(12, 2)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline and a data set of two images with nothing wrong."""
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.jpg"), noise)
    (tmp_path / "instances.json").write_text(json.dumps(annotations()))
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.format(root=tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and the last line on stderr."""
    status = call(*arguments)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return status, error.strip().splitlines()[-1] if error.strip() else ""


def call(*arguments: object) -> int:
    """Exit status of one command line."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def break_annotations(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = annotations()
        change(data)
        (folder / "instances.json").write_text(json.dumps(data))

    return apply


def edit(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "pipeline.yaml"
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return apply


def truncate(folder: Path) -> None:
    file = folder / "images" / "2.jpg"
    file.write_bytes(file.read_bytes()[:-400])


WITH_KEYPOINTS = {"keypoints": ["nose", "tail"], "skeleton": [[1, 2]]}

MISTAKES = {
    "typo in a key": (edit("samples: 8", "smaples: 8"), "pipeline.yaml:4: unknown key 'smaples'", "'samples'"),
    "typo at the top": (edit("heads:", "haeds:"), "pipeline.yaml:3: unknown key 'haeds'", "'heads'"),
    "wrong type": (edit("steps: 1", "steps: many"), "pipeline.yaml:11:", "many"),
    "unknown head": (edit("name: rcnn", "name: rccn"), "pipeline.yaml:4: no head 'rccn'", "'rcnn'"),
    "unknown level": (edit("fcs: [8]", "pool_levels: [p2, p9]"), "pipeline.yaml:4:", "p9"),
    "missing annotations": (lambda f: (f / "instances.json").unlink(), "instances.json", "no such"),
    "missing image": (lambda f: (f / "images" / "2.jpg").unlink(), "2.jpg", ""),
    "truncated image": (truncate, "2.jpg", "truncated"),
    "broken json": (lambda f: (f / "instances.json").write_text('{"images": [\n1,,]}'), "instances.json:2"),
    "category that is not listed": (
        break_annotations(lambda d: d["annotations"][0].update(category_id=7)), "annotation 11", "category"
    ),
    "annotation of an absent image": (
        break_annotations(lambda d: d["annotations"][1].update(image_id=9)), "annotation 12", "image"
    ),
    "segmentation of zero area": (
        break_annotations(lambda d: d["annotations"][0].update(segmentation=[[4, 4] * 3])), "annotation 11", "zero area"
    ),
    "keypoints of the wrong length": (
        break_annotations(
            lambda d: (d["categories"][0].update(WITH_KEYPOINTS), d["annotations"][0].update(keypoints=[1, 2, 2]))
        ), "annotation 11", "keypoints"
    ),
    "file outside the folder": (
        break_annotations(lambda d: d["images"][0].update(file_name="../../secret.jpg")), "secret.jpg", ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    spoil, *expected = MISTAKES[mistake]
    spoil(folder)
    status, line = run(capsys, "train", folder / "pipeline.yaml", "--out", folder / "run", "--accelerator", "cpu")
    assert status == 2
    assert line.startswith("error: ")
    for part in expected:
        assert part.lower() in line.lower()


def test_broken_images_can_be_skipped(folder: Path, capsys: pytest.CaptureFixture[str]):
    truncate(folder)
    status, _ = run(
        capsys,
        "train",
        folder / "pipeline.yaml",
        "--out",
        folder / "run",
        "--set",
        "train.on_error=skip",
        "--accelerator",
        "cpu",
    )
    assert status == 0


def test_boxes_outside_the_image_are_clipped_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]):
    def reach_out(data: dict) -> None:
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        data["annotations"][0]["bbox"] = [50, 50, 40, 40]

    break_annotations(reach_out)(folder)
    assert call("validate", folder / "pipeline.yaml") == 0
    assert "clipped" in capsys.readouterr().out


def test_validate_tells_everything_and_exits_with_2(folder: Path, capsys: pytest.CaptureFixture[str]):
    truncate(folder)
    status, _ = run(capsys, "validate", folder / "pipeline.yaml", "--json", folder / "checks.json")
    assert status == 2
    checks = {check["what"]: check for check in json.loads((folder / "checks.json").read_text())}
    assert checks["model"]["ok"]
    assert not checks["one batch of 'mine'"]["ok"]
    assert "2.jpg" in checks["one batch of 'mine'"]["detail"]


def test_a_broken_plugin_file_stops_nobody_and_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    broken = folder / "broken.py"
    broken.write_text("def visionkit_components(:\n")
    assert call("validate", folder / "pipeline.yaml", "--plugin", broken) == 0
    assert "broken.py:1" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eval"], ["predict", "image.jpg"]])
def test_a_missing_run_is_told(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name, *rest = command
    options = ["--out", tmp_path / "out"] if name == "predict" else []
    rest = [tmp_path / image for image in rest]
    for image in rest:
        cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    status, line = run(capsys, name, tmp_path / "nothing", *rest, *options)
    assert status == 2
    assert "nothing" in line


def rotate(folder: Path) -> None:
    """Both photos are stored on their side: 48 x 64, displayed as 64 x 48."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (1, 2):
        Image.new("RGB", (64, 48), (90, 40 * number, 200)).save(folder / "images" / f"{number}.jpg", exif=exif)


def test_annotations_lie_on_the_displayed_image(folder: Path, capsys: pytest.CaptureFixture[str]):
    rotate(folder)
    break_annotations(lambda d: [image.update(height=64, width=48) for image in d["images"]])(folder)
    assert call("validate", folder / "pipeline.yaml", "--all-images") == 0
    out = capsys.readouterr().out
    assert "2 images decoded; 2 of them rotated by their EXIF orientation" in out


def test_annotations_on_the_stored_pixels_of_a_rotated_image_are_explained(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    rotate(folder)
    break_annotations(lambda d: [image.update(height=48, width=64) for image in d["images"]])(folder)
    status, line = run(capsys, "train", folder / "pipeline.yaml", "--out", folder / "run", "--accelerator", "cpu")
    assert status == 2
    for part in (
        ".jpg: is 64x48",
        "instances.json says 48x64 for image",
        "EXIF orientation 6",
        "remove the orientation",
    ):
        assert part in line


@pytest.mark.parametrize("arguments", [("eval",), ("validate",), ("demo", "--out"), ("import-weights", "smp/unet")])
def test_a_name_that_is_too_long_is_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, error = run(capsys, *arguments, "x" * 300, *(("--out", "run") if arguments[0] == "import-weights" else ()))
    assert status == 2
    assert error.startswith("error: ")
    assert "x" * 300 in error
