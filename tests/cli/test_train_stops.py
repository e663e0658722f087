"""Training that cannot go on: one line, exit status 2, and everything up to there is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PLUGIN = '''
import os, signal

from visionkit.data.shapes import ShapesSource
from visionkit.errors import DataError


class Fragile(ShapesSource):
    """Images of which some cannot be loaded."""

    def __init__(self, *, fault: str = "", **arguments: object) -> None:
        super().__init__(**arguments)
        self.fault = fault

    def load(self, index, tasks):
        if index == 3 and self.fault == "killed" and not os.path.exists("mended"):
            os.kill(os.getpid(), signal.SIGKILL)
        if index in (1, 2) and self.fault == "broken":
            raise DataError(f"{index}.jpg: truncated")
        return super().load(index, tasks)
'''

PIPELINE = """
backbone: {name: timm, model: resnet18, options: {channels: [16, 24, 32, 48]}}
heads: {semantic: {name: deeplab_v3, channels: 16}}
sources: {a: {name: "fragile:Fragile", train: {images: 6, size: 64, root: data}}}
train: {steps: 6, batch_size: 2, workers: 1, seed: 1, log_every: 1, checkpoint_every: 6}
"""


def visionkit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "visionkit", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip


def test_a_killed_worker_leaves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(PLUGIN)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    command = ["train", "p.yaml", "--out", "run", "--accelerator", "cpu", "--set", "sources.a.train.fault=killed"]
    stopped = visionkit(tmp_path, *command)
    assert stopped.returncode == 2
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("error: loader worker 0 (PID ")
    assert "was killed by SIGKILL while it worked on" in line
    assert "stopped at step " in stopped.stdout
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    (tmp_path / "mended").touch()
    resumed = visionkit(tmp_path, *command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step " in resumed.stdout
    assert "step 6/6" in resumed.stdout


def test_skipped_images_are_summed_up_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(PLUGIN)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    changes = ["--set", "sources.a.train.fault=broken", "--set", "train.on_error=skip"]
    done = visionkit(tmp_path, "train", "p.yaml", "--out", "run", "--accelerator", "cpu", *changes)
    assert done.returncode == 0, done.stderr
    assert "source 'a': skipped 2 images (on_error: skip): 2 like '" in done.stdout
    everything = visionkit(tmp_path, "validate", "p.yaml", "--all-images", *changes)
    assert everything.returncode == 0, everything.stdout
    assert "4 images decoded" in everything.stdout
    assert "source 'a': skipped 2 images (on_error: skip): 2 like '" in everything.stdout
