"""One crop, resize and mirror, applied alike to an image, its info and its targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.data.base import Sample
from visionkit.data.images import as_hwc, from_hwc
from visionkit.types import IGNORE, ImageInfo, InstanceMasks, InstanceTarget, SemanticTarget, Target


@dataclass(frozen=True)
class Geometry:
    """Cut a window out of an image, resize it, and perhaps mirror it.

    A target of a plugin's own type takes part if it has a method ``moved(geometry)`` that returns the new target.

    Attributes:
        window: left, top, right, bottom in whole pixels.
        size: height and width of the result.
        mirror: exchange left and right, after the rest.
        swaps: pairs of keypoint indices that change places in the mirror.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    mirror: bool = False
    swaps: tuple[tuple[int, int], ...] = ()

    @property
    def affine(self) -> tuple[float, float, float, float]:
        """``(a, tx, d, ty)``: x becomes ``a x + tx`` and y becomes ``d y + ty``, in continuous coordinates."""
        left, top, right, bottom = self.window
        a, d = self.size[1] / (right - left), self.size[0] / (bottom - top)
        return (-a, self.size[1] + a * left, d, -d * top) if self.mirror else (a, -a * left, d, -d * top)

    def points(self, points: Tensor) -> Tensor:
        """Coordinates (..., 2) of x, y; not clipped."""
        a, tx, d, ty = self.affine
        return points * points.new_tensor((a, d)) + points.new_tensor((tx, ty))

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (N, 4); not clipped."""
        moved = self.points(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
        return moved[:, (2, 1, 0, 3)] if self.mirror else moved

    def info(self, info: ImageInfo) -> ImageInfo:
        """The info of the resulting image."""
        a, tx, d, ty = self.affine
        old = info.affine
        new = (a * old[0], a * old[1], a * old[2] + tx, d * old[3], d * old[4], d * old[5] + ty)
        return replace(info, size=self.size, affine=new)

    def masks(self, masks: InstanceMasks) -> InstanceMasks:
        """Masks, with the pixels that :meth:`map` gives to each of them at full size."""
        left, top, right, bottom = self.window
        rows = _nearest(np.arange(masks.size[0])[top:bottom], self.size[0])
        columns = _nearest(np.arange(masks.size[1])[left:right], self.size[1])
        return masks.resampled(rows, columns[::-1] if self.mirror else columns)

    def map(self, values: np.ndarray) -> np.ndarray:
        """A label map or mask (H, W), resized to the nearest pixel."""
        left, top, right, bottom = self.window
        values = values[top:bottom, left:right]
        if values.shape != self.size:
            values = cv2.resize(values, self.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        return cv2.flip(values, 1) if self.mirror else values

    def image(self, image: Tensor, *, antialias_below: float = 1.0) -> Tensor:
        """An image (3, H, W) uint8 or float32, resized bilinearly; antialiased where its scale is below a factor."""
        left, top, right, bottom = self.window
        height, width = self.size
        pixels = as_hwc(image)[top:bottom, left:right]
        if height < antialias_below * (bottom - top) or width < antialias_below * (right - left):
            part = torch.from_numpy(np.ascontiguousarray(pixels)[None]).permute(0, 3, 1, 2)
            pixels = as_hwc(F.interpolate(part, size=self.size, mode="bilinear", antialias=True)[0])
        elif pixels.shape[:2] != self.size:  # the same values as torch's, in less than half the time
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        return from_hwc(cv2.flip(pixels, 1) if self.mirror else np.ascontiguousarray(pixels))

    def sample(self, sample: Sample, image: Tensor | None = None) -> Sample:
        """The whole sample; ``image`` in place of what :meth:`image` would make."""
        moved: dict[int, Target] = {}
        targets = {}
        for task, target in sample.targets.items():
            if id(target) not in moved:  # boxes, masks and keypoints share one target
                moved[id(target)] = self.target(target)
            targets[task] = moved[id(target)]
        return replace(
            sample, image=self.image(sample.image) if image is None else image, info=self.info(sample.info),
            targets=targets,
        )  # fmt: skip

    def target(self, target: Any) -> Any:
        """The target in pixels of the resulting image; objects that are no longer in it are left out."""
        if isinstance(target, InstanceTarget):
            return self._instances(target)
        if isinstance(target, SemanticTarget):
            return SemanticTarget(torch.from_numpy(np.ascontiguousarray(self.map(target.labels.numpy()))))
        return target.moved(self)

    def _instances(self, target: InstanceTarget) -> InstanceTarget:
        whole = self.boxes(target.boxes)
        boxes, keep = clip_boxes(whole, self.size)
        target, whole, boxes = target.select(keep), whole[keep], boxes[keep]
        cut = ((boxes - whole).abs() > 1e-3).any(1)
        a, _, d, _ = self.affine
        areas = target.areas * abs(a * d)
        by_box = areas * (boxes[:, 2:] - boxes[:, :2]).prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
        masks, keep = None, torch.ones(len(boxes), dtype=torch.bool)
        if target.masks is None:
            areas = by_box
        else:
            masks, known = self.masks(target.masks), target.masks.nonempty()
            # What is left of a mask decides; an object without one is as large as what is left of its box.
            keep = masks.nonempty() | ~known
            measured = masks.nonempty() & cut
            boxes = torch.where(measured[:, None], masks.boxes(), boxes)
            areas = torch.where(measured, masks.areas().float(), torch.where(known, areas, by_box))
        moved = InstanceTarget(
            boxes=boxes, labels=target.labels, crowd=target.crowd, areas=areas, ids=target.ids, masks=masks,
            keypoints=None if target.keypoints is None else self._keypoints(target.keypoints),
        )  # fmt: skip
        return moved if bool(keep.all()) else moved.select(keep)

    def _keypoints(self, keypoints: Tensor) -> Tensor:
        """Keypoints (N, K, 3); those that leave the image are no longer labelled."""
        points, seen = self.points(keypoints[..., :2]), keypoints[..., 2:]
        inside = (points >= 0).all(-1) & (points[..., 0] <= self.size[1]) & (points[..., 1] <= self.size[0])
        out = torch.cat((points, seen), 2) * (inside & (seen[..., 0] > 0))[..., None]
        if self.mirror and self.swaps:
            order = list(range(out.shape[1]))
            for i, j in self.swaps:
                order[i], order[j] = j, i
            out = out[:, order]
        return out


def clip_boxes(boxes: Tensor, size: tuple[int, int], least: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) within an image of this size, and which of them have a width and height of ``least`` there."""
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    keep = (x[:, 1] - x[:, 0] > least) & (y[:, 1] - y[:, 0] > least)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1), keep


def _nearest(values: np.ndarray, count: int) -> np.ndarray:
    """``values`` (n,) resized to ``count`` by the rule that :meth:`Geometry.map` resizes by."""
    if len(values) == count:
        return values
    row = values.astype(np.int32)[None]
    return cv2.resize(row, (count, 1), interpolation=cv2.INTER_NEAREST_EXACT)[0]


def whole_image(sample: Sample, size: tuple[int, int] | None = None, *, mirror: bool = False) -> Geometry:
    """The geometry that keeps the whole image of a sample, resized to ``size``."""
    height, width = sample.image.shape[1:]
    return Geometry((0, 0, width, height), size or (height, width), mirror, sample.swaps)


def pad_target(target: Target, size: tuple[int, int]) -> Target:
    """Masks and label maps padded at the right and bottom to this size; label maps with ``IGNORE``."""
    if isinstance(target, SemanticTarget):
        height, width = target.labels.shape
        if (height, width) == size:
            return target
        return SemanticTarget(F.pad(target.labels, (0, size[1] - width, 0, size[0] - height), value=IGNORE))
    return target.padded(size)
