"""What is annotated on an image, by task.

``None`` in place of a target means *not annotated for this task*; an empty target means *annotated, and nothing is
there*. The two are never confused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from visionkit.types._tree import map_tensors
from visionkit.types.device import to_device
from visionkit.types.labels import IGNORE, LabelSet
from visionkit.types.masks import InstanceMasks

if TYPE_CHECKING:
    from visionkit.data.geometry import Geometry


class Target:
    """Base of all targets. In a batch, coordinates are pixels of the network's input; from a source, of the image."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same target on another device."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def relabel(self, table: Tensor) -> Self:
        """The same target in another label set: label ``i`` becomes ``table[i]``, or is left out where that is -1."""
        raise NotImplementedError(f"{type(self).__name__} has no labels to map; give its source no label map")

    def moved(self, geometry: Geometry) -> Self:
        """The same target after its image was cropped, mirrored and resized: pixels by ``geometry.map(array)``, points
        by ``geometry.points``, boxes by ``geometry.boxes``."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot be cropped, resized or mirrored: it has no method 'moved'"
        )

    def padded(self, size: tuple[int, int]) -> Self:
        """The same target in an image that was padded at the right and bottom to (height, width); needed by targets
        that hold something for every pixel."""
        return self

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        """The truth as an overlay on ``image`` ((H, W, 3) uint8 RGB, not changed) of the same size."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it is drawn: give it a method draw(image, labels)"
        )


@dataclass
class InstanceTarget(Target):
    """Objects of one image: the target of the tasks ``boxes``, ``masks`` and ``keypoints``.

    Attributes:
        boxes: (N, 4) float32, left, top, right, bottom in pixels; right > left, bottom > top.
        labels: (N,) int64 in ``0 ... len(labels) - 1``.
        crowd: (N,) bool; a crowd box covers many objects and is neither an object nor background.
        areas: (N,) float32 in pixels, as the evaluator is to know it (of the mask where there is one).
        ids: (N,) int64 annotation ids, for messages and evaluators.
        masks: N masks, of which single ones may not be annotated, or ``None`` where masks are not annotated at all. A
            tensor (N, H, W) is converted by :meth:`InstanceMasks.from_dense`.
        keypoints: (N, K, 3) float32 of x, y, visibility (0 not labelled, 1 hidden, 2 visible), or ``None``.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    areas: Tensor
    ids: Tensor
    masks: InstanceMasks | None = None
    keypoints: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4):
            raise ValueError(f"boxes must have shape (N, 4), not {tuple(self.boxes.shape)}")
        for what in ("labels", "crowd", "areas", "ids"):
            if getattr(self, what).shape != (n,):
                raise ValueError(f"{what} must have shape ({n},), not {tuple(getattr(self, what).shape)}")
        if isinstance(self.masks, Tensor):
            if self.masks.ndim != 3 or len(self.masks) != n:
                raise ValueError(f"masks must have shape ({n}, H, W), not {tuple(self.masks.shape)}")
            self.masks = InstanceMasks.from_dense(self.masks)
        if self.masks is not None and not isinstance(self.masks, InstanceMasks):
            raise TypeError(f"masks must be InstanceMasks or a tensor ({n}, H, W), not {type(self.masks).__name__}")
        if self.masks is not None and len(self.masks) != n:
            raise ValueError(f"there are {len(self.masks)} masks for {n} boxes")
        if self.keypoints is not None and (
            self.keypoints.ndim != 3 or len(self.keypoints) != n or self.keypoints.shape[2] != 3
        ):
            raise ValueError(f"keypoints must have shape ({n}, K, 3), not {tuple(self.keypoints.shape)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Tensor) -> InstanceTarget:
        """The instances that ``keep`` (bool mask or indices) picks."""
        rows = torch.arange(len(self))[keep.cpu()]
        index = to_device([rows], self.boxes.device)[0]
        selected = map_tensors(replace(self, masks=None), lambda t: t[index])
        selected.masks = None if self.masks is None else self.masks.select(rows)
        return selected

    def padded(self, size: tuple[int, int]) -> InstanceTarget:
        return self if self.masks is None else replace(self, masks=self.masks.padded(size))

    def relabel(self, table: Tensor) -> InstanceTarget:
        """Objects of the mapped classes; those that map to -1 are left out."""
        labels = table.to(self.labels.device)[self.labels]
        keep = labels >= 0
        new = self if bool(keep.all()) else self.select(keep)
        out = map_tensors(new, lambda t: t)
        out.labels = labels[keep]
        return out

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_instances

        return draw_instances(image, self, labels)

    @classmethod
    def empty(
        cls, size: tuple[int, int] | None = None, num_keypoints: int | None = None, *, masks: bool = False
    ) -> InstanceTarget:
        """Annotated, and nothing is there."""
        return cls(
            boxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.int64),
            crowd=torch.zeros(0, dtype=torch.bool),
            areas=torch.zeros(0),
            ids=torch.zeros(0, dtype=torch.int64),
            masks=InstanceMasks.from_crops([], size or (0, 0)) if masks else None,
            keypoints=None if num_keypoints is None else torch.zeros(0, num_keypoints, 3),
        )


@dataclass
class SemanticTarget(Target):
    """A class for every pixel: the target of the task ``semantic``.

    Attributes:
        labels: (H, W) integer label map; ``IGNORE`` (255) where a pixel counts for nothing.
    """

    labels: Tensor

    def __post_init__(self) -> None:
        if self.labels.ndim != 2 or self.labels.is_floating_point():
            raise ValueError(f"labels must be integers of shape (H, W), not {self.labels.dtype} {self.labels.shape}")

    def relabel(self, table: Tensor) -> SemanticTarget:
        """Pixels of the mapped classes; those that map to -1 become ``IGNORE``."""
        full = torch.full((256,), IGNORE, dtype=torch.uint8)
        full[: len(table)] = torch.where(table < 0, IGNORE, table).to(torch.uint8)
        return SemanticTarget(full.to(self.labels.device)[self.labels.long()])

    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        from visionkit.draw import draw_semantic

        return draw_semantic(image, self.labels.cpu().numpy(), labels)
