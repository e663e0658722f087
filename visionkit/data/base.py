"""The contracts of data sources and transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionkit.coco.annotations import CocoAnnotations
from visionkit.types import ImageInfo, LabelSet, Target


@dataclass
class Sample:
    """One image and what is annotated on it.

    Attributes:
        image: (3, H, W) uint8 RGB; or float, once a transform has normalised it.
        info: kept in step with the image by every transform.
        targets: by task, in pixels of ``image`` and in the labels of its source; a task that is not annotated here is
            absent. Tasks that look at the same objects (boxes, masks, keypoints) share one target object.
        swaps: pairs of keypoint indices that change places when the image is mirrored.
    """

    image: Tensor
    info: ImageInfo
    targets: dict[str, Target] = field(default_factory=dict)
    swaps: tuple[tuple[int, int], ...] = ()


class Source(ABC):
    """A data set: so many images, each labelled for some tasks.

    A source is built in the main process and handed to the worker processes, so it holds annotations, not images,
    and no open files.

    Attributes:
        labels: by task, the label set that its targets are in; the keys are the tasks it is labelled for.
    """

    labels: Mapping[str, LabelSet]

    @property
    def tasks(self) -> Collection[str]:
        """The tasks it is labelled for."""
        return self.labels.keys()

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def load(self, index: int, tasks: Collection[str]) -> Sample:
        """Decode image ``index`` with its targets of just these tasks, in original coordinates.

        Raises:
            DataError: the file is missing or broken; the message names it.
        """

    def image_id(self, index: int) -> int | str:
        """The id of image ``index``; a source that knows it without decoding the image says so here."""
        return self.load(index, ()).info.id

    def targets(self, index: int, tasks: Collection[str]) -> dict[str, Target]:
        """The targets of image ``index``; a source that knows them without decoding the image says so here."""
        return self.load(index, tasks).targets

    def describe(self, index: int) -> str:
        """The file and id of an image, for messages, without opening it."""
        return f"image {index}"

    def used_classes(self, task: str) -> Collection[str] | None:
        """The classes that occur in the annotations of a task; ``None`` where only decoding them would tell."""
        return None

    def coco_ground_truth(self) -> CocoAnnotations | dict[str, Any] | None:
        """The annotations, for the official evaluators: read by :mod:`visionkit.coco`, or as one COCO dictionary
        (``images``, ``annotations``, ``categories``). ``None`` where there are none; evaluators then build them from
        the targets."""
        return None

    def problems(self) -> list[str]:
        """What was mended or left out while the annotations were read (clipped boxes and the like), a line each."""
        return []


class Transform(ABC):
    """One step of augmentation: a sample in, a new sample out.

    Random numbers come from torch's and NumPy's global generators, which the loader seeds anew for every sample, so
    that a sample depends on the run's seed and its place in the run alone, never on the worker that made it.
    """

    @abstractmethod
    def __call__(self, sample: Sample) -> Sample:
        """The transformed sample; the one that came in stays as it was."""
