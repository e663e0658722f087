"""Panoptic segmentation: every pixel has a class, every thing an identity (Kirillov et al., CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visionkit.types.batch import ImageInfo
from visionkit.types.labels import IGNORE, LabelSet
from visionkit.types.predictions import Prediction
from visionkit.types.targets import SemanticTarget, Target

if TYPE_CHECKING:
    from visionkit.data.geometry import Geometry


@dataclass
class PanopticTarget(Target):
    """Segments that do not overlap: the target of the task ``panoptic``.

    Attributes:
        segments: (H, W) int32; number ``n`` is row ``n - 1`` of what follows, 0 is void and counts for nothing.
        labels: (N,) int64 label of each segment.
        crowd: (N,) bool; a crowd segment covers many objects, and is neither one object nor void.
        ids: (N,) int64 ids in the annotation file, for messages and evaluators.
    """

    segments: Tensor
    labels: Tensor
    crowd: Tensor
    ids: Tensor

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.segments.ndim != 2 or self.segments.is_floating_point():
            raise ValueError(f"segments must be integers of shape (H, W), not {self.segments.dtype} "
                             f"{tuple(self.segments.shape)}")  # fmt: skip
        for what in ("labels", "crowd", "ids"):
            if getattr(self, what).shape != (n,):
                raise ValueError(f"{what} must have shape ({n},), not {tuple(getattr(self, what).shape)}")

    def __len__(self) -> int:
        return len(self.labels)

    def relabel(self, table: Tensor) -> PanopticTarget:
        """Segments of the mapped classes; the pixels of those that map to -1 become void."""
        labels = table.to(self.labels.device)[self.labels]
        return replace(self, labels=labels)._only(labels >= 0)

    def moved(self, geometry: Geometry) -> PanopticTarget:
        """Segments that are no longer seen are left out."""
        segments = torch.from_numpy(np.ascontiguousarray(geometry.map(self.segments.numpy())))
        return replace(self, segments=segments).seen()

    def padded(self, size: tuple[int, int]) -> PanopticTarget:
        height, width = self.segments.shape
        return replace(self, segments=F.pad(self.segments, (0, size[1] - width, 0, size[0] - height)))

    def seen(self) -> PanopticTarget:
        """The segments that have a pixel."""
        return self._only(self.visible())

    def semantic(self) -> SemanticTarget:
        """The class of every pixel; void becomes ``IGNORE``."""
        table = torch.cat((self.labels.new_full((1,), IGNORE), self.labels)).to(torch.uint8)
        return SemanticTarget(table[self.segments.long()])

    def boxes(self) -> Tensor:
        """(N, 4) float32, the smallest box around what is seen of each segment; zeros where that is nothing."""
        height, width = self.segments.shape
        number = self.segments.long()
        x = torch.arange(width, device=number.device).expand_as(number).flatten()
        y = torch.arange(height, device=number.device)[:, None].expand_as(number).flatten()
        low, high = (
            torch.stack([
                torch.zeros(len(self) + 1, dtype=torch.int64, device=number.device).scatter_reduce(
                    0, number.flatten(), along, how, include_self=False
                )
                for along in (x, y)
            ], 1)
            for how in ("amin", "amax")
        )  # fmt: skip
        return (torch.cat((low, high + 1), 1)[1:] * self.visible()[:, None]).float()

    def visible(self) -> Tensor:
        """(N,) bool: which segments have a pixel."""
        found = torch.zeros(len(self) + 1, dtype=torch.bool, device=self.segments.device)
        return found.scatter_(0, self.segments.flatten().long(), True)[1:]

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_panoptic

        return draw_panoptic(image, self, labels)

    def _only(self, keep: Tensor) -> PanopticTarget:
        """The segments that ``keep``, (N,) bool, picks."""
        if bool(keep.all()):
            return self
        number = _renumbered(keep)
        return PanopticTarget(number[self.segments.long()], self.labels[keep], self.crowd[keep], self.ids[keep])


def _renumbered(keep: Tensor) -> Tensor:
    """(N + 1,) int32: the new number of each segment and of void, 0 for those that ``keep``, (N,) bool, leaves out."""
    number = torch.zeros(len(keep) + 1, dtype=torch.int32, device=keep.device)
    number[1:][keep] = torch.arange(1, int(keep.sum()) + 1, dtype=torch.int32, device=keep.device)
    return number


@dataclass
class PanopticPrediction(Prediction):
    """Segments of one image, at its original size.

    Attributes:
        segments: (H, W) int32; number ``n`` is row ``n - 1`` of what follows, 0 is void: nothing is said there. A class
            of stuff has one segment at most.
        labels: (N,) int64 label of each segment.
        scores: (N,) float32; 1 for stuff.
    """

    segments: Tensor
    labels: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.segments.ndim != 2 or self.segments.is_floating_point():
            raise ValueError(f"segments must be integers of shape (H, W), not {self.segments.dtype} "
                             f"{tuple(self.segments.shape)}")  # fmt: skip
        if self.labels.shape != (n,) or self.scores.shape != (n,):
            raise ValueError(f"labels {tuple(self.labels.shape)} and scores {tuple(self.scores.shape)} "
                             "do not belong together")  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, keep: Tensor) -> PanopticPrediction:
        """The segments that ``keep``, (N,) bool, picks; the others become void."""
        number, keep = _renumbered(keep), keep.to(self.labels.device)
        return PanopticPrediction(
            number.to(self.segments.device)[self.segments.long()], self.labels[keep], self.scores[keep]
        )

    @classmethod
    def from_target(cls, target: PanopticTarget, info: ImageInfo, labels: LabelSet) -> Self:
        """Crowds become void: they are no objects."""
        own = target._only(~target.crowd)
        return cls(own.segments, own.labels, torch.ones(len(own)))

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_panoptic

        return draw_panoptic(image, self, labels)

    def to_coco(self, image_id: int | str, labels: LabelSet) -> list[dict[str, Any]]:
        """One record: the segments of the image that have a pixel, as in the file of COCO's panoptic results."""
        things = self.segments.cpu().numpy()
        areas = np.bincount(things.ravel(), minlength=len(self) + 1)
        rows = zip(self.labels.tolist(), self.scores.tolist())
        return [{
            "image_id": image_id,
            "segments_info": [
                {"id": i, "category_id": labels.ids[label], "score": score, "area": int(areas[i])}
                for i, (label, score) in enumerate(rows, 1)
                if areas[i]
            ],
        }]  # fmt: skip

    def files(self) -> dict[str, np.ndarray]:
        """The PNG that belongs to the record: a pixel's segment is R + 256 G + 65536 B."""
        numbers = self.segments.cpu().numpy()
        return {"": np.stack((numbers & 255, numbers >> 8 & 255, numbers >> 16 & 255), -1).astype(np.uint8)}
