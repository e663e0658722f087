"""Real samples to check with: from a source that is given, or from the first registered one that offers the task."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from visionkit.data import Sample, Source
from visionkit.data.loader import collate
from visionkit.data.transforms import Resize
from visionkit.errors import UserError
from visionkit.plugins import PluginManager
from visionkit.testing.data import ToyData
from visionkit.types import InstanceTarget, LabelSet, MixedBatch, Target

LOOKED_AT = 16
"""Images of a source among which those with the most objects are chosen."""


def sources(plugins: PluginManager, data: ToyData) -> Iterator[Source]:
    """Every registered source that can be built without arguments, or with its ``check_args``.

    Sources that are made from another source come last: their labels are not those of the scenes.
    """
    found = []
    for listed in plugins.components("source"):
        with contextlib.suppress(UserError, ValueError, TypeError):
            made = plugins.load("source", listed.component.name)
            args = data.args_of(made)
            if not set(required(made)) - set(args):
                found.append(("source" in inspect.signature(made).parameters, made, args))
    for _, made, args in sorted(found, key=lambda item: item[0]):
        try:
            source = made(**args)
        except Exception:  # the data of a source that somebody has installed may not be there
            continue
        yield source


def find_source(task: str, plugins: PluginManager, data: ToyData) -> Source:
    """The first of :func:`sources` that offers the task.

    Raises:
        UserError: there is none.
    """
    for source in sources(plugins, data):
        if task in source.tasks:
            return source
    raise UserError(f"no source that needs no arguments offers the task '{task}': give one with source= (or --source), "
                    "or register one whose arguments all have defaults or are in its check_args")  # fmt: skip


def required(made: object, given: int = 0) -> list[str]:
    """Names of the arguments without a default, after the first so many."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in inspect.signature(made).parameters.values() if p.kind not in kinds]  # type: ignore[arg-type]
    return [p.name for p in parameters[given:] if p.default is p.empty]


def choose_samples(source: Source, task: str | None, count: int) -> list[Sample]:
    """The samples with the most objects for a task, among the first of the source."""
    samples = [source.load(index, source.tasks) for index in range(min(len(source), LOOKED_AT))]
    samples.sort(key=lambda sample: -objects_in(sample.targets.get(task or ""), task))
    return (samples * count)[:count] if len(samples) < count else samples[:count]


def objects_in(target: Target | None, task: str | None) -> int:
    """How much there is to learn from a target; 1 where nothing can be counted."""
    if target is None:
        return -1
    if isinstance(target, InstanceTarget):
        objects = ~target.crowd
        if task == "keypoints" and target.keypoints is not None:
            objects &= (target.keypoints[..., 2] > 0).any(1)
        return int(objects.sum())
    return 1


def label_table(theirs: LabelSet, ours: LabelSet) -> Tensor | None:
    """Label of the source -> label of the head, by name, or -1; ``None`` where they are the same."""
    table = [ours.names.index(name) if name in ours.names else -1 for name in theirs.names]
    return None if table == list(range(len(ours))) else torch.tensor(table)


def relabelled(target: Target, table: Tensor | None) -> Target:
    return target if table is None else target.relabel(table)


def nothing_of(target: Target, labels: LabelSet) -> Target:
    """The target of an image on which none of the classes is to be seen."""
    return target.relabel(torch.full((len(labels),), -1))


def resized(sample: Sample, size: tuple[int, int], *, targets: bool = True) -> Sample:
    """The sample at another size; ``targets=False`` leaves its targets as they are, as in evaluation."""
    if targets:
        return Resize(size=size)(sample)
    return replace(Resize(size=size)(replace(sample, targets={})), targets=sample.targets)


def mixed_batch(
    samples: Sequence[Sample], targets: Sequence[Mapping[str, Target | None]], heads: Collection[str]
) -> MixedBatch:
    """Samples as a batch, as the loader makes them; every image has an id of its own."""
    named = [replace(s, info=replace(s.info, id=f"{s.info.id}-{row}")) for row, s in enumerate(samples)]
    return collate(named, list(targets), list(heads))
