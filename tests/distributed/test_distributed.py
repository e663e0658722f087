"""Two processes on the CPU (gloo) against one: the same gradients, the same metrics."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

HERE = Path(__file__).parent


def load_worker():
    spec = importlib.util.spec_from_file_location("distributed_worker", HERE / "worker.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def files(tmp_path_factory, repository) -> tuple[Path, str]:
    """The tiny pipeline on sources that all heads are labelled for, and the plugin with phases."""
    folder = tmp_path_factory.mktemp("distributed")
    text = (repository / "tests" / "pipelines" / "conftest.py").read_text()
    tiny = text.split('TINY = """\\\n')[1].split('"""')[0]
    tiny = tiny.replace("    heads: [boxes, masks, keypoints]\n", "").replace("    heads: [semantic]\n", "")
    file = folder / "tiny.yaml"
    file.write_text(tiny.format(root=folder))
    return file, str(repository / "tests" / "plugins" / "translate.py")


@pytest.fixture(scope="session")
def one(files) -> dict:
    """What one process finds."""
    file, plugin = files
    return load_worker().everything(str(file), plugin, file.parent / "one", Fabric(accelerator="cpu"))


@pytest.fixture(scope="session")
def two(files, one) -> list[dict]:
    """What each of two processes finds, started by torchrun."""
    file, plugin = files
    out = file.parent / "two"
    out.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(HERE / "worker.py"), str(file), plugin, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("what", ["plain", "uneven", "phases", "sharded", "learned", "features"])
def test_two_processes_with_half_the_batch_each_give_the_gradient_of_one(what, one, two):
    expected = one[what]["gradients"]
    assert len(expected) > 30
    for process in two:
        found = process[what]["gradients"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_gradients(found: dict, expected: dict) -> None:
    """To a relative difference of 1e-5 of the whole gradient of each part of the model."""
    assert found.keys() == expected.keys()
    parts = {".".join(name.split(".")[:2]) for name in expected}
    assert len(parts) > 4
    for part in parts:
        one, other = (
            torch.cat([value.flatten() for name, value in values.items() if name.startswith(part)])
            for values in (found, expected)
        )
        assert (one - other).norm() <= 1e-5 * other.norm(), f"{part}: {float((one - other).norm() / other.norm())}"


ACCUMULATED = ["plain", "precise", "learned", "features", "norms", "phases"]


@pytest.mark.parametrize("what", ACCUMULATED)
@pytest.mark.parametrize("parts", [2, 4])
def test_batches_are_accumulated_to_the_gradient_of_one_large_batch(what, parts, files, one):
    expected = one["accumulated"][what]
    found = accumulated_in(files, parts)[what]
    assert_same_gradients(found["gradients"], expected["gradients"])
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)


@pytest.mark.parametrize("what", ACCUMULATED)
def test_batches_are_accumulated_in_two_processes(what, one, two):
    for process in two:
        assert_same_gradients(process["accumulated"][what]["gradients"], one["accumulated"][what]["gradients"])


@functools.cache
def accumulated_in(files: tuple[Path, str], parts: int) -> dict:
    worker = load_worker()
    return worker.accumulated(str(files[0]), worker.PluginManager(files=[files[1]]), Fabric(accelerator="cpu"), parts)


def test_one_process_saw_no_label_of_some_heads(one, two):
    assert two[0]["uneven"]["seen"] == {"semantic": 2, "boxes": 2, "masks": 1, "keypoints": 0}
    assert two[1]["uneven"]["seen"] == {"semantic": 1, "boxes": 0, "masks": 0, "keypoints": 1}


def test_metrics_and_results_of_two_processes_are_those_of_one(files, one, two):
    for process in two:
        assert process["metrics"] == pytest.approx(one["metrics"], abs=1e-9, nan_ok=True)
    for name in ("boxes", "masks"):
        own, theirs = (
            json.loads(next((files[0].parent / p).rglob(f"things/{name}.json")).read_text())
            for p in ("one", "two/evaluated")
        )
        assert len(own) > 10
        assert [r["image_id"] for r in own] == [r["image_id"] for r in theirs]
        assert [r["score"] for r in own] == pytest.approx([r["score"] for r in theirs])


def visionkit_train(file: Path, out: Path, *options: str) -> str:
    """``visionkit train`` by two processes; what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "visionkit", "train", str(file), "--out", str(out), "--accelerator", "cpu", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_run_of_two_processes_goes_on_bit_for_bit_where_it_stopped(files, tmp_path):
    file, _ = files
    few = ["--set", "evaluate.max_images=2", "--set", "train.workers=1", "--devices", "2"]
    told = visionkit_train(file, tmp_path / "whole", *few, "--set", "train.steps=4")
    assert told.count("run folder") == 1  # only the first process speaks
    visionkit_train(file, tmp_path / "parts", *few, "--set", "train.steps=2")
    visionkit_train(file, tmp_path / "parts", *few, "--set", "train.steps=4", "--resume")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert len(whole["rng"]) == 2
    assert not torch.equal(whole["rng"][0]["torch"], whole["rng"][1]["torch"])
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "losses" in line] == [1, 2, 3, 4]


def test_buffers_are_shared_unless_a_module_keeps_its_own(two) -> None:
    assert [found["buffers"]["own"].item() for found in two] == [1.0, 2.0]
    assert [found["buffers"]["shared"].item() for found in two] == [1.0, 1.0]
