"""Checkpoints: all that a run needs to go on as if nothing had happened; written whole or not at all."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from visionkit.config import Pipeline
from visionkit.errors import RunError
from visionkit.model.run import damaged, read_checkpoint
from visionkit.model.weights import is_dense
from visionkit.train.optim import learning_rate
from visionkit.types import LabelSet

PARTS = ("step", "model", "optimizers", "balancer", "average", "scaler", "rng")
"""What a checkpoint holds beside its pipeline."""

# What may differ between the run that saved and the one that resumes without changing what is computed.
FREE = {("evaluate",)} | {
    ("train", key) for key in ("workers", "checkpoint_every", "log_every", "tensorboard", "init", "steps")
}


def rng_state() -> dict[str, Any]:
    """The state of every generator that training draws from, in plain types."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global generator is what transforms use
    return {
        "torch": torch.get_rng_state(),
        # Of this process's own device only: each of the others belongs to another process.
        "cuda": torch.cuda.get_rng_state() if _uses_cuda() else None,
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Go on drawing where :func:`rng_state` was taken."""
    torch.set_rng_state(state["torch"].cpu())
    cuda = state["cuda"]
    if isinstance(cuda, list):  # earlier versions saved those of all devices
        cuda = cuda[torch.cuda.current_device()] if _uses_cuda() and len(cuda) > torch.cuda.current_device() else None
    if cuda is not None and _uses_cuda():
        torch.cuda.set_rng_state(cuda.cpu())
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    random.setstate((3, tuple(state["python"]), state["python_gauss"]))


def _uses_cuda() -> bool:
    """Whether this process runs on a CUDA device; to ask one that it doesn't use would take memory there."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside, then rename: a full disk or a killed process leaves the checkpoint before it intact.

    Raises:
        RunError: the disk is full or not writable; the message says that the old checkpoint still stands.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        # torch's archive writer reports a failed write as a RuntimeError of its own, with the OSError as its context.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]
        held = "; the checkpoint before it is intact" if path.exists() else ""
        raise RunError(f"cannot write checkpoint {path}: {reason}{held}") from None


def load_checkpoint(path: Path, pipeline: Pipeline) -> dict[str, Any]:
    """Read a checkpoint of this very pipeline.

    Raises:
        RunError: it is missing, damaged, or was saved by a pipeline that computes something else; the message names the
            first key that differs.
    """
    state = read_checkpoint(path)
    if missing := [key for key in PARTS if key not in state]:
        raise RunError(f"{path} is damaged: it has no '{missing[0]}'")
    if not isinstance(state["step"], int) or isinstance(state["step"], bool) or state["step"] < 0:
        raise RunError(f"{path} is damaged: 'step' is {state['step']!r}, not a number of steps")
    now = yaml.safe_load(pipeline.to_yaml())
    with damaged(path):
        then = yaml.safe_load(state["pipeline"])
        if not isinstance(then, dict):
            raise RunError(f"{path} is damaged: 'pipeline' is not a pipeline")
    if difference := first_difference(then, now):
        key, before, after = difference
        raise RunError(
            f"{path} was saved by another pipeline: {'.'.join(map(str, key))} was {before!r} and is now {after!r}"
        )
    return state


def check_continues(state: dict[str, Any], labels: Mapping[str, LabelSet], pipeline: Pipeline, path: Path) -> None:
    """Check that a run would go on from a checkpoint as it began.

    Args:
        state: the checkpoint.
        labels: the label set of every head.
        pipeline: what is to be trained.
        path: the checkpoint's file.

    Raises:
        RunError: the classes or keypoints of a head are others, or in another order; the checkpoint has more steps than
            the pipeline; or the learning rate of the steps that were taken would have been another.
    """
    with damaged(path):
        saved = {head: LabelSet.from_dict(then) for head, then in state["labels"].items()}
        before = replace(pipeline.train, steps=int(yaml.safe_load(state["pipeline"])["train"]["steps"]))
    if saved.keys() != labels.keys():
        raise RunError(f"{path} is damaged: it has labels of {', '.join(saved)}, not of {', '.join(labels)}")
    for head, label_set in saved.items():
        if difference := changed_label(head, label_set, labels[head]):
            raise RunError(f"{path} was saved with other labels: {difference}; restore the annotations that the run "
                           "began with, or start a new one")  # fmt: skip
    train, done = pipeline.train, state["step"]
    if done > train.steps:
        raise RunError(f"{path} was saved after {done} steps, and train.steps is {train.steps}; set at least as many")
    for step in range(done if train.schedule.name in ("cosine", "poly") and before.steps != train.steps else 0):
        then, now = learning_rate(before, step), learning_rate(train, step)
        if then != now:
            raise RunError(
                f"{path} was saved by a run of {before.steps} train.steps with the schedule '{train.schedule.name}'; "
                f"with {train.steps}, the learning rate of step {step} would have been {now:.3g}, not {then:.3g}; "
                "keep train.steps, or start a new run with train.init"
            )


def changed_label(head: str, then: LabelSet, now: LabelSet) -> str:
    """The first class or keypoint of a head that has another meaning, in words; empty if there is none."""
    for what, old, new in (("class", then.names, now.names), ("keypoint", then.keypoints, now.keypoints)):
        for i, (one, other) in enumerate(zip_longest(old, new)):
            if one != other:
                was, now_is = ("missing" if name is None else f"'{name}'" for name in (one, other))
                return f"{what} {i} of head '{head}' was {was} and is now {now_is}"
    for name, one, other in zip(then.names, then.things, now.things, strict=True):
        if one != other:
            kinds = ("a thing", "stuff")
            return f"class '{name}' of head '{head}' was {kinds[not one]} and is now {kinds[not other]}"
    return ""


def load_optimizer(optimizer: Any, state: Any) -> None:
    """Restore an optimizer whose settings are those of the pipeline, as ever.

    Raises:
        ValueError: the state is not that of such parameters.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    kept = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for group, own in zip(optimizer.param_groups, settings):
        group.update(own)
        for parameter in group["params"]:
            values = optimizer.state.get(parameter) or {}  # empty for a parameter that never had a gradient
            if values and values.keys() != kept:
                raise ValueError(
                    f"an optimizer holds {', '.join(map(repr, values))} of a parameter, not {', '.join(sorted(kept))}"
                )
            for name, value in values.items():
                shape = () if name == "step" else parameter.shape
                fits = isinstance(value, torch.Tensor) and value.shape == shape
                if not fits or not is_dense(value) or not value.is_floating_point():
                    raise ValueError(f"'{name}' of an optimizer is not the state of a parameter")


def first_difference(then: Any, now: Any, at: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any, Any] | None:
    """The first key at which two pipelines would compute different things, with both values."""
    if at in FREE:
        return None
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(k for k in now if k not in then)]:
            if found := first_difference(then.get(key), now.get(key), (*at, str(key))):
                return found
        return None
    return None if then == now else (at, then, now)
