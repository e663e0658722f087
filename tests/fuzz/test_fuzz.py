"""The fuzzer finds what it is for, and a few inputs of every surface show no bug."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.fuzz import harness
from tests.fuzz.harness import WrongResult
from tests.fuzz.mutations import Raw, change_tree, dump
from visionkit.errors import UserError


class Reader:
    """A surface with one way to go wrong."""

    def __init__(self, run) -> None:
        self.run = run


def raises(error: BaseException):
    def run(folder: Path) -> None:
        raise error

    return run


def chained(folder: Path) -> None:
    try:
        raise MemoryError
    except MemoryError:
        raise UserError("cannot be decoded") from None


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (lambda folder: None, "accepted"),
        (raises(UserError("a.json: no list 'images'")), "refused"),
        (raises(UserError("a.json: no list\n'images'")), "refused"),  # which is escaped
        (raises(UserError("")), "message"),
        (raises(ValueError("no list")), "stack trace"),
        (raises(SystemExit(2)), "stack trace"),
        (raises(WrongResult("labels [7] of 3 classes")), "wrong result"),
        (raises(MemoryError()), "memory"),
        (chained, "memory"),
        (lambda folder: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
        (lambda folder: os._exit(1), "crash"),
    ],
)
def test_outcomes(run, kind: str, tmp_path: Path) -> None:
    outcome = harness.read(Reader(run), tmp_path)  # type: ignore[arg-type]
    assert outcome.kind == kind
    assert outcome.is_bug == (kind not in ("accepted", "refused"))


def test_hangs_and_memory_are_bugs() -> None:
    def hang() -> tuple[str, str]:
        while True:
            pass

    def grow() -> tuple[str, str]:
        return "accepted", str(np.ones(8_000_000).sum())

    assert harness.in_fork(hang, seconds=0.3).kind == "hang"
    assert harness.in_fork(grow).kind == "accepted"
    assert harness.in_fork(grow, memory=32 << 20).kind == "memory"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [(["--version"], "accepted"), (["pipelines", "no_such_pipeline"], "refused"), (["no-such-command"], "message")],
)
def test_outcomes_of_commands(arguments: list[str], kind: str, tmp_path: Path) -> None:
    assert harness.run_command(arguments, tmp_path).kind == kind


def test_changes_are_a_function_of_the_generator() -> None:
    trees = [[change_tree(Random(seed), {"a": [1, {"b": "c"}], "d": None}) for seed in range(200)] for _ in range(2)]
    assert [dump(tree) for tree in trees[0]] == [dump(tree) for tree in trees[1]]
    assert len({dump(tree) for tree in trees[0]}) > 50


def test_raw_values_are_written_as_they_are() -> None:
    assert dump({"a": [Raw("1e400"), "@"]}) == b'{"a": [1e400, "@"]}'


def test_no_surface_shows_a_bug(repository: Path, tmp_path: Path) -> None:
    """In a process of its own, which has one thread and so can fork."""
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "24", "--commands", "0", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(harness.SURFACES)
