"""What every data source promises."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch

from visionkit.data import Sample, Source
from visionkit.data.loader import Feed, train_loader
from visionkit.errors import DataError
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, NotApplicable
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.types import IGNORE, InstanceTarget, LabelSet, SemanticTarget, Target

LOOKED_AT = 4
"""Images that are loaded."""


@dataclass
class SourceCase:
    """What the checks of a source work on: its class and keyword arguments."""

    cls: type[Source]
    args: Mapping[str, Any]

    @cached_property
    def source(self) -> Source:
        return self.cls(**self.args)

    @property
    def indices(self) -> range:
        return range(min(len(self.source), LOOKED_AT))


def check_is_built(case: SourceCase) -> None:
    """It can be built from its keyword arguments, and has images and tasks with labels."""
    if not isinstance(case.source, Source):
        raise Broken("it is not derived from Source")
    if len(case.source) < 1:
        raise Broken("it has no images")
    if bad := [task for task, labels in case.source.labels.items() if not isinstance(labels, LabelSet)]:
        raise Broken(f"labels['{bad[0]}'] is a {type(case.source.labels[bad[0]]).__name__}, not a LabelSet")


def check_arguments_are_its_configuration(case: SourceCase) -> None:
    """The constructor takes keywords only, annotated, with defaults that keep to the annotation, and refuses others."""
    assert_configurable("source", case.cls, given=0)


def check_arguments_are_documented(case: SourceCase) -> None:
    """The docstring has a line for every keyword argument."""
    assert_documented(case.cls, given=0)


def check_samples_are_images_with_their_size(case: SourceCase) -> None:
    """`load` gives an image (3, H, W) uint8, and an info whose sizes are its own and whose map changes nothing."""
    for index in case.indices:
        sample = case.source.load(index, case.source.tasks)
        image, info = sample.image, sample.info
        if not isinstance(sample, Sample):
            raise Broken(f"load returns a {type(sample).__name__}, not a Sample")
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise Broken(f"image {index} is {image.dtype} {tuple(image.shape)}; it must be uint8 (3, H, W), RGB")
        size = tuple(image.shape[1:])
        if info.size != size or info.original_size != size or info.affine != (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
            raise Broken(f"image {index} has {size[0]} x {size[1]} pixels, but its info says size {info.size}, "
                         f"original_size {info.original_size} and affine {info.affine}")  # fmt: skip


def check_images_have_ids_of_their_own(case: SourceCase) -> None:
    """No two samples have the same id (`info.key`), and `describe` says something of each without opening it."""
    ids = [case.source.load(index, []).info.key for index in case.indices]
    if len(set(ids)) < len(ids):
        raise Broken(f"the first images have the ids {ids}; evaluators count images by their ids, so they must differ")
    if not all(isinstance(case.source.describe(index), str) for index in case.indices):
        raise Broken("describe must return text that names the image")


def check_only_the_tasks_asked_for(case: SourceCase) -> None:
    """For every set of tasks, `load` gives targets of just these, and the same image."""
    tasks = sorted(case.source.tasks)
    whole = case.source.load(0, tasks)
    for count in range(len(tasks)):
        for some in combinations(tasks, count):
            sample = case.source.load(0, some)
            if extra := set(sample.targets) - set(some):
                raise Broken(
                    f"asked for {', '.join(some) or 'no task'}, it gives a target for '{sorted(extra)[0]}' too"
                )
            if set(some) & set(whole.targets) != set(sample.targets):
                raise Broken(f"asked for {', '.join(some)}, it gives targets for {', '.join(sample.targets) or 'none'}")
            if not torch.equal(sample.image, whole.image):
                raise Broken("the image depends on the tasks that are asked for")


def check_targets_lie_in_their_image(case: SourceCase) -> None:
    """Targets are typed, lie inside the image, and hold labels of the task's label set only."""
    for index in case.indices:
        sample = case.source.load(index, case.source.tasks)
        for task, target in sample.targets.items():
            if not isinstance(target, Target):
                raise Broken(f"the target for '{task}' is a {type(target).__name__}, not derived from Target")
            _assert_inside(target, task, sample, case.source.labels[task])


def check_loading_twice_gives_the_same(case: SourceCase) -> None:
    """The same index gives the same sample, whatever was loaded between, and no two calls share their tensors."""
    first = case.source.load(0, case.source.tasks)
    expected = pickle.loads(pickle.dumps(first))
    first.image.zero_()
    case.source.load(case.indices[-1], case.source.tasks)
    if said := difference(expected, case.source.load(0, case.source.tasks)):
        raise Broken(f"loaded twice, image 0 is not the same ({said})")


def check_workers_can_be_given_it(case: SourceCase) -> None:
    """It can be pickled for worker processes, and the copy loads the same."""
    copy = pickle.loads(pickle.dumps(case.source))
    if said := difference(case.source.load(0, case.source.tasks), copy.load(0, case.source.tasks)):
        raise Broken(f"a pickled copy loads another sample ({said})")


def check_batches_are_made_of_it(case: SourceCase) -> None:
    """The loader makes shuffled batches of it, for a head of every task."""
    heads = {task: (task, None) for task in case.source.tasks}
    feed = Feed("checked", case.source, heads)
    for batch in train_loader([feed], batch_size=2, seed=0, steps=2):
        if len(batch) != 2 or set(batch.targets) != set(heads):
            raise Broken(
                f"a batch of 2 has {len(batch)} images and targets for {', '.join(batch.targets) or 'nothing'}"
            )


def check_a_missing_file_is_the_users_mistake(case: SourceCase) -> None:
    """Given the path of a file or folder that cannot be there, it raises a `DataError` that names it."""
    paths = [name for name, value in case.args.items() if isinstance(value, str) and os.path.exists(value)]
    if not paths:
        raise NotApplicable("it was given no paths")
    for name in paths:
        missing = os.path.join(__file__, "is-not-there")  # below a file, where nobody can make a folder either
        try:
            source = case.cls(**{**case.args, name: missing})
            source.load(0, source.tasks)
        except DataError as error:
            if "is-not-there" not in str(error):
                raise Broken(f"{name}={missing}: its DataError does not name the path: {error}") from error
        except Exception as error:
            raise Broken(f"{name}={missing} raises a {type(error).__name__}; it must be a DataError that names the path"
                         ) from error  # fmt: skip
        else:
            raise Broken(f"{name}={missing} is not noticed")


def _assert_inside(target: Target, task: str, sample: Sample, labels: LabelSet) -> None:
    height, width = sample.image.shape[1:]
    where = f"the target for '{task}' of image {sample.info.id}"
    if isinstance(target, InstanceTarget):
        boxes = target.boxes
        outside = (boxes < 0).any(1) | (boxes[:, 2] > width) | (boxes[:, 3] > height)
        if bool(outside.any() | (boxes[:, 2:] <= boxes[:, :2]).any()):
            raise Broken(f"{where} has boxes that reach outside the image of {height} x {width} or have no area")
        if target.masks is not None and target.masks.size != (height, width):
            raise Broken(f"{where} has masks of {target.masks.size}, the image {height} x {width}")
        if target.keypoints is not None and target.keypoints.shape[1] != len(labels.keypoints) and task == "keypoints":
            raise Broken(
                f"{where} has {target.keypoints.shape[1]} keypoints, its label set names {len(labels.keypoints)}"
            )
        seen = target.labels
    elif isinstance(target, SemanticTarget):
        if tuple(target.labels.shape) != (height, width):
            raise Broken(f"{where} has {tuple(target.labels.shape)} pixels, the image {height} x {width}")
        seen = target.labels[target.labels != IGNORE]
    else:
        return
    if len(seen) and not 0 <= int(seen.min()) <= int(seen.max()) < len(labels):
        raise Broken(f"{where} has labels from {int(seen.min())} to {int(seen.max())}; there are {len(labels)} classes")


CHECKS = (
    check_is_built,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_samples_are_images_with_their_size,
    check_images_have_ids_of_their_own,
    check_only_the_tasks_asked_for,
    check_targets_lie_in_their_image,
    check_loading_twice_gives_the_same,
    check_workers_can_be_given_it,
    check_batches_are_made_of_it,
    check_a_missing_file_is_the_users_mistake,
)
