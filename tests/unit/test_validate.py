"""``validate`` is a dry run of training that reports everything that is wrong, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from visionkit.config import Pipeline, parse_pipeline
from visionkit.errors import UserError
from visionkit.plugins import PluginManager
from visionkit.train import train
from visionkit.train.validate import Check, validate

PIPELINE = """
backbone: {{name: timm, model: resnet18, options: {{channels: [8, 8, 8, 8]}}}}
heads:
  first: {{name: classification, level: c4}}
  second: {{name: classification, level: c5}}
sources:
  a: {{name: class_shapes, train: {{images: 6, size: 32}}, val: {{images: 2, size: 32}}}}
  b: {{name: class_shapes, heads: [second], train: {{images: 3, size: 64}}}}
train: {{steps: 2, batch_size: 4, workers: 0}}
"""

HEADS = """
import sys
import torch
from visionkit import Component, hookimpl
from visionkit_backbones.classification import Classification

class Odd(Classification):
    '''A head that goes wrong.

    Args:
        at: where.
        level: what it reads.
    '''

    def __init__(self, spec, labels, *, at: str = "", level: str = "c5") -> None:
        super().__init__(spec, labels, level=level)
        self.at = at
        if at == "build":
            raise OSError("no license\\nat all")

    def losses(self, output, batch):
        if self.at == "losses":
            raise ZeroDivisionError("in the losses")
        if self.at == "exit":
            sys.exit("gone")
        found = super().losses(output, batch)
        return {key: torch.tensor(3.0) for key in found} if self.at == "constant" else found

    def predict(self, output, batch):
        if self.at == "predict":
            raise KeyError("in the prediction")
        return super().predict(output, batch)

@hookimpl
def visionkit_components():
    return [Component("head", "odd", ":Odd", "goes wrong")]
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Check]]:
    (tmp_path / "odd.py").write_text(HEADS)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, **options: bool) -> list[Check]:
        before = sorted(tmp_path.rglob("*"))
        checks = list(validate(pipeline(*overrides), PluginManager(files=[str(tmp_path / "odd.py")]), **options))
        assert [f for f in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(f)] == before
        return checks

    return run


def pipeline(*overrides: str) -> Pipeline:
    return parse_pipeline(PIPELINE.format(), "p.yaml", overrides)


def problems(checks: list[Check]) -> list[str]:
    lines = [check.detail for check in checks if not check.ok]
    assert all("\n" not in line for line in lines)
    return lines


@pytest.mark.parametrize(
    "settings", [(), ("train.accumulate=3",), ("train.batch_size=1", "train.ema=0.9", "sources.a.train.size=64")]
)
def test_a_dry_run_takes_a_step_on_two_images_of_each_source(
    settings: tuple[str, ...], check: Callable[..., list[Check]]
) -> None:
    checks = {one.what: one for one in check(*settings)}
    assert problems(list(checks.values())) == []
    assert checks["one batch of 'b'"].detail.startswith("2 images of 64x64; losses: second")
    assert checks["one batch of all sources"].detail.startswith("4 images of ")
    assert "second" in checks["evaluation on 'a'"].detail


def test_a_full_batch_is_that_of_the_run(check: Callable[..., list[Check]]) -> None:
    checks = {one.what: one for one in check("train.accumulate=2", full_batch=True)}
    assert problems(list(checks.values())) == []
    assert checks["one full batch"].detail.startswith("8 images")


def test_weights_to_start_from_are_loaded(check: Callable[..., list[Check]]) -> None:
    (line,) = problems(check("train.init=nowhere.safetensors"))
    assert "train.init" in line
    assert "nowhere.safetensors" in line


def test_problems_of_data_model_and_training_are_found_together(check: Callable[..., list[Check]]) -> None:
    lines = problems(
        check(
            "sources.c={name: class_folder, train: {images: no_folder}}",
            "sources.d={name: coco, val: {images: ., annotations: no.json}}",
            "heads.first.level=p9",
            "heads.second.dropout=2",
            "train.warmup.steps=7",
        )
    )
    for word in ("no_folder", "no.json", "p9", "'dropout'", "warm-up"):
        assert sum(word in line for line in lines) == 1, word


def test_problems_with_preparing_training_are_found_together(check: Callable[..., list[Check]]) -> None:
    lines = problems(
        check("train.init=nowhere", "train.parts={heads.first.no: {freeze: true}}", "train.phases={judge: {lr: 1}}",
              "train.balancer={name: fixed, weights: {third: 1}}")
    )  # fmt: skip
    for word in ("nowhere", "heads.first.no", "judge", "third"):
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("build", "no license"),
        ("losses", "ZeroDivisionError: in the losses"),
        ("exit", "SystemExit: gone"),
        ("predict", "in the prediction"),
        ("constant", "depends on no parameter that is trained"),
    ],
)
def test_whatever_a_component_raises_is_one_line(at: str, says: str, check: Callable[..., list[Check]]) -> None:
    lines = problems(check(f"heads.first={{name: odd, at: {at}, level: c4}}"))
    assert sum(says in line for line in lines) >= 1


def test_every_head_that_fails_is_named(check: Callable[..., list[Check]]) -> None:
    lines = problems(check("heads.first={name: odd, at: losses}", "heads.second={name: odd, at: predict}"))
    assert any("head 'first'" in line and "in the losses" in line for line in lines)
    assert any("in the prediction" in line for line in lines)


def test_training_stops_at_a_loss_that_nothing_learns_from(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(HEADS)
    plugins = PluginManager(files=[str(tmp_path / "odd.py")])
    with pytest.raises(UserError, match=r"heads\.first: loss '.*' depends on no parameter"):
        train(pipeline("heads.first={name: odd, at: constant}"), plugins, tmp_path / "run", accelerator="cpu")
    with pytest.raises(UserError, match="all losses of head 'first' have the weight 0"):
        train(pipeline("train.balancer={name: fixed, weights: {first: 0}}"), plugins, tmp_path / "b", accelerator="cpu")
