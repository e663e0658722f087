"""Settings of a pipeline that contradict one another or that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from visionkit.config.pipeline import Path, Pipeline
from visionkit.errors import PipelineError
from visionkit.numbers import unread


def setting_problems(pipeline: Pipeline) -> list[PipelineError]:
    """What is wrong with the settings of training and evaluation, key by key.

    A key that nothing reads is a problem only where it is written down: defaults are always there.
    """
    return [pipeline.fail(at, message) for at, message in (*_idle(pipeline), *_contradictions(pipeline))]


def _idle(pipeline: Pipeline) -> Iterator[tuple[Path, str]]:
    for at, section in _sections(pipeline):
        if at == ("train", "warmup") and (*at, "steps") in pipeline.marks:
            continue  # steps: 0 switches the warm-up off, whatever else is written there
        values = vars(section)
        given = [k for k, v in values.items() if (*at, k) in pipeline.marks and v is not None and v is not False]
        for key, condition in unread(type(section), given, values).items():
            yield (*at, key), f"{'.'.join((*map(str, at), key))} has no effect: it is read only if {condition}"


def _sections(pipeline: Pipeline) -> Iterator[tuple[Path, Any]]:
    train = pipeline.train
    yield ("train", "optimizer"), train.optimizer
    yield ("train", "schedule"), train.schedule
    yield ("train", "warmup"), train.warmup
    for group, sections in (("phases", train.phases), ("parts", train.parts)):
        for name, section in sections.items():
            yield ("train", group, name), section
    for name, refine in pipeline.evaluate.refine.items():
        yield ("evaluate", "refine", name), refine


def _contradictions(pipeline: Pipeline) -> Iterator[tuple[Path, str]]:
    train = pipeline.train
    schedule, warmup = train.schedule, train.warmup
    if schedule.name == "multistep" and not schedule.milestones:
        yield (
            ("train", "schedule"),
            "train.schedule: multistep needs 'milestones', steps at which the rate falls",
        )
    if schedule.name == "multistep":
        for i, milestone in enumerate(schedule.milestones):
            if milestone >= train.steps:
                yield (
                    ("train", "schedule", "milestones", i),
                    f"train.schedule.milestones: step {milestone} is not reached: train.steps is {train.steps}",
                )
    if warmup.steps > train.steps:
        yield (
            ("train", "warmup", "steps"),
            f"train.warmup.steps: a warm-up of {warmup.steps} steps is longer than the run of {train.steps} steps",
        )
    for name, source in pipeline.sources.items():
        for split, keys in (("train", ("weight", "transforms")), ("val", ("eval_transforms",))):
            for key in keys:
                if getattr(source, split) is None and ("sources", name, key) in pipeline.marks:
                    yield ("sources", name, key), f"'{key}' of source '{name}' has no effect: it has no '{split}'"
