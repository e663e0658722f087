"""Schedules, parameter groups, averages, checkpoints."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from visionkit.errors import RunError, UserError
from visionkit.train import checkpoint as checkpoints
from visionkit.train.balance import Fixed
from visionkit.train.checkpoint import first_difference, rng_state, save_checkpoint, set_rng_state
from visionkit.train.optim import MovingAverage, learning_rate
from visionkit.train.progress import Averages, MetricsFile


def settings(name: str, **schedule: object) -> SimpleNamespace:
    base = {"milestones": [60, 80], "gamma": 0.1, "power": 0.9, "hold": 0.0, "final": 0.0}
    return SimpleNamespace(
        steps=100,
        optimizer=SimpleNamespace(lr=2.0),
        schedule=SimpleNamespace(name=name, **{**base, **schedule}),
        warmup=SimpleNamespace(steps=0, factor=0.0),
    )


def test_schedules_follow_their_closed_forms():
    assert [learning_rate(settings("multistep"), s) for s in (0, 59, 60, 80)] == pytest.approx([2, 2, 0.2, 0.02])
    assert learning_rate(settings("cosine", final=0.1), 50) == pytest.approx(2 * (0.1 + 0.9 * 0.5))
    assert learning_rate(settings("cosine"), 25) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(settings("poly"), 30) == pytest.approx(2 * 0.7**0.9)
    assert learning_rate(settings("constant"), 99) == 2.0
    # CycleGAN's: all of it for half of the steps, then in a straight line to 0.
    held = settings("poly", power=1.0, hold=0.5)
    assert [learning_rate(held, s) for s in (0, 49, 50, 75, 100)] == pytest.approx([2, 2, 2, 1, 0])


def test_warm_up_is_linear_from_its_factor_to_the_schedule():
    train = settings("constant")
    train.warmup = SimpleNamespace(steps=10, factor=0.1)
    assert [learning_rate(train, s) for s in (0, 5, 10)] == pytest.approx([0.2, 1.1, 2.0])


def test_moving_average_equals_its_recurrence():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, 0.5)
    expected = 0.0
    for n, value in enumerate((1.0, 2.0, 3.0), start=1):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert float(average.state["weight"]) == pytest.approx(expected)


def test_fixed_weights_scale_heads_and_single_losses():
    heads = {"a": ("x", "y"), "b": ("z",)}
    losses = {"a": {"x": torch.tensor(1.0), "y": torch.tensor(10.0)}, "b": {"z": torch.tensor(100.0)}}
    assert float(Fixed(heads)(losses, {"a": 1, "b": 1})) == 111.0
    assert float(Fixed(heads, weights={"a": 2.0, "a/y": 0.5, "b": 0.1})(losses, {"a": 1, "b": 1})) == pytest.approx(
        2 + 10 + 10
    )
    with pytest.raises(UserError, match="no head or loss 'c'"):
        Fixed(heads, weights={"c": 1.0})


def test_random_generators_go_on_where_they_stood():
    state = rng_state()
    first = torch.rand(3)
    set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    old = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(RunError, match=r"last\.pt: No space left on device; the checkpoint before it is intact"):
        save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_torch_writes_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import builtins

    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *a, **k: real("/dev/full" if "last.pt" in str(file) else file, *a, **k)
    )
    with pytest.raises(RunError, match=r"cannot write checkpoint .*last\.pt"):
        save_checkpoint(tmp_path / "last.pt", {"weights": torch.zeros(1000)})


def test_checkpoints_of_another_pipeline_name_the_key_that_differs():
    then = {"heads": {"a": {"channels": 8}}, "train": {"workers": 2, "seed": 0}}
    assert first_difference(then, {"heads": {"a": {"channels": 8}}, "train": {"workers": 0, "seed": 0}}) is None
    found = first_difference(then, {"heads": {"a": {"channels": 16}}, "train": {"workers": 2, "seed": 0}})
    assert found == (("heads", "a", "channels"), 8, 16)


def test_losses_of_heads_without_labels_do_not_count_in_averages():
    averages = Averages()
    averages.add({"a": {"x": torch.tensor(2.0)}, "b": {"z": torch.tensor(0.0)}}, {"a": 2, "b": 0}, 2)
    averages.add({"a": {"x": torch.tensor(4.0)}, "b": {"z": torch.tensor(6.0)}}, {"a": 1, "b": 1}, 2)
    means, _ = averages.read()
    assert means == {"a/x": 3.0, "b/z": 6.0}


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    damaged = b'\x80\xff\n[]\n{"step": 1%s}\n%s\n' % (b"0" * 400, b"[" * 100_000)
    path.write_bytes(damaged + b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    file = MetricsFile(path, resumed_at=2)
    file.write(step=3, again=True)
    file.close()
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2}', '{"step": 3, "again": true}']


def test_metrics_are_kept_in_a_regular_file(tmp_path: Path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(RunError, match=r"metrics\.jsonl is not a file"):
        MetricsFile(tmp_path / "metrics.jsonl", resumed_at=2)
