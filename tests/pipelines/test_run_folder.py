"""What is in a run folder belongs together, whatever happens to a run; nothing that lies there is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from visionkit.config import Pipeline
from visionkit.config.load import parse_pipeline
from visionkit.errors import RunError, UserError
from visionkit.model.run import RunFolder, load_model, load_weights, starting_weights
from visionkit.plugins import PluginManager
from visionkit.results.lock import LOCK, folder_lock
from visionkit.train import train
from visionkit.train.checkpoint import check_continues
from visionkit.train.loop import interrupts_after
from visionkit.train.optim import load_initial_weights
from visionkit.train.progress import MetricsFile
from visionkit.types import LabelSet

SMALL = """
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 8, 8]}}}}
heads: {{semantic: {{name: fcn, levels: [c4], hidden: 8}}}}
sources:
  a:
    name: shapes
    train: {{images: 4, size: 64, root: {root}/a}}
    val: {{images: 1, size: 64, root: {root}/b}}
train: {{steps: 2, batch_size: 2, workers: 0, log_every: 1, checkpoint_every: 1, precision: {precision}}}
evaluate: {{pictures: 0}}
"""


INTERRUPT = """
from visionkit import hookimpl

@hookimpl
def visionkit_step_done(run, step, losses):
    if step == 3:
        raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return SMALL.format(root=tmp_path_factory.mktemp("small"), precision="32-true")


@pytest.fixture(scope="module")
def finished(small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    train(described(small), PluginManager(), out, accelerator="cpu")
    return out


def described(text: str, *changes: str) -> Pipeline:
    return parse_pipeline(text, overrides=changes)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kept", ["checkpoints", "weights.safetensors", "metrics.json", "pipeline.yaml"])
def test_a_folder_that_holds_part_of_a_run_is_refused_and_left_alone(
    small: str, finished: Path, tmp_path: Path, kept: str
):
    (tmp_path / "out").mkdir()
    copy = shutil.copytree if (finished / kept).is_dir() else shutil.copy
    copy(finished / kept, tmp_path / "out" / kept)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=r"choose another --out"):
        train(described(small, "train.seed=5"), PluginManager(), tmp_path / "out", accelerator="cpu")
    assert contents(tmp_path) == before


def test_weights_and_metrics_are_those_of_the_checkpoint_when_a_longer_run_is_interrupted(
    small: str, finished: Path, tmp_path: Path
):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    plugins, longer = PluginManager(files=[str(tmp_path / "interrupt.py")]), described(small, "train.steps=5")
    with pytest.raises(KeyboardInterrupt):
        train(longer, plugins, out, resume=True, accelerator="cpu")
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert state["step"] == 3
    assert not any((out / name).exists() for name in ("weights.safetensors", "metrics.json", "predictions", LOCK))
    loaded = load_model(out, PluginManager()).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state["model"].items())
    train(longer, PluginManager(), out, resume=True, accelerator="cpu")
    assert json.loads((out / "metrics.json").read_text())
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    weights = load_weights(out / "weights.safetensors")
    assert all(torch.equal(value, state["model"][name]) for name, value in weights.items())


def test_a_run_without_final_weights_and_its_checkpoint_are_weights_to_start_from(
    small: str, finished: Path, tmp_path: Path
):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    (unfinished / "weights.safetensors").unlink()
    expected = load_weights(finished / "weights.safetensors")
    for path in (finished, unfinished, unfinished / "checkpoints" / "last.pt", finished / "weights.safetensors"):
        found = starting_weights(path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such run folder or weights file"),
        ("empty", "holds neither final weights nor a checkpoint of a run"),
        ("other.pt", "is a PyTorch file, but not a checkpoint of a run"),
        ("text", "is damaged"),
    ],
)
def test_what_holds_no_weights_is_named_for_what_it_is(finished: Path, tmp_path: Path, name: str, message: str):
    (tmp_path / "empty").mkdir()
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    (tmp_path / "text").write_text("weights")
    loaded = load_model(finished, PluginManager())
    pipeline = loaded.pipeline.with_train(init=str(tmp_path / name))
    with pytest.raises(UserError, match=rf"train\.init: .*{name}:? {message}"):
        load_initial_weights(loaded.model, pipeline)


def continued(changes: dict, then: LabelSet, now: LabelSet, step: int = 40) -> None:
    """Go on from a checkpoint of 100 steps with these changes to ``train``."""
    pipeline = described(SMALL.format(root="x", precision="32-true")).with_train(steps=100)
    schedule = replace(pipeline.train.schedule, **{k: v for k, v in changes.items() if k != "steps"})
    pipeline = pipeline.with_train(schedule=schedule)
    state = {"pipeline": pipeline.to_yaml(), "step": step, "labels": {"semantic": then.to_dict()}}
    new = pipeline.with_train(steps=changes.get("steps", 100))
    check_continues(state, {"semantic": now}, new, Path("last.pt"))


AB = LabelSet(("a", "b"), keypoints=("nose", "ear"))


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (LabelSet(("b", "a"), keypoints=AB.keypoints), "class 0 of head 'semantic' was 'a' and is now 'b'"),
        (LabelSet(("a",), keypoints=AB.keypoints), "class 1 of head 'semantic' was 'b' and is now missing"),
        (LabelSet(("a", "b"), keypoints=("ear", "nose")), "keypoint 0 of head 'semantic' was 'nose' and is now 'ear'"),
        (LabelSet(("a", "b"), (), (True, False), (), AB.keypoints), "class 'b' .* was a thing and is now stuff"),
    ],
)
def test_a_run_does_not_go_on_with_other_classes_or_keypoints(now: LabelSet, message: str):
    continued({}, AB, LabelSet(AB.names, ids=(7, 9), keypoints=AB.keypoints))  # numbers in files are free
    with pytest.raises(RunError, match=message):
        continued({}, AB, now)


def test_a_run_goes_on_with_other_steps_where_the_learning_rate_does_not_jump():
    with pytest.raises(RunError, match=r"saved after 40 steps, and train\.steps is 30"):
        continued({"steps": 30}, AB, AB)
    steps = {"name": "multistep", "milestones": (10, 90)}
    for same in ({}, {"name": "constant"}, steps, {"name": "cosine", "hold": 0.5}):
        continued({"steps": 200, **same}, AB, AB)
    for name in ("cosine", "poly"):
        continued({"steps": 100, "name": name}, AB, AB)
        with pytest.raises(RunError, match=rf"the schedule '{name}'; with 200, the learning rate of step 1 would have"):
            continued({"steps": 200, "name": name}, AB, AB)


def test_one_process_at_a_time_writes_to_a_folder_and_a_killed_one_blocks_nobody(tmp_path: Path):
    code = "import sys, time\nfrom pathlib import Path\nfrom visionkit.results.lock import folder_lock\n"
    code += "with folder_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    out = tmp_path / "runs" / "out"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=rf"out: another process \(PID {other.pid}\) is writing here")
        with refused, folder_lock(out):
            pass
        other.send_signal(signal.SIGKILL)
    (out / ".weights.safetensors.1").touch()
    with folder_lock(out, [".weights.*"]):
        assert [path.name for path in out.iterdir()] == [LOCK]
    assert list(out.iterdir()) == []
    with folder_lock(tmp_path / "other" / "new"):
        pass
    assert not (tmp_path / "other").exists(), "nothing was written there"


def test_ctrl_c_waits_for_the_end_of_a_step():
    done = []

    def step(times: int) -> None:
        with interrupts_after():
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            done.append(times)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background ignore it
    try:
        for times in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                step(times)
        assert done == [1]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_metrics_that_will_be_measured_again_are_dropped_on_resume(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    kept = ['{"step": 2, "metrics": {}}', '{"step": 3, "losses": {}}']
    path.write_text("\n".join([*kept, '{"step": 3, "metrics": {}}', '{"step": 4, "losses": {}}', ""]))
    MetricsFile(path, resumed_at=3, evaluated_again=True).close()
    assert path.read_text().splitlines() == kept


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_true_precisions_train_and_are_evaluated_as_eval_does(small: str, tmp_path: Path, precision: str):
    text = re.sub("precision: 32-true", f"precision: {precision}, ema: 0.9, clip: 1.0", small)
    train(described(text), PluginManager(), tmp_path / "out", accelerator="cpu")
    types = {value.dtype for value in load_weights(RunFolder(tmp_path / "out").weights_file).values()}
    assert types == {torch.float32, torch.int64}
    state = torch.load(tmp_path / "out" / "checkpoints" / "last.pt", weights_only=True)
    expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}[precision]
    assert state["model"]["backbone.body.conv1.weight"].dtype == expected
