"""Drawn scenes: the same seed gives the same files, and all kinds of labels agree with one another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from typer.testing import CliRunner

from visionkit.cli.shapes import parse_size
from visionkit.data.images import read_label_map
from visionkit.data.scenes import STUFF, THINGS
from visionkit.data.shapes import ShapesSource, write_shapes
from visionkit.errors import DataError, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "data"
    assert write_shapes(str(path), 40, seed=3, size=(96, 120))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    write_shapes(str(tmp_path / "again"), 40, seed=3, size=(96, 120))
    assert files(tmp_path / "again") == files(folder)
    write_shapes(str(tmp_path / "other"), 40, seed=4, size=(96, 120))
    assert files(tmp_path / "other")["images/000001.jpg"] != files(folder)["images/000001.jpg"]
    write_shapes(str(tmp_path / "fewer"), 5, seed=3, size=(96, 120))
    assert files(tmp_path / "fewer")["images/000005.jpg"] == files(folder)["images/000005.jpg"]


def test_labels_of_all_kinds_agree(folder: Path) -> None:
    source = ShapesSource(images=40, seed=3, size=[96, 120], root=str(folder))
    assert list(source.tasks) == ["boxes", "masks", "keypoints", "semantic", "panoptic"]
    assert source.labels["semantic"].names == THINGS + STUFF
    assert source.problems() == []
    counts = np.zeros(len(THINGS), int)
    visibility = np.zeros(3, int)
    stuff: set[int] = set()
    for index in range(len(source)):
        sample = source.load(index, source.tasks)
        target, labels = sample.targets["masks"], sample.targets["semantic"].labels.numpy()
        stored = read_label_map(str(folder / "semantic" / f"{index + 1:06d}.png"))
        np.testing.assert_array_equal(labels, stored)
        stuff |= set(np.unique(labels).tolist())
        taken = np.zeros(labels.shape, int)
        for i, mask in enumerate(target.masks.dense().numpy().astype(bool)):
            counts[target.labels[i]] += 1
            assert (labels[mask] == int(target.labels[i])).all()
            taken += mask
            ys, xs = np.nonzero(mask)
            box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            np.testing.assert_allclose(target.boxes[i], box, atol=1.5)
            keypoints = target.keypoints[i].numpy()
            visibility += np.bincount(keypoints[:, 2].astype(int), minlength=3)
            assert (keypoints[:, 2] > 0).any() <= (THINGS[target.labels[i]] == "robot")
            for x, y, seen in keypoints:
                if seen:
                    assert mask[int(y), int(x)] == (seen == 2)
        assert (taken == (labels < len(THINGS))).all()
    assert (counts > 5).all()
    assert stuff == set(range(len(THINGS + STUFF)))
    assert (visibility > 10).all()


def test_pycocotools_reads_it(folder: Path) -> None:
    coco = COCO(str(folder / "instances.json"))
    kinds = {type(a["segmentation"]) for a in coco.anns.values()}
    assert kinds == {list, dict}
    assert any(a["iscrowd"] for a in coco.anns.values())
    for entry in coco.anns.values():
        assert int(coco.annToMask(entry).sum()) == entry["area"]
    sizes = np.array([a["area"] for a in coco.anns.values()])
    assert sizes.min() < 0.02 * 96 * 120 < 0.1 * 96 * 120 < sizes.max()


def test_panoptic_areas(folder: Path) -> None:
    data = json.loads((folder / "panoptic.json").read_text())
    for entry in data["annotations"]:
        ids = read_label_map(str(folder / "panoptic" / entry["file_name"])).astype(int) @ (1, 256, 65536)
        found = dict(zip(*np.unique(ids, return_counts=True)))
        assert found == {s["id"]: s["area"] for s in entry["segments_info"]}


def test_it_is_written_once_and_never_mixed_up(folder: Path, tmp_path: Path) -> None:
    before = (folder / "instances.json").stat().st_mtime_ns
    assert not write_shapes(str(folder), 40, seed=3, size=(96, 120))
    assert (folder / "instances.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match=r"holds other shapes \(seed 3 instead of 9\)"):
        write_shapes(str(folder), 40, seed=9, size=(96, 120))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is not a data set of shapes"):
        write_shapes(str(tmp_path), 1)
    with pytest.raises(DataError, match="0 images"):
        write_shapes(str(tmp_path / "none"), 0)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visionkit.data.shapes._write_json", full)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device"):
        write_shapes(str(tmp_path / "data"), 1)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_tells_requests_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(ShapesSource(images=2, size=64)) == 2
    assert len(ShapesSource(images=3, size=64, tasks=["semantic"])) == 3
    assert len(list((tmp_path / "runs" / "shapes").iterdir())) == 2


def test_command(tmp_path: Path) -> None:
    import typer

    from visionkit.cli.shapes import command

    app = typer.Typer()
    app.command()(command)
    out = CliRunner().invoke(app, [str(tmp_path / "s"), "--images", "2", "--val-images", "1", "--size", "64x80"])
    assert out.exit_code == 0
    assert "train: 2 scenes of 64x80" in out.output
    train, val = (json.loads((tmp_path / "s" / n / "instances.json").read_text()) for n in ("train", "val"))
    assert (len(train["images"]), len(val["images"])) == (2, 1)
    assert train["images"][0]["height"] == 64
    with pytest.raises(UserError, match="--size 12by3: must be HEIGHTxWIDTH"):
        parse_size("12by3")
