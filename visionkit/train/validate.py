"""A dry run of a pipeline: what training would do is done once, and everything that is wrong is reported."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from visionkit.config import Pipeline, argument_problems, build_component, setting_problems
from visionkit.data.base import Source
from visionkit.data.images import image_header
from visionkit.data.label_maps import LabelCounts, label_map_problems
from visionkit.data.loader import Feed, OnError, Skipped, train_loader
from visionkit.data.wiring import build_feeds, build_source, resolve_labels, untrained_heads
from visionkit.errors import DataError, PipelineError, UserError, one_line
from visionkit.evaluate.runner import evaluate_model
from visionkit.model.build import build_head, build_model, build_spec, placeholder_labels
from visionkit.model.graph import MultiTaskModel, Step
from visionkit.model.run import RunFolder
from visionkit.plugins import explain
from visionkit.train.loop import Run, start_processes, tensorboard_writer
from visionkit.train.optim import build_optimizers, freeze_parts, load_initial_weights, phases_of
from visionkit.train.progress import Averages, by_head
from visionkit.train.step import Training
from visionkit.types import ImageInfo, LabelSet, MixedBatch, SemanticTarget

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager

FEW = 2
"""Images of each source that are looked at, unless more are asked for."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried: ``what``, whether it went well, and what there is to say of it."""

    what: str
    ok: bool
    detail: str


def validate(
    pipeline: Pipeline,
    plugins: PluginManager,
    *,
    all_images: bool = False,
    full_batch: bool = False,
    problems: Sequence[PipelineError] = (),
) -> Iterator[Check]:
    """Try everything that a training run would do, once; each check is yielded as soon as it is done.

    What does not depend on a failed check is tried all the same. No file is left behind.

    Args:
        pipeline: what to try.
        plugins: where its components are looked up.
        all_images: decode every image with its targets, not just a few of each source.
        full_batch: take a training step with all the images that a step of the run has, and evaluate a whole batch.
        problems: what is already known to be wrong with the pipeline, which holds the rest.
    """
    yield from _DryRun(pipeline, plugins, full_batch, problems).checks(all_images)


class _DryRun:
    """What has been built so far, and what has been reported."""

    def __init__(
        self, pipeline: Pipeline, plugins: PluginManager, full_batch: bool, problems: Sequence[PipelineError]
    ) -> None:
        self.pipeline, self.plugins, self.full_batch = pipeline, plugins, full_batch
        found = [*problems, *setting_problems(pipeline), *argument_problems(pipeline, plugins)]
        self.problems = list(dict.fromkeys(map(str, found)))
        self.incomplete = bool(problems)
        self.unread = False
        self.sources: dict[str, dict[str, Source]] = {"train": {}, "val": {}}
        self.labels: dict[str, LabelSet] = {}
        self.training: Training | None = None
        self.feeds: list[Feed] = []

    def checks(self, all_images: bool) -> Iterator[Check]:
        for problem in self.problems:
            yield Check("arguments", False, problem)
        if not self.problems:
            yield Check("arguments", True, "every key is known and well typed")
        if self.pipeline.train.tensorboard:
            yield from self.tried("TensorBoard", lambda: tensorboard_writer(self.pipeline) and "it is installed")
        for split in ("train", "val"):
            yield from self.tried(f"annotations ({split})", partial(self.read_annotations, split))  # type: ignore[arg-type]
        yield from self.tried("model", self.build)
        if self.training is not None:
            yield from self.tried("train sources", self.wire)
            for feed in self.feeds:
                yield from self.tried(f"one batch of '{feed.name}'", partial(self.step, [feed]))
            if len(self.feeds) > 1 or self.full_batch:
                what = "one full batch" if self.full_batch else "one batch of all sources"
                yield from self.tried(what, partial(self.step, self.feeds, full=self.full_batch))
            for name, source in self.sources["val"].items():
                yield from self.tried(f"evaluation on '{name}'", partial(self.evaluate, name, source))
        if all_images:
            for split, sources in self.sources.items():
                for name, source in sources.items():
                    work = partial(_decode_all, name, source, self.pipeline.train.on_error)
                    yield from self.tried(f"every image of '{name}' ({split})", work)

    def tried(self, what: str, work: Callable[[], str | None]) -> Iterator[Check]:
        """The check of what ``work`` does; one for each of its problems that has not been reported."""
        try:
            detail = work()
        except (Exception, SystemExit) as error:
            for problem in _messages(error):
                if problem not in self.problems:
                    self.problems.append(problem)
                    yield Check(what, False, problem)
        else:
            if detail is not None:
                yield Check(what, True, detail)

    def read_annotations(self, split: Literal["train", "val"]) -> str:
        """Build the sources of a split, each by itself."""
        attempts = _Attempts()
        parts: list[str] = []
        for name, config in self.pipeline.sources.items():
            with attempts:
                if config.split(split) is not None:
                    source = build_source(self.pipeline, self.plugins, name, split)
                    parts += _about(name, source)
                    self.sources[split][name] = source
        self.unread = self.unread or bool(attempts.errors)
        attempts.finish()
        if split == "train" and not parts and not self.incomplete:
            raise self.pipeline.fail(("sources",), "nothing to train on: no source has a `train` split")
        return "\n".join(parts) or "no source has this split"

    def build(self) -> str | None:
        """Build the model, and all that a training step needs."""
        pipeline, plugins = self.pipeline, self.plugins
        if self.incomplete:
            self.look_at_parts()
            return None
        torch.manual_seed(pipeline.train.seed)
        try:
            self.labels = resolve_labels(pipeline, plugins, self.sources["train"], self.sources["val"])
            model = build_model(pipeline, plugins, self.labels)
        except Exception:
            self.look_at_parts()
            if not self.labels and self.unread:
                return None  # there are no labels because there are no data, which has been reported
            raise
        fabric = start_processes(pipeline, plugins, "auto", 1, 1)
        try:
            self.training = Training(Run(RunFolder(Path()), pipeline, model, self.labels), plugins, fabric)
        except Exception:
            self.look_at_training(model)
            raise
        count = sum(p.numel() for p in model.parameters())
        classes = ", ".join(f"{name} ({len(self.labels[name])} classes)" for name in model.order)
        notes = [f"{name}: {problem}" for name in model.order for problem in model.head(name).problems()]
        return "\n".join([f"{count:,} parameters; heads: {classes}", *notes])

    def look_at_parts(self) -> None:
        """Build backbone, neck and heads one by one, to find everything that is wrong with them."""
        pipeline, plugins = self.pipeline, self.plugins
        if any((part,) in pipeline.marks and getattr(pipeline, part) is None for part in ("backbone", "neck")):
            return  # it is so wrong that nothing can be said of the others
        attempts = _Attempts()
        with attempts:
            spec = build_spec(pipeline, plugins)
        for name in () if attempts.errors else pipeline.heads:
            with attempts:
                labels = [self.labels] if self.labels else self.made_up_labels(name)
                _first_that_works([partial(build_head, pipeline, plugins, name, spec, some[name]) for some in labels])
        attempts.finish()

    def made_up_labels(self, head: str) -> list[dict[str, LabelSet]]:
        """Labels for heads whose data cannot be read; weights of classes, say, tell how many there may be."""
        lengths = [80, *_lengths(self.pipeline.heads[head].args)]
        return [placeholder_labels(self.pipeline, self.plugins, classes=length) for length in lengths if length]

    def look_at_training(self, model: MultiTaskModel) -> None:
        """Prepare training bit by bit, to find everything that is wrong with it."""
        pipeline, attempts = self.pipeline, _Attempts()
        with attempts:
            load_initial_weights(model, pipeline)
        with attempts:
            freeze_parts(model, pipeline)
        balancer = nn.Module()
        with attempts:
            balancer = build_component(self.plugins, "balancer", pipeline.train.balancer, pipeline, model.loss_names())
        with attempts:
            build_optimizers(model, phases_of(model), pipeline, balancer)
        attempts.finish()

    def wire(self) -> str:
        """Say which source feeds which head, source by source."""
        attempts = _Attempts()
        for name, source in self.sources["train"].items():
            with attempts:
                self.feeds += build_feeds(self.pipeline, self.plugins, {name: source}, self.labels, training=True)
        attempts.finish()
        without = untrained_heads(self.pipeline, self.plugins, self.feeds)
        text = "; ".join(f"{feed.name} feeds {', '.join(feed.heads)}" for feed in self.feeds)
        return text + (f"; NOT TRAINED by any source: {', '.join(without)}" if without else "")

    def step(self, feeds: Sequence[Feed], *, full: bool = False) -> str:
        """Take a training step on a few images of each source, or on as many as a step of the run has."""
        train, skipped, averages = self.pipeline.train, Skipped(), Averages()
        size, count = train.batch_size, train.accumulate
        if not full:
            feeds = [dataclasses.replace(feed, weight=1.0) for feed in feeds]
            size = min(train.batch_size, FEW * len(feeds))
            count = FEW * len(feeds) // size
        batches = list(
            train_loader(feeds, batch_size=size, seed=train.seed, steps=count, workers=train.workers if full else 0,
                         on_error=train.on_error, size_divisor=train.size_divisor, skipped=skipped)
        )  # fmt: skip
        assert self.training is not None
        # Few images may be one batch only; accumulation needs two.
        steps = [[batch] for batch in batches] if train.accumulate == 1 else [batches if count > 1 else batches * 2]
        try:
            for step in steps:
                self.training.step(step, averages)
        except Exception:
            self.look_at_losses(self.training, batches)
            raise
        losses = by_head(averages.read()[0])
        images = sum(len(batch) for batch in batches)
        sizes = ", ".join(dict.fromkeys(f"{b.images.shape[2]}x{b.images.shape[3]}" for b in batches))
        shown = ", ".join(
            f"{head} {value:.3f}" for head, value in losses.items() if any(b.labelled(head) for b in batches)
        )
        info = [one for batch in batches for one in batch.info]
        return "\n".join([f"{images} images of {sizes}; losses: {shown}{_rotated(info)}", *skipped.summary()])

    def look_at_losses(self, training: Training, batches: Sequence[MixedBatch]) -> None:
        """Compute the losses of the heads one by one, to find every head that fails."""
        model = training.run.model
        heads: dict[str, list[str]] = {}  # by what is wrong with them
        for batch in batches:
            ready = batch.to(training.fabric.device).normalised(model.mean, model.std)
            for name in [name for name in model.learning if batch.labelled(name)]:
                targets = {head: own if head == name else [None] * len(batch) for head, own in batch.targets.items()}
                try:
                    losses = training.module(Step(dataclasses.replace(ready, targets=targets)))[name]
                    wrong = [f"loss '{key}' is {x.item()}" for key, x in losses.items() if not torch.isfinite(x)]
                except Exception as error:
                    wrong = _messages(error)
                for text in wrong:
                    heads.setdefault(text, []).append(name)
        if heads:
            raise _SeveralErrors(
                [
                    self.pipeline.fail(
                        ("heads", names[0]), f"head {', '.join(map(repr, dict.fromkeys(names)))}: {text}"
                    )
                    for text, names in heads.items()
                ]
            )

    def evaluate(self, name: str, source: Source) -> str:
        """Evaluate on a few images of a source: predictions, metrics, files and visualizations."""
        config, pipeline = self.pipeline.evaluate, self.pipeline
        if self.full_batch:
            config = dataclasses.replace(config, max_images=config.batch_size)
        else:
            few = min(config.batch_size, FEW)
            config = dataclasses.replace(config, max_images=FEW, batch_size=few, pictures=min(config.pictures, FEW))
            pipeline = pipeline.with_train(workers=0)
        pipeline = dataclasses.replace(pipeline, evaluate=config)
        try:
            metrics = self.measure(pipeline, name, source)
        except Exception:
            attempts = _Attempts()
            for feed in build_feeds(pipeline, self.plugins, {name: source}, self.labels, training=False):
                for head in feed.heads:
                    alone = {name: dataclasses.replace(pipeline.sources[name], heads=[head])}
                    with attempts:
                        self.measure(dataclasses.replace(pipeline, sources=pipeline.sources | alone), name, source)
            attempts.finish()
            raise
        return f"{len(metrics)} metrics: {', '.join(sorted({key.split('/')[1] for key in metrics}))}"

    def measure(self, pipeline: Pipeline, name: str, source: Source) -> dict[str, float]:
        """Evaluate as training does, and delete the files."""
        assert self.training is not None
        model, fabric = self.training.run.model, self.training.fabric
        with tempfile.TemporaryDirectory() as folder, self.training.averaged(), fabric.autocast():
            return evaluate_model(model, pipeline, self.plugins, self.labels, {name: source},
                                  device=fabric.device, out=Path(folder))  # fmt: skip


class _SeveralErrors(Exception):
    def __init__(self, errors: Sequence[BaseException]) -> None:
        super().__init__()
        self.errors = errors


class _Attempts:
    """A context that collects the exceptions of everything that is tried in it, one thing after the other."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception | SystemExit):
            self.errors.append(error)
        return isinstance(error, Exception | SystemExit)

    def finish(self) -> None:
        """Raise what was collected, if anything was."""
        if self.errors:
            raise _SeveralErrors(self.errors)


def _messages(error: BaseException) -> list[str]:
    """An exception in one line, or in one for each problem that it stands for."""
    if isinstance(error, _SeveralErrors):
        return list(dict.fromkeys(text for each in error.errors for text in _messages(each)))
    if isinstance(error, PipelineError):
        return [str(each) for each in error.every]
    return [str(error) if isinstance(error, UserError) else one_line(f"unexpected {explain(error)}")]


def _first_that_works(ways: Sequence[Callable[[], Any]]) -> None:
    """Do the first of these things that raises nothing; raise what the first of all raises otherwise."""
    attempts = _Attempts()
    for way in ways:
        with attempts:
            way()
            return
    raise attempts.errors[0]


def _lengths(value: Any) -> list[int]:
    """How long the lists and mappings in a value are."""
    if not isinstance(value, dict | list):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [len(value), *(length for each in inside for length in _lengths(each))]


def _about(name: str, source: Source) -> list[str]:
    """What there is to say of a source."""
    parts = [f"{name}: {len(source)} images, {', '.join(sorted(source.tasks))}"]
    parts += [f"{name}: {problem}" for problem in (*source.problems(), *label_map_problems(name, source))]
    for labels in (own for task, own in source.labels.items() if task == "keypoints" and own.keypoints):
        pairs = ", ".join(f"{labels.keypoints[i]} - {labels.keypoints[j]}" for i, j in labels.swaps)
        parts.append(f"{name}: {len(labels.keypoints)} keypoints; flipping an image swaps: {pairs or 'none'}")
    return parts


def _decode_all(name: str, source: Source, on_error: OnError) -> str:
    skipped = Skipped()
    broken: list[str] = []
    info = []
    counts = LabelCounts(source.labels.get("semantic", LabelSet(())))
    for index in range(len(source)):
        try:
            sample = source.load(index, source.tasks)
        except DataError as error:
            if on_error == "skip":
                skipped.add(name, index, str(error))
            else:
                broken.append(str(error))
            continue
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"unexpected {explain(error)}"
            broken.append(f"{source.describe(index)}: {text}")
            continue
        info.append(sample.info)
        if isinstance(target := sample.targets.get("semantic"), SemanticTarget):
            counts.add(target.labels.numpy())
    if broken:
        more = f" (and {len(broken) - 3} more)" if len(broken) > 3 else ""
        raise UserError("; ".join(broken[:3]) + more)
    if not info:
        raise UserError("; ".join(skipped.summary()))
    detail = f"{len(info)} images decoded{_rotated(info)}"
    return "\n".join([detail, *skipped.summary(), *counts.lines(counts.maps)])


def _rotated(info: Sequence[ImageInfo]) -> str:
    """How many of these images have an EXIF orientation, which annotations must have taken into account."""
    count = 0
    for path in {image.path for image in info if image.path}:
        try:
            count += image_header(path).orientation > 1
        except UserError:  # not an image file: a source may make images of anything
            continue
    text = f"; {count} of them rotated by their EXIF orientation (annotations must lie on the rotated image)"
    return text if count else ""
