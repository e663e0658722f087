"""Kill ``visionkit eval`` and ``visionkit predict`` at random moments, fill their disk, resume, and compare all files.

    python tests/stress/kills.py [--kills 20] [--disks 6] [--images 40] [--seed 0] [--training]

A small run with semantic, box, mask and panoptic heads is trained first. Then each command is killed (SIGKILL) and
resumed again and again, and at last finishes; its files must equal those of an undisturbed call, byte by byte. After
each kill, every output of an image must be in the journal, and every file that is in its place must be whole. The same
is done on a small tmpfs that fills up, which needs root and ``unshare``. With ``--training``, ``visionkit train`` is
killed instead (``training.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
from training import prepare_training, run_kills, run_training_disks

PIPELINE = """\
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 16, 16]}}}}
neck: {{name: fpn, channels: 16}}
heads:
  semantic: {{name: semantic_fpn, channels: 16}}
  boxes:
    name: rcnn
    anchor_sizes: [[12], [24], [48], [96], [128]]
    canonical_size: 56
    fcs: [32]
    rpn_before_nms: 50
    rpn_after_nms: 20
    detections: 10
    score: 0.0
  masks: {{name: roi_mask, convs: [8], canonical_size: 56}}
  panoptic: {{name: panoptic_fusion, stuff_area: 64}}
sources:
  shapes:
    name: shapes
    train: {{root: {root}/train, images: 8, seed: 0, size: 64}}
    val: {{root: {root}/val, images: {images}, seed: 1, size: [96, 64]}}
train: {{steps: 2, batch_size: 2, optimizer: {{name: sgd, lr: 0.01}}, workers: 0}}
evaluate: {{batch_size: 4, pictures: 5}}
"""
VISIONKIT = [sys.executable, "-c", "from visionkit.cli import main; main()"]


class Command:
    """One of the two commands, with the place of its journal in its output folder."""

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.images = sorted((root / "val" / "images").iterdir())
        run = str(root / "run")
        self.arguments = [name, run, "--device", "cpu"]
        self.journal = "predictions/shapes/predictions.jsonl"
        if name == "predict":
            self.arguments += [str(root / "val" / "images"), "--batch-size", "4"]
            self.journal = "predictions.jsonl"

    def start(self, out: Path, *, resume: bool) -> subprocess.Popen[str]:
        more = ["--out", str(out), *(["--resume"] if resume else [])]
        return subprocess.Popen(
            [*VISIONKIT, *self.arguments, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def finish(self, out: Path, *, resume: bool) -> tuple[int, str]:
        process = self.start(out, resume=resume)
        text, _ = process.communicate()
        return process.returncode, text

    def check(self, out: Path) -> int:
        """The number of images in the journal; every output of an image is in it, and every file is whole."""
        entries = entries_of(out / self.journal)
        if self.name == "predict":
            listed = {file for entry in entries.values() for file in entry["files"]}
            outputs = {path.relative_to(out).as_posix() for path in visible(out) if path.suffix in (".png", ".jpg")}
            assert outputs <= listed, f"not in the journal: {outputs - listed}"
        else:
            stems = {str(key) for key in entries}
            outputs = {path.stem for path in (out / "predictions" / "shapes" / "panoptic").glob("[!.]*.png")}
            assert outputs <= stems, f"not in the journal: {outputs - stems}"
        for path in visible(out):
            if path.suffix in (".png", ".jpg"):
                assert cv2.imread(str(path)) is not None, f"half written: {path}"
            elif path.suffix == ".json":
                json.loads(path.read_text())
        return len(entries)


def entries_of(journal: Path) -> dict[str, dict]:
    """The complete lines of a journal, by image."""
    if not journal.exists():
        return {}
    lines = [line for line in journal.read_bytes().splitlines(keepends=True)[1:] if line.endswith(b"\n")]
    return {entry["image"]: entry for entry in map(json.loads, lines)}


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the journal, whose lines are compared by image."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in visible(folder) if p.suffix != ".jsonl"}


def compare(command: Command, whole: Path, out: Path) -> None:
    expected, actual = contents(whole), contents(out)
    assert expected.keys() == actual.keys(), f"files differ: {expected.keys() ^ actual.keys()}"
    different = [name for name in expected if expected[name] != actual[name]]
    assert not different, f"contents differ: {different}"
    assert entries_of(whole / command.journal) == entries_of(out / command.journal)
    leftovers = [path for path in out.rglob(".*") if path.is_file()]
    assert len(leftovers) <= 2 * len(command.images), leftovers  # hidden files of killed writes


def kill_and_resume(command: Command, whole: Path, out: Path, kills: int, rng: random.Random) -> list[int]:
    """Kill a command so many times in a row, then let it finish; the images in the journal after each kill."""
    progress: list[int] = []
    total = len(command.images)
    for number in range(kills):
        done = progress[-1] if progress else 0
        late = done >= total or rng.random() < 0.25  # when everything is predicted, and files are written
        target = total if late else rng.randint(done, total - 1)
        process = command.start(out, resume=number > 0)
        while process.poll() is None and len_of(out / command.journal) < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 1.5 if late else 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        progress.append(command.check(out))
        assert progress[-1] >= done, "the journal has lost images"
    status, text = command.finish(out, resume=True)
    assert status == 0, text
    compare(command, whole, out)
    return progress


def len_of(journal: Path) -> int:
    try:
        return max(journal.read_bytes().count(b"\n") - 1, 0)
    except OSError:
        return 0


def fill_and_resume(command: Command, whole: Path, disk: Path, free: int) -> str:
    """Run a command on a disk with so many bytes left, free the rest, and resume; returns the error line."""
    out = disk / "out"
    shutil.rmtree(out, ignore_errors=True)
    filler = disk / "filler"
    space = os.statvfs(disk)
    with open(filler, "wb") as file:
        file.write(bytes(max(space.f_bavail * space.f_frsize - free, 0)))
    status, text = command.finish(out, resume=False)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert status == 2, text
    assert len(errors) == 1, text
    assert "Traceback" not in text, text
    assert "No space left on device" in errors[0], text
    assert str(disk) in errors[0], text
    command.check(out)
    filler.unlink()
    status, text = command.finish(out, resume=True)
    assert status == 0, text
    compare(command, whole, out)
    return errors[0]


def prepare(root: Path, images: int) -> None:
    (root / "pipeline.yaml").write_text(PIPELINE.format(root=root, images=images))
    train = ["train", str(root / "pipeline.yaml"), "--out", str(root / "run"), "--accelerator", "cpu"]
    subprocess.run([*VISIONKIT, *train], check=True, stdout=subprocess.DEVNULL)
    for name in ("eval", "predict"):
        status, text = Command(name, root).finish(root / f"whole_{name}", resume=False)
        assert status == 0, text


def run_disks(root: Path, count: int, rng: random.Random) -> None:
    """The part that runs in a mount namespace of its own."""
    disk = root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    for number in range(count):
        command = Command(("eval", "predict")[number % 2], root)
        whole = root / f"whole_{command.name}"
        needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in visible(whole))
        free = rng.randrange(8192, int(0.9 * needed))
        print(f"disk {number + 1}: {command.name} with {free // 1024} KiB of {needed // 1024} KiB: "
              f"{fill_and_resume(command, whole, disk, free)}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each command")
    parser.add_argument("--disks", type=int, default=6, help="full disks in all")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", action="store_true", help="kill visionkit train")
    parser.add_argument("--in-namespace", metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    if options.in_namespace:
        disks = run_training_disks if options.training else run_disks
        disks(Path(options.in_namespace), options.disks, rng)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        again = [sys.executable, __file__, "--disks", str(options.disks), "--seed", str(options.seed)]
        again = ["unshare", "-m", *again, "--in-namespace", str(root)]
        if options.training:
            prepare_training(root)
            run_kills(root, options.kills, rng)
            if options.disks:
                subprocess.run([*again, "--training"], check=True)
            print(f"{options.kills} kills and {options.disks} full disks: every run ended alike")
            return
        prepare(root, options.images)
        for name in ("eval", "predict"):
            command, left, series = Command(name, root), options.kills, 0
            while left:
                kills = min(left, rng.randint(1, 4))
                out = root / f"{name}_{series}"
                progress = kill_and_resume(command, root / f"whole_{name}", out, kills, rng)
                left, series = left - kills, series + 1
                print(f"{name}: {kills} kills at {progress} of {options.images} images; files are equal", flush=True)
                shutil.rmtree(out)
        if options.disks:
            subprocess.run(again, check=True)
    print(f"{2 * options.kills} kills and {options.disks} full disks: nothing was lost")


if __name__ == "__main__":
    main()
