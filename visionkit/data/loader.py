"""From sources to batches: mixing, worker processes, collation.

Nothing here remembers anything between batches. What batch ``k`` holds follows from the seed and ``k`` alone, whatever
the number of workers, so that a run that was killed goes on exactly where it stood.
"""

from __future__ import annotations

import logging
import random
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visionkit.data.base import Sample, Source, Transform
from visionkit.data.geometry import pad_target
from visionkit.data.transforms import apply_transforms, as_transform
from visionkit.data.workers import in_workers
from visionkit.errors import DataError, UserError
from visionkit.plugins import explain
from visionkit.types import MixedBatch, Target
from visionkit.types.processes import gather_objects

OnError = Literal["fail", "skip"]

log = logging.getLogger("visionkit.data")

_NAMED = 5  # skipped images of a source that are logged one by one


@dataclass
class Feed:
    """A source, and the heads that learn from it.

    Attributes:
        name: of the source in the pipeline.
        source: where samples come from.
        heads: by head name, the task whose targets it is given, and the table that maps the source's labels onto the
            head's (-1 drops one; ``None``: they are the same).
        weight: how often it is drawn from, relative to the other feeds.
        transforms: applied to every sample; transforms of torchvision (v2) are wrapped.
    """

    name: str
    source: Source
    heads: Mapping[str, tuple[str, Tensor | None]]
    weight: float = 1.0
    transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        self.transforms = tuple(as_transform(t) for t in self.transforms)
        if not self.weight > 0:
            raise DataError(f"source '{self.name}' has the weight {self.weight}; it must be above 0")
        if len(self.source) == 0:
            raise DataError(f"source '{self.name}' has no images")
        for head, (task, _) in self.heads.items():
            if task not in self.source.tasks:
                raise DataError(f"head '{head}' learns '{task}', for which source '{self.name}' is not labelled "
                                f"(it is for: {', '.join(self.source.tasks)})")  # fmt: skip

    def tasks(self, heads: Sequence[str] | None = None) -> list[str]:
        """The tasks whose targets its heads (or just these) are given."""
        return sorted({task for head, (task, _) in self.heads.items() if heads is None or head in heads})


@dataclass
class Skipped:
    """The images that ``on_error: skip`` left out, each once, however often it was tried.

    Attributes:
        reasons: by source and image (index in the source), why.
    """

    reasons: dict[str, dict[int, str]] = field(default_factory=dict)

    def add(self, source: str, index: int, reason: str) -> None:
        """Count an image; the first few of each source are logged."""
        known = self.reasons.setdefault(source, {})
        if index in known:
            return
        known[index] = reason
        if len(known) <= _NAMED:
            log.warning("skipped: %s", reason)
        if len(known) == _NAMED:
            log.warning("source '%s': further skipped images are counted, and summed up at the end", source)

    def gathered(self, world_size: int) -> Skipped:
        """What all processes of a distributed run have skipped."""
        if world_size == 1:
            return self
        parts = gather_objects(self.reasons)
        sources = dict.fromkeys(source for part in parts for source in part)
        return Skipped(
            {source: {k: v for part in parts for k, v in part.get(source, {}).items()} for source in sources}
        )

    def summary(self) -> list[str]:
        """A line for each source of which images were skipped: how many, and why."""
        lines = []
        for source, reasons in self.reasons.items():
            # Messages begin with the file and differ in numbers; what is left is the reason.
            kinds = {reason: re.sub(r"\d+", "#", reason.partition(": ")[2]) for reason in reasons.values()}
            first = {kind: reason for reason, kind in reversed(kinds.items())}
            counts = Counter(kinds[reason] for reason in reasons.values()).most_common()
            shown = [f"{count:,} like '{first[kind]}'" if count > 1 else first[kind] for kind, count in counts[:3]]
            more = [f"{sum(count for _, count in counts[3:]):,} for other reasons"] if len(counts) > 3 else []
            images = f"{len(reasons):,} image{'s' if len(reasons) > 1 else ''}"
            lines.append(f"source '{source}': skipped {images} (on_error: skip): {'; '.join(shown + more)}")
        return lines


def train_loader(
    feeds: Sequence[Feed],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    on_error: OnError = "fail",
    size_divisor: int = 32,
    skipped: Skipped | None = None,
) -> Iterator[MixedBatch]:
    """Shuffled batches that mix the feeds by weight, without end or until step ``steps``.

    Each feed is an endless stream that shows every image once before any a second time; the streams are interleaved as
    evenly as their weights allow. In a distributed run each process takes its own part of a global batch of
    ``batch_size * world_size`` samples.

    Args:
        batch_size: samples a process and step.
        start_step: the first step; a resumed run sees what it would have seen.
        workers: worker processes; 0 loads in this one, and leaves its random generators as they were.
        on_error: ``"skip"`` takes the next image in place of a broken one; ``"fail"`` raises.
        skipped: filled with what was skipped; ``None``: a summary is logged at the end.

    Raises:
        DataError: an image or annotation is wrong (and ``on_error`` is ``"fail"``), or none of a source can be read.
        UserError: a worker process is killed or cannot be started, or a source or transform raises anything else.
    """
    if not feeds:
        raise DataError("there is no source to train on")
    names = list(dict.fromkeys(head for feed in feeds for head in feed.heads))
    batches = _TrainBatches(feeds, batch_size, seed, start_step, steps, rank, world_size)
    return _batches(_Loading(feeds, names, None, seed, on_error, size_divisor), batches, workers, skipped)


def eval_loader(
    feed: Feed,
    *,
    batch_size: int,
    heads_with_targets: Sequence[str] = (),
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    max_images: int | None = None,
    on_error: OnError = "fail",
    size_divisor: int = 32,
    skipped: Skipped | None = None,
) -> Iterator[MixedBatch]:
    """The images of one feed in order, each once, this process its own part.

    Transforms change the image only: targets, for the heads named, stay in original coordinates.

    Args:
        max_images: only the first so many.
        on_error: ``"skip"`` leaves a broken image out; ``"fail"`` raises.
        skipped: filled with what was skipped; ``None``: a summary is logged at the end.

    Raises:
        DataError, UserError: as for :func:`train_loader`.
    """
    total = len(feed.source) if max_images is None else min(max_images, len(feed.source))
    mine = range(rank, total, world_size)
    places = [[_Place(index, 0, index) for index in mine[i : i + batch_size]] for i in range(0, len(mine), batch_size)]
    heads = [head for head in feed.heads if head in heads_with_targets]
    loading = _Loading([feed], heads, heads, 0, on_error, size_divisor)
    # Of several processes, one must not stop while the others go on.
    return _batches(loading, places, workers, skipped, must_have_one=world_size == 1)


def readable(source: Source, tasks: Collection[str], on_error: OnError, stop: int) -> Iterator[Sample]:
    """The first samples of a source, up to the ``stop``-th, without those that an :func:`eval_loader` with the same
    ``on_error`` leaves out."""
    for index in range(min(stop, len(source))):
        try:
            yield source.load(index, tasks)
        except DataError:
            if on_error == "fail":
                raise


_Skip = tuple[str, int, str]
"""A skipped image: the name of its feed, its index in the source, and why."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A sample of the run: its number in the whole run, its feed, its index in the source."""

    number: int
    feed: int
    index: int


@dataclass
class _TrainBatches:
    """The places of every batch of one process, as a function of the step."""

    feeds: Sequence[Feed]
    batch_size: int
    seed: int
    start: int
    stop: int | None
    rank: int
    world_size: int

    def __iter__(self) -> Iterator[list[_Place]]:
        step = self.start
        while self.stop is None or step < self.stop:
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self._place(number) for number in range(first, first + self.batch_size)]
            step += 1

    def _place(self, number: int) -> _Place:
        feed, turn = which_feed(number, tuple(feed.weight for feed in self.feeds), self.seed)
        size = len(self.feeds[feed].source)
        order = _order(self.seed, self.feeds[feed].name, turn // size, size)
        return _Place(number, feed, int(order[turn % size]))


def which_feed(number: int, weights: Sequence[float], seed: int) -> tuple[int, int]:
    """The feed that sample ``number`` of a run comes from, and how many samples that feed gave before it.

    The first feed takes every sample at which ``floor(n w + phase)`` moves on, ``w`` being its share; the next takes
    its share of what is left in the same way, and so on: evenly interleaved, and computed without looking back.
    """
    phases = np.random.default_rng((seed, 0)).random(len(weights))
    for feed in range(len(weights) - 1):
        share = weights[feed] / sum(weights[feed:])
        before, after = (int(np.floor(n * share + phases[feed])) for n in (number, number + 1))
        if after > before:
            return feed, before
        number -= before
    return len(weights) - 1, number


@lru_cache(maxsize=64)
def _order(seed: int, name: str, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, 1, zlib.crc32(name.encode()), epoch)).permutation(size)


@dataclass
class _Loading:
    """Makes whole batches, in a worker process or in this one.

    Attributes:
        heads: whose targets a batch holds.
        original: ``None`` transforms targets with the image; a list of heads leaves theirs in original coordinates.
    """

    feeds: Sequence[Feed]
    heads: Sequence[str]
    original: Sequence[str] | None
    seed: int
    on_error: OnError
    size_divisor: int

    def __call__(self, places: list[_Place]) -> tuple[MixedBatch | None, list[_Skip]]:
        """The batch (``None`` if no image of it can be read), and what was skipped."""
        skips: list[_Skip] = []
        rows: list[tuple[Feed, Sample]] = []
        for place in places:
            sample = self._sample(place, skips)
            if sample is not None:
                rows.append((self.feeds[place.feed], sample))
        if not rows:
            return None, skips
        try:
            targets = [self._targets(feed, sample) for feed, sample in rows]
            samples = [sample for _, sample in rows]
            return collate(samples, targets, self.heads, self.size_divisor, pad=self.original is None), skips
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"no batch can be made of {self.describe(places)}: unexpected {explain(error)}") from error

    def describe(self, places: list[_Place]) -> str:
        """The images at these places, in words."""
        names = [f"{self.feeds[p.feed].source.describe(p.index)} of source '{self.feeds[p.feed].name}'" for p in places]
        return ", ".join(names[:3]) + (f" or {len(names) - 3} further images" if len(names) > 3 else "")

    def _sample(self, place: _Place, skips: list[_Skip]) -> Sample | None:
        """The sample at a place; of a broken image with ``skip``, the next one (training) or ``None`` (evaluation)."""
        feed = self.feeds[place.feed]
        size = len(feed.source)
        index, reason = place.index, ""
        while True:
            try:
                return self._load(feed, place.number, index)
            except DataError as error:
                if self.on_error == "fail":
                    raise
                reason = reason or str(error)
                skips.append((feed.name, index, str(error)))
            except UserError:
                raise
            except Exception as error:
                at = self.describe([replace(place, index=index)])
                raise UserError(f"{at}: unexpected {explain(error)}") from error
            index = (index + 1) % size
            if self.original is not None:
                return None
            if index == place.index:
                raise DataError(f"source '{feed.name}': none of its {size} images can be read ({reason})")

    def _load(self, feed: Feed, number: int, index: int) -> Sample:
        seed_everything(self.seed, number)
        sample = feed.source.load(index, feed.tasks(self.original))
        sample = replace(sample, info=replace(sample.info, source=feed.name))
        if self.original is None:
            return apply_transforms(feed.transforms, sample)
        return replace(apply_transforms(feed.transforms, replace(sample, targets={})), targets=sample.targets)

    def _targets(self, feed: Feed, sample: Sample) -> dict[str, Target | None]:
        """By head, the target in its labels; heads that read the same target with the same table share the result."""
        made: dict[tuple[int, bytes | None], Target] = {}
        out: dict[str, Target | None] = {}
        for head in self.heads:
            task, table = feed.heads.get(head, ("", None))
            target = sample.targets.get(task)
            if target is None:
                out[head] = None
                continue
            key = (id(target), None if table is None else table.numpy().tobytes())
            if key not in made:
                made[key] = target if table is None else target.relabel(table)
            out[head] = made[key]
        return out


def seed_everything(seed: int, number: int) -> None:
    """Seed the generators of torch (CPU), NumPy and Python for sample ``number`` of a run."""
    word = np.random.SeedSequence((seed, 2, number)).generate_state(3)
    torch.default_generator.manual_seed(int(word[0]))  # not torch.manual_seed: that would seed the devices as well
    np.random.seed(word[1])  # noqa: NPY002 - transforms of others draw from the global generator
    random.seed(int(word[2]))


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Whatever is drawn inside, the generators of this process are afterwards as they were."""
    states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def collate(
    samples: Sequence[Sample],
    targets: Sequence[Mapping[str, Target | None]] | None = None,
    heads: Sequence[str] | None = None,
    size_divisor: int = 32,
    *,
    pad: bool = True,
) -> MixedBatch:
    """Samples as one batch.

    Args:
        targets: by head, one mapping a sample; ``None``: the samples' own, by task.
        heads: the heads the batch has; ``None``: all that occur.
        size_divisor: images are padded with zeros, at the right and bottom, to a multiple of this.
        pad: pad masks and label maps as well, label maps with ``IGNORE``.
    """
    targets = [sample.targets for sample in samples] if targets is None else targets
    heads = list(dict.fromkeys(head for own in targets for head in own)) if heads is None else heads
    height, width = (
        -(-max(sample.image.shape[axis] for sample in samples) // size_divisor) * size_divisor for axis in (1, 2)
    )
    kind = samples[0].image.dtype
    if any(sample.image.dtype != kind for sample in samples):
        names = ", ".join(dict.fromkeys(str(sample.info.source or sample.info.id) for sample in samples))
        raise UserError(f"one batch holds images that are normalised and images that are not ({names}): "
                        "all its sources need the transform 'normalize', or none")  # fmt: skip
    # Allocated channels last: images come out of OpenCV in that order, and the backbone wants them so.
    images = torch.zeros(len(samples), height, width, 3, dtype=kind).permute(0, 3, 1, 2)
    for row, sample in enumerate(samples):
        images[row, :, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    padded: dict[int, Target | None] = {id(None): None}
    for own in targets:
        for target in own.values():
            if id(target) not in padded:
                padded[id(target)] = pad_target(target, (height, width)) if pad and target is not None else target
    return MixedBatch(
        images=images,
        info=tuple(sample.info for sample in samples),
        targets={head: [padded[id(own.get(head))] for own in targets] for head in heads},
    )


def _batches(
    loading: _Loading, batches: Any, workers: int, skipped: Skipped | None, *, must_have_one: bool = False
) -> Iterator[MixedBatch]:
    """The batches, in order, made by so many workers."""
    tally = Skipped() if skipped is None else skipped
    count = 0
    for batch, skips in _results(loading, batches, workers):
        for skip in skips:
            tally.add(*skip)
        if batch is not None:
            count += 1
            yield batch
    lines = tally.summary()
    if must_have_one and not count and lines:
        raise DataError(f"no image can be read: {'; '.join(lines)}")
    if skipped is None:
        for line in lines:
            log.warning(line)


def _results(loading: _Loading, batches: Any, workers: int) -> Iterator[Any]:
    if workers:
        yield from in_workers(loading, batches, workers, loading.describe)
        return
    for places in batches:
        with _generators_kept():
            result = loading(places)
        yield result
