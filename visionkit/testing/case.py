"""A head on a small backbone and neck, with the heads that it reads and real samples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from visionkit.data import Sample, Source
from visionkit.errors import PluginError, UserError
from visionkit.model import Head, MultiTaskModel
from visionkit.plugins import PluginManager
from visionkit.testing.data import ToyData
from visionkit.testing.report import NotApplicable, seeded
from visionkit.testing.samples import (
    choose_samples,
    find_source,
    label_table,
    mixed_batch,
    nothing_of,
    relabelled,
    required,
    resized,
)
from visionkit.testing.toys import PYRAMID, WIDTHS, SpecOfAll, ToyBackbone, ToyNeck
from visionkit.types import Batch, Features, FeatureSpec, LabelSet, MixedBatch, Prediction, Target

NAME = "checked"
"""What the head is called in the models that are built."""

SIDES = ((96, 80), (64, 96))
"""Height and width of the images of a batch, in turn: some are padded, none is square."""


@dataclass
class HeadCase:
    """What the checks of a head work on.

    Attributes:
        cls, args: the head and its keyword arguments.
        source: where the samples come from.
        plugins: where evaluators and other heads are looked up.
        labels: of the head.
        others: the heads that it reads, and those that these read, by name.
        other_args: keyword arguments of theirs, by name.
        reads: port name -> head name, for the checked head and the others.
        data: what sources and arguments may refer to; the folder is there for as long as the case is.
    """

    cls: type[Head]
    args: Mapping[str, Any]
    source: Source
    plugins: PluginManager
    labels: LabelSet
    others: Mapping[str, type[Head]] = field(default_factory=dict)
    reads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    other_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data: ToyData = field(default_factory=ToyData)

    @classmethod
    def make(
        cls,
        head: type[Head],
        args: Mapping[str, Any] | None = None,
        source: Source | None = None,
        labels: LabelSet | None = None,
        plugins: PluginManager | None = None,
        others: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> HeadCase:
        """A case; whatever is not given is found among what is registered.

        Raises:
            UserError: arguments are missing, no source offers the task, no head gives what a port needs.
        """
        data, plugins = ToyData(), plugins or PluginManager()
        args = data.args_of(head, args)
        if missing := [name for name in required(head, given=2) if name not in args]:
            raise UserError(f"{head.__name__} needs {', '.join(missing)}: give it with args= (or --set)")
        if not isinstance(task := getattr(head, "task", None), str):
            raise UserError(f"{head.__name__} has no task: it must name the targets that it learns from")
        source = source or find_source(task, plugins, data)
        if task not in source.tasks:
            raise UserError(f"{head.__name__} learns '{task}', for which {type(source).__name__} is not labelled "
                            f"(it is for: {', '.join(source.tasks)})")  # fmt: skip
        found: dict[str, type[Head]] = {}
        reads: dict[str, dict[str, str]] = {}
        _find_others(NAME, head, plugins, source, others or {}, found, reads)
        given = {name: data.args_of(other, (others or {}).get(name)) for name, other in found.items()}
        case = cls(head, args, source, plugins, labels or source.labels[task], found, reads, given, data)
        if labels is None and head.labels_from is not None:
            theirs = source.labels[found[reads[NAME][head.labels_from]].task]
            case.labels = dataclasses.replace(
                case.labels, names=theirs.names, ids=theirs.ids, things=theirs.things, colors=theirs.colors
            )
        return case

    @cached_property
    def spec(self) -> FeatureSpec:
        """Every level that there is, and those of other names that the heads ask for by default."""
        backbone = ToyBackbone()
        spec = SpecOfAll(backbone.spec | ToyNeck(backbone.spec).spec)
        for name, cls in {**self.others, NAME: self.cls}.items():
            args, labels = (self.args, self.labels) if name == NAME else (self.other_args[name], self.labels_of(name))
            with seeded(), contextlib.suppress(Exception):  # which the first check tells
                cls(spec, labels, **args)
        return spec | FeatureSpec(spec.added)

    @cached_property
    def samples(self) -> list[Sample]:
        """Four samples, those with the most objects first."""
        return choose_samples(self.source, self.cls.task, 4)

    def head(self, labels: LabelSet | None = None) -> Head:
        """One more head, with new parameters."""
        return self.cls(self.spec, labels or self.labels, **self.args)

    def model(self, names: Sequence[str] = (NAME,), *, seed: int = 0, labels: LabelSet | None = None) -> MultiTaskModel:
        """Backbone, neck, the heads that are read, and the head under each of these names; the same for a seed."""
        with seeded(seed):
            heads = {
                name: cls(self.spec, self.labels_of(name, labels), **self.other_args.get(name, {}))
                for name, cls in self.others.items()
            }
            heads |= {name: self.head(labels) for name in names}
            backbone = ToyBackbone()
            reads = {**self.reads, **{name: self.reads.get(NAME, {}) for name in names}}
            neck = ToyNeck(backbone.spec, more=[name for name in self.spec if name not in (*WIDTHS, *PYRAMID)])
            return MultiTaskModel(backbone, neck, heads, {n: reads.get(n, {}) for n in heads})

    def labels_of(self, other: str, labels: LabelSet | None = None) -> LabelSet:
        """The labels of a head that is read: its own of the source, or the names that the checked head is given."""
        own = self.source.labels[self.others[other].task]
        if labels is None and self.labels.names in (own.names, self.source.labels[self.cls.task].names):
            return own
        names = (labels or self.labels).names
        return dataclasses.replace(own, names=names, ids=(), things=(), colors=())

    def target(self, sample: Sample, labels: LabelSet | None = None) -> Target:
        """The target of a sample in the labels of the head."""
        table = label_table(self.source.labels[self.cls.task], labels or self.labels)
        return relabelled(sample.targets[self.cls.task], table)

    def empty(self, sample: Sample) -> Target:
        """Annotated, and nothing is there."""
        if type(sample.targets[self.cls.task]).relabel is Target.relabel:
            kind = type(sample.targets[self.cls.task]).__name__
            raise NotApplicable(f"{kind} has no labels to leave out, so nothing says how an empty one looks")
        return nothing_of(sample.targets[self.cls.task], self.source.labels[self.cls.task])

    def resized(self, sample: Sample, size: tuple[int, int]) -> Sample:
        """A sample for training at this size; at its own, where its targets cannot be resized."""
        sample = dataclasses.replace(sample, targets={self.cls.task: sample.targets[self.cls.task]})
        try:
            return resized(sample, size)
        except NotImplementedError:
            return sample

    def batch(
        self,
        count: int = 2,
        *,
        sides: Sequence[tuple[int, int]] = SIDES,
        of: int = 4,
        unlabelled: Sequence[int] = (),
        empty: Sequence[int] = (),
        names: Sequence[str] = (NAME,),
        labels: LabelSet | None = None,
    ) -> MixedBatch:
        """A batch for training, normalised; labelled for the heads of these names alone.

        Args:
            sides: height and width of the images, in turn.
            of: how many different samples there are among the images, in turn.
            unlabelled, empty: rows that are not labelled, and rows on which nothing is.
        """
        samples, targets = [], []
        for row in range(count):
            sample = self.resized(self.samples[row % of], sides[row % len(sides)])
            target: Target | None = None
            if row in empty:
                target = self.empty(sample)
            elif row not in unlabelled:
                target = self.target(sample, labels)
            samples.append(sample)
            targets.append(dict.fromkeys(names, target))
        return normalised(mixed_batch(samples, targets, names))

    def images(self, count: int = 2, *, sides: Sequence[tuple[int, int]] = SIDES) -> MixedBatch:
        """A batch for prediction: no targets."""
        samples = [
            resized(dataclasses.replace(self.samples[row % len(self.samples)], targets={}), sides[row % len(sides)])
            for row in range(count)
        ]
        return normalised(mixed_batch(samples, [{}] * count, []))

    def view(self, batch: MixedBatch, *, targets: bool) -> Batch:
        """What the head is shown of a batch that is labelled for it throughout."""
        return batch.view(NAME, range(len(batch)), targets=targets)


def normalised(batch: MixedBatch) -> MixedBatch:
    """By the statistics of the small backbone, as the training loop does it, in the plain memory format."""
    mean, std = (torch.tensor(values, device=batch.images.device) for values in (ToyBackbone.mean, ToyBackbone.std))
    return batch.normalised(mean, std, channels_last=False)


def outputs(model: MultiTaskModel, batch: MixedBatch, features: Features | None = None) -> dict[str, Any]:
    """The outputs of all heads on all rows, from these features or the model's own."""
    features = model.features(batch.images) if features is None else features
    return model.run_heads(model.branches(features), batch, dict.fromkeys(model.order, range(len(batch))))


def losses(model: MultiTaskModel, batch: MixedBatch, name: str = NAME) -> dict[str, Tensor]:
    """Losses of a head, drawn with the same random numbers every time."""
    if name not in model.learning:
        raise NotApplicable("it has no losses: it only joins what others have learnt")
    with seeded():
        return model.losses(batch)[0][name]


def total(named: Mapping[str, Tensor]) -> Tensor:
    """All losses of a head, added up."""
    if not named:
        raise NotApplicable("it has no losses: it only joins what others have learnt")
    return torch.stack([value.float() for value in named.values()]).sum()


def number(value: Tensor) -> float:
    """A scalar as a number, to compare or to show."""
    return value.detach().item()


@torch.no_grad()
def predictions(model: MultiTaskModel, batch: MixedBatch, name: str = NAME) -> list[Prediction]:
    """What a head says of every image, with the same random numbers every time."""
    with seeded():
        return list(model.predict(batch, [name])[name])


def _find_others(
    name: str,
    head: type[Head],
    plugins: PluginManager,
    source: Source,
    given: Mapping[str, Mapping[str, Any]],
    others: dict[str, type[Head]],
    reads: dict[str, dict[str, str]],
) -> None:
    """Heads that give what the ports of a head need: those that arguments are given for, else the simplest registered
    ones, and what these read in turn."""
    reads[name] = {}
    for port, wanted in head.needs.items():
        fitting: list[tuple[bool, int, str, type[Head]]] = []
        for listed in plugins.components("head"):
            other = listed.component.name
            try:
                made = plugins.load("head", other)
            except PluginError:
                continue
            if not (isinstance(made, type) and issubclass(made, Head)) or made is head:
                continue
            if getattr(made, "task", None) not in source.tasks or not isinstance(made.output, type):
                continue
            args = {**made.check_args, **given.get(other, {})}
            if issubclass(made.output, wanted) and not set(required(made, given=2)) - set(args):
                fitting.append((other not in given, len(made.needs), other, made))
        if not fitting:
            raise UserError(f"no registered head gives the {wanted.__name__} that {head.__name__} reads on its port "
                            f"'{port}', learns a task of {type(source).__name__} and needs no arguments")  # fmt: skip
        _, _, other, found = min(fitting, key=lambda item: item[:3])
        reads[name][port] = other
        if other not in others:
            others[other] = found
            _find_others(other, found, plugins, source, given, others, reads)
