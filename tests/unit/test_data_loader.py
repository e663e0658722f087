"""The loader: what a batch holds follows from the seed and the step, and from nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.data import Sample, Source, Transform
from visionkit.data.loader import Feed, Skipped, collate, eval_loader, train_loader, which_feed
from visionkit.data.transforms import HorizontalFlip, Resize, ScaleJitterCrop
from visionkit.errors import DataError, UserError
from visionkit.types import IGNORE, ImageInfo, InstanceTarget, LabelSet, MixedBatch, SemanticTarget


class Numbers(Source):
    """Image ``i`` is filled with ``i`` and holds one object of class ``i % 3`` whose box is as large as the image."""

    def __init__(
        self, count: int, *, broken: Collection[int] = (), tasks: Collection[str] = ("boxes", "semantic")
    ) -> None:
        self.count, self.broken = count, broken
        self.labels: Mapping[str, LabelSet] = dict.fromkeys(tasks, LabelSet(("a", "b", "c")))
        self.asked: list[set[str]] = []

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        self.asked.append(set(tasks))
        if index in self.broken:
            raise DataError(f"{index}.jpg: truncated JPEG")
        size = (20 + index % 5, 30)
        sample = Sample(torch.full((3, *size), index, dtype=torch.uint8), ImageInfo(index, f"{index}.jpg", size, size))
        if {"boxes", "masks"} & set(tasks):
            target = InstanceTarget(
                boxes=torch.tensor([[0.0, 0, size[1], size[0]]]),
                labels=torch.tensor([index % 3]),
                crowd=torch.tensor([False]),
                areas=torch.tensor([600.0]),
                ids=torch.tensor([index]),
                masks=torch.ones(1, *size, dtype=torch.uint8) if "masks" in tasks else None,
            )
            sample.targets |= dict.fromkeys({"boxes", "masks"} & set(tasks), target)
        if "semantic" in tasks:
            sample.targets["semantic"] = SemanticTarget(torch.full(size, index % 3, dtype=torch.uint8))
        return sample


class Noise(Transform):
    """Draws from all three generators."""

    def __call__(self, sample: Sample) -> Sample:
        value = torch.randint(0, 50, ()) + np.random.randint(50) + random.randrange(50)  # noqa: NPY002
        return dataclasses.replace(sample, image=sample.image + value.to(torch.uint8))


AUGMENT = [Resize(short=[20, 30]), HorizontalFlip(), ScaleJitterCrop(size=24, scale=(0.5, 2.0)), Noise()]


def two_feeds() -> list[Feed]:
    table = torch.tensor([1, -1, 0])
    return [
        Feed("first", Numbers(13), {"seg": ("semantic", None)}, transforms=AUGMENT),
        Feed("second", Numbers(7, tasks=("boxes", "masks")),
             {"boxes": ("boxes", table), "masks": ("masks", table), "other": ("boxes", None)}, 2.0, AUGMENT),
    ]  # fmt: skip


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal down to the last tensor, types included."""
    assert type(mine) is type(theirs)
    if isinstance(mine, Tensor):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    elif dataclasses.is_dataclass(mine):
        for field in dataclasses.fields(mine):
            assert_same(getattr(mine, field.name), getattr(theirs, field.name))
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert_same(mine[key], theirs[key])
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs):
            assert_same(a, b)
    else:
        assert mine == theirs


def ids(batches: list[MixedBatch]) -> list[int | str]:
    return [info.id for batch in batches for info in batch.info]


def test_batches_do_not_depend_on_workers_or_on_where_a_run_began() -> None:
    whole = list(train_loader(two_feeds(), batch_size=4, seed=5, steps=8))
    assert len(whole) == 8
    assert_same(whole, list(train_loader(two_feeds(), batch_size=4, seed=5, steps=8, workers=2)))
    assert_same(whole[3:], list(train_loader(two_feeds(), batch_size=4, seed=5, start_step=3, steps=8)))
    other = list(train_loader(two_feeds(), batch_size=4, seed=6, steps=8))
    assert ids(whole) != ids(other)


def test_processes_share_out_the_global_batch() -> None:
    together = train_loader(two_feeds(), batch_size=6, seed=1, steps=4)
    parts = [train_loader(two_feeds(), batch_size=2, seed=1, steps=4, rank=r, world_size=3) for r in range(3)]
    for whole, *split in zip(together, *parts):
        rows = [(info.id, info.source) for batch in split for info in batch.info]
        assert rows == [(info.id, info.source) for info in whole.info]


def test_every_image_comes_once_before_any_comes_again() -> None:
    feed = Feed("numbers", Numbers(10), {"seg": ("semantic", None)})
    order = ids(list(train_loader([feed], batch_size=5, seed=0, steps=6)))
    epochs = [order[i : i + 10] for i in range(0, 30, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (1.0, 2.0, 4.0), (5.0, 0.1, 3.0, 3.0)])
def test_feeds_are_interleaved_as_evenly_as_their_weights_allow(weights: tuple[float, ...]) -> None:
    counts: Counter[int] = Counter()
    for number in range(600):
        feed, before = which_feed(number, weights, seed=3)
        assert before == counts[feed]  # a closed form that never loses count
        counts[feed] += 1
        for i, weight in enumerate(weights):
            assert abs(counts[i] - (number + 1) * weight / sum(weights)) < len(weights)


def test_the_generators_of_the_run_are_left_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), np.random.random(), random.random()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)

    for workers in (0, 1):
        seed()
        expected = [draw() for _ in range(3)]
        seed()
        batches = train_loader(two_feeds(), batch_size=2, seed=0, steps=3, workers=workers)
        assert [draw() for _ in batches] == expected


def test_not_annotated_is_none_and_labels_are_the_heads_own() -> None:
    for batch in train_loader(two_feeds(), batch_size=6, seed=0, steps=3):
        assert list(batch.targets) == ["seg", "boxes", "masks", "other"]
        for row, info in enumerate(batch.info):
            boxes, masks, other, seg = (batch.targets[head][row] for head in ("boxes", "masks", "other", "seg"))
            if info.source == "first":
                assert seg is not None
                assert boxes is masks is other is None
                continue
            assert seg is None
            assert boxes is masks  # one mapping, one target
            assert other.labels.tolist() == [info.id % 3]
            # Class 1 is dropped: annotated, and nothing of the head's is there.
            assert boxes.labels.tolist() == {0: [1], 1: [], 2: [0]}[info.id % 3]


def test_only_the_tasks_of_the_heads_are_decoded() -> None:
    source = Numbers(3, tasks=("boxes", "masks", "semantic"))
    next(train_loader([Feed("n", source, {"a": ("boxes", None)})], batch_size=2, seed=0))
    assert source.asked == [{"boxes"}] * 2
    source.asked.clear()
    list(eval_loader(Feed("n", source, {"a": ("boxes", None), "b": ("semantic", None)}), batch_size=3))
    assert source.asked == [set()] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_run_with_its_own_message(workers: int) -> None:
    feed = Feed("n", Numbers(6, broken=[4]), {"seg": ("semantic", None)})
    with pytest.raises(DataError) as caught:
        list(train_loader([feed], batch_size=3, seed=0, steps=2, workers=workers))
    assert str(caught.value) == "4.jpg: truncated JPEG"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_by_the_next_and_named_once(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    feed = Feed("n", Numbers(6, broken=[4]), {"seg": ("semantic", None)})
    with caplog.at_level(logging.WARNING, "visionkit.data"):
        batches = list(train_loader([feed], batch_size=3, seed=0, steps=6, workers=workers, on_error="skip"))
    assert Counter(ids(batches)) == {0: 3, 1: 3, 2: 3, 3: 3, 5: 6}
    assert [r.getMessage() for r in caplog.records] == [
        "skipped: 4.jpg: truncated JPEG",
        "source 'n': skipped 1 image (on_error: skip): 4.jpg: truncated JPEG",
    ]


def test_skipped_images_are_summed_up_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    skipped = Skipped()
    with caplog.at_level(logging.WARNING, "visionkit.data"):
        for _ in range(2):  # every image counts once
            for index in range(40):
                skipped.add("a", index, f"img/{index}.jpg: truncated after {index} bytes")
            skipped.add("a", 40, "img/40.jpg: box 3 has no width")
            skipped.add("b", 0, "0.png: no such file")
    assert skipped.summary() == [
        "source 'a': skipped 41 images (on_error: skip): 40 like 'img/0.jpg: truncated after 0 bytes'; "
        "img/40.jpg: box 3 has no width",
        "source 'b': skipped 1 image (on_error: skip): 0.png: no such file",
    ]
    assert len(caplog.records) == 5 + 1 + 1  # the first few, that there are more, and that of the other source
    assert Skipped().summary() == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_readable_image_is_an_error(workers: int) -> None:
    feed = Feed("n", Numbers(3, broken=[0, 1, 2]), {"seg": ("semantic", None)})
    with pytest.raises(DataError, match=r"source 'n': none of its 3 images can be read \(\d.jpg: truncated JPEG\)"):
        next(train_loader([feed], batch_size=2, seed=0, on_error="skip", workers=workers))
    with pytest.raises(DataError, match=r"no image can be read: source 'n': skipped 3 images .*3 like '0.jpg: trun"):
        list(eval_loader(feed, batch_size=2, on_error="skip", workers=workers))


class Faulty(Numbers):
    """Has an error in its code."""

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        return super().load({0: 0}[index], tasks)


class Shapeless(Transform):
    """Makes images that cannot be put into a batch."""

    def __call__(self, sample: Sample) -> Sample:
        return dataclasses.replace(sample, image=sample.image[0, 0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_exception_of_a_source_or_transform_is_one_line(workers: int, on_error: Any) -> None:
    for source, transforms, message in (
        (Faulty(2), [], r"^image 1 of source 'n': unexpected .*test_data_loader.py:\d+: KeyError: 1$"),
        (Numbers(1), [Shapeless()], r"^no batch can be made of image 0 of source 'n', .*: unexpected .*: IndexError: "),
    ):
        feed = Feed("n", source, {"seg": ("semantic", None)}, transforms=transforms)
        with pytest.raises(UserError, match=message) as caught:
            list(train_loader([feed], batch_size=2, seed=0, steps=2, workers=workers, on_error=on_error))
        assert "\n" not in str(caught.value)


class Fatal(Numbers):
    """Kills the process that loads image 4."""

    def load(self, index: int, tasks: Collection[str]) -> Sample:
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index, tasks)


def test_a_killed_worker_names_its_images() -> None:
    feed = Feed("n", Fatal(6), {"seg": ("semantic", None)})
    with pytest.raises(
        UserError, match=r"was killed by SIGKILL while it worked on image 3 of source 'n', image 4 of source 'n'"
    ):
        list(eval_loader(feed, batch_size=3, workers=2))


def test_evaluation_keeps_targets_in_original_coordinates() -> None:
    heads = {"b": ("boxes", torch.tensor([2, 1, 0])), "s": ("semantic", None)}
    feed = Feed("n", Numbers(7), heads, transforms=[Resize(short=50)])
    batches = list(eval_loader(feed, batch_size=3, heads_with_targets=["b", "s"]))
    assert ids(batches) == list(range(7))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    for batch in batches:
        for row, info in enumerate(batch.info):
            assert info.size[0] == 50
            assert batch.targets["b"][row].boxes.tolist() == [[0, 0, 30, info.original_size[0]]]
            assert batch.targets["b"][row].labels.tolist() == [2 - info.id % 3]
            assert batch.targets["s"][row].labels.shape == info.original_size
    assert next(eval_loader(feed, batch_size=3)).targets == {}


def test_evaluation_is_shared_out_and_limited() -> None:
    feed = Feed("n", Numbers(11), {"b": ("boxes", None)})
    parts = [ids(list(eval_loader(feed, batch_size=2, rank=r, world_size=3, workers=r % 2))) for r in range(3)]
    assert sorted(itertools.chain.from_iterable(parts)) == list(range(11))
    assert ids(list(eval_loader(feed, batch_size=4, max_images=5))) == list(range(5))


def test_evaluation_leaves_a_broken_image_out() -> None:
    feed = Feed("n", Numbers(5, broken=[1, 2]), {"b": ("boxes", None)})
    assert ids(list(eval_loader(feed, batch_size=2, on_error="skip"))) == [0, 3, 4]
    with pytest.raises(DataError, match=r"1\.jpg: truncated"):
        list(eval_loader(feed, batch_size=2))


def test_collate_pads_with_zeros_and_ignore() -> None:
    samples = [Numbers(50, tasks=("boxes", "masks", "semantic")).load(i, ["masks", "semantic"]) for i in (41, 44)]
    batch = collate(samples, size_divisor=16)
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for row, (sample, number) in enumerate(zip(samples, (41, 44))):
        height, width = sample.info.size
        assert bool((batch.images[row, :, :height, :width] == number).all())
        assert int(batch.images[row].int().sum()) == 3 * height * width * number
        labels, masks = batch.targets["semantic"][row].labels, batch.targets["masks"][row].masks
        assert labels.shape == (32, 32)
        assert int((labels == IGNORE).sum()) == 32 * 32 - height * width
        assert masks.dense().shape == (1, 32, 32)
        assert int(masks.areas().sum()) == height * width
    for sample in samples:
        sample.image = sample.image.float()
    assert collate(samples).images.dtype == torch.float32


def test_feeds_are_checked() -> None:
    with pytest.raises(DataError, match="head 'x' learns 'keypoints', for which source 'n' is not labelled"):
        Feed("n", Numbers(3), {"x": ("keypoints", None)})
    with pytest.raises(DataError, match="source 'n' has no images"):
        Feed("n", Numbers(0), {})
    with pytest.raises(DataError, match="weight -1"):
        Feed("n", Numbers(3), {}, weight=-1)
    with pytest.raises(DataError, match="no source to train on"):
        train_loader([], batch_size=1, seed=0)
