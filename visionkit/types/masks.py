"""Instance masks as crops: every mask takes the memory of its bounding window, not that of the image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from pycocotools import mask as codec
from torch import Tensor

from visionkit.rle import crop_of_rle, crop_to_runs
from visionkit.types._tree import map_tensors
from visionkit.types.device import constant, to_device

Crop = tuple[int, int, np.ndarray]

_PIXELS_AT_ONCE = 1 << 24  # of the full-size masks that exist at the same time: 64 MB of float32


@dataclass
class InstanceMasks:
    """The masks of N objects of one image, each cropped to the smallest window that holds it.

    Attributes:
        data: (P,) uint8 of 0 and 1, the pixels of all crops, row by row, one crop after another.
        windows: (N, 4) int64, left, top, width and height of each crop in pixels; zeros where a mask has no pixels.
        annotated: (N,) bool; False where an object has a box but no mask, so that nothing is known about its pixels.
        size: height and width of the image.
    """

    data: Tensor
    windows: Tensor
    annotated: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        n = len(self.windows)
        if self.data.ndim != 1 or self.windows.shape != (n, 4) or self.annotated.shape != (n,):
            raise ValueError(f"data {tuple(self.data.shape)}, windows {tuple(self.windows.shape)} and annotated "
                             f"{tuple(self.annotated.shape)} must have the shapes (P,), (N, 4) and (N,)")  # fmt: skip
        # Kept when the tensors move to an accelerator, so that the host need not fetch them from there.
        self._layout: list[list[int]] | None = self.windows.tolist() if self.windows.device.type == "cpu" else None

    def __len__(self) -> int:
        return len(self.windows)

    def _windows(self) -> list[list[int]]:
        """``windows`` as numbers."""
        if self._layout is None or self.windows.device.type == "cpu":
            return self.windows.tolist()
        return self._layout

    # -- from and to other representations

    @classmethod
    def from_crops(cls, crops: Iterable[Crop | None], size: tuple[int, int]) -> InstanceMasks:
        """Masks from parts of the image; they are cropped further to their pixels.

        Args:
            crops: left, top and pixels (h, w) of each object, where anything but 0 is the object; ``None`` for an
                object whose mask is not annotated.
            size: height and width of the image.

        Raises:
            ValueError: a crop does not lie inside the image.
        """
        windows: list[tuple[int, int, int, int]] = []
        annotated: list[bool] = []
        pixels: list[np.ndarray] = []
        for crop in crops:
            annotated.append(crop is not None)
            windows.append((0, 0, 0, 0))
            if crop is None or not crop[2].size:
                continue
            left, top, bitmap = crop[0], crop[1], (crop[2] != 0).view(np.uint8)
            x, y, w, h = cv2.boundingRect(bitmap)
            if not w:
                continue
            windows[-1] = (left + x, top + y, w, h)
            pixels.append(bitmap[y : y + h, x : x + w].ravel())
            if left + x < 0 or top + y < 0 or left + x + w > size[1] or top + y + h > size[0]:
                raise ValueError(f"a mask of {w}x{h} pixels at ({left + x}, {top + y}) does not lie in an image of "
                                 f"{size[1]}x{size[0]}")  # fmt: skip
        return cls(
            data=torch.from_numpy(np.concatenate(pixels)) if pixels else torch.zeros(0, dtype=torch.uint8),
            windows=torch.tensor(windows, dtype=torch.int64).view(-1, 4),
            annotated=torch.tensor(annotated, dtype=torch.bool),
            size=(int(size[0]), int(size[1])),
        )

    @classmethod
    def from_dense(cls, masks: Tensor) -> InstanceMasks:
        """Masks from (N, H, W), where anything but 0 is the object. A mask without pixels counts as not annotated."""
        bitmaps = (mask.cpu().numpy() for mask in masks)
        out = cls.from_crops(((0, 0, bitmap) for bitmap in bitmaps), (masks.shape[1], masks.shape[2]))
        return map_tensors(replace(out, annotated=out.nonempty()), lambda t: t.to(masks.device))

    @classmethod
    def from_rles(cls, rles: Sequence[Mapping[str, Any] | None], size: tuple[int, int]) -> InstanceMasks:
        """Masks from run-length encodings, decoded one at a time and only in the columns that they cover.

        Args:
            rles: COCO's ``{"size": [height, width], "counts": ...}`` with run lengths or the compressed form, or
                ``None`` for an object whose mask is not annotated.
            size: height and width of the image.

        Raises:
            ValueError: an encoding is of another size, or its runs do not add up to its size.
        """
        for rle in rles:
            if rle is not None and tuple(rle["size"]) != tuple(size):
                raise ValueError(f"a mask of {list(rle['size'])} pixels in an image of {list(size)}")
        return cls.from_crops((None if rle is None else crop_of_rle(rle) for rle in rles), size)

    def to_rles(self) -> list[dict[str, Any] | None]:
        """COCO's compressed run-length encodings; ``None`` where a mask is not annotated."""
        height, width = self.size
        crops = zip(self.crops(), self._windows(), self.annotated.tolist())
        return [
            codec.frPyObjects(
                [{"size": [height, width], "counts": crop_to_runs(crop.cpu().numpy(), left, top, height, width)}],
                height, width,
            )[0] if annotated else None
            for crop, (left, top, _, _), annotated in crops
        ]  # fmt: skip

    def crops(self) -> list[Tensor]:
        """The pixels of each mask in its window, (h, w) uint8 of 0 and 1; views of ``data``."""
        windows = self._windows()
        parts = self.data.split([w * h for _, _, w, h in windows])
        return [part.view(h, w) for part, (_, _, w, h) in zip(parts, windows)]

    def dense(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """The full-size masks (N, H, W) of 0 and 1; zeros where a mask is not annotated.

        This takes N x H x W values of memory. Code that has to work with many objects uses :meth:`dense_chunks`.
        """
        out = torch.zeros(len(self), *self.size, dtype=dtype, device=self.data.device)
        self._write(out)
        return out

    def dense_chunks(self, dtype: torch.dtype = torch.uint8) -> Iterator[tuple[slice, Tensor]]:
        """The full-size masks, some of them at a time, so that memory is bounded whatever their number.

        Yields:
            Which masks, and their pixels (n, H, W), which are valid until the next ones are requested.
        """
        height, width = self.size
        step = max(1, min(len(self), _PIXELS_AT_ONCE // max(1, height * width)))
        canvas = torch.zeros(min(step, len(self)), height, width, dtype=dtype, device=self.data.device)
        for start in range(0, len(self), step):
            part = self._rows(range(start, min(start + step, len(self))))
            part._write(canvas)
            yield slice(start, start + len(part)), canvas[: len(part)]
            part._write(canvas, erase=True)

    def _write(self, canvas: Tensor, *, erase: bool = False) -> None:
        """Write each crop into its place in ``canvas`` (N or more, H, W), or zeros with ``erase``."""
        for mask, crop, (left, top, w, h) in zip(canvas, self.crops(), self._windows()):
            mask[top : top + h, left : left + w] = 0 if erase else crop

    # -- selections and geometry

    def select(self, keep: Tensor) -> InstanceMasks:
        """The masks that ``keep`` (bool mask or indices) selects, in that order."""
        return self._rows(torch.arange(len(self))[keep.cpu()].tolist())

    def _rows(self, rows: Sequence[int]) -> InstanceMasks:
        windows = self._windows()
        parts = self.data.split([w * h for _, _, w, h in windows])
        chosen = [parts[row] for row in rows]
        index = constant(list(rows), self.windows, torch.int64)
        data = torch.cat(chosen) if chosen else self.data[:0]
        selected = InstanceMasks(data, self.windows[index], self.annotated[index], self.size)
        selected._layout = [windows[row] for row in rows]
        return selected

    def padded(self, size: tuple[int, int]) -> InstanceMasks:
        """The same masks in an image that was padded at the right and bottom to (height, width)."""
        return replace(self, size=size)

    def resampled(self, rows: np.ndarray, columns: np.ndarray) -> InstanceMasks:
        """Masks whose pixel (y, x) is pixel (``rows[y]``, ``columns[x]``) of these.

        Args:
            rows, columns: (H,) and (W,) integers, each in ascending or descending order.
        """
        crops: list[Crop | None] = []
        for crop, (left, top, w, h), annotated in zip(self.crops(), self._windows(), self.annotated.tolist()):
            y = np.flatnonzero((rows >= top) & (rows < top + h))
            x = np.flatnonzero((columns >= left) & (columns < left + w))
            if not annotated:
                crops.append(None)
            elif len(y) and len(x):
                crops.append((int(x[0]), int(y[0]), crop.numpy()[np.ix_(rows[y] - top, columns[x] - left)]))
            else:
                crops.append((0, 0, np.zeros((0, 0), np.uint8)))
        return InstanceMasks.from_crops(crops, (len(rows), len(columns)))

    # -- measurements

    def nonempty(self) -> Tensor:
        """(N,) bool: which masks have a pixel."""
        return self.windows[:, 2] > 0

    def areas(self) -> Tensor:
        """(N,) int64: pixels of each mask."""
        sums = [crop.sum(dtype=torch.int64) for crop in self.crops()]
        return torch.stack(sums) if sums else self.windows[:, 0]

    def boxes(self) -> Tensor:
        """(N, 4) float32: left, top, right and bottom of the smallest box around each mask; zeros where it is empty."""
        return torch.cat((self.windows[:, :2], self.windows[:, :2] + self.windows[:, 2:]), 1).float()

    def crop_and_resize(self, boxes: Tensor, index: Tensor, size: int, *, aligned: bool = False) -> Tensor:
        """Masks cropped to boxes and resampled to one size by RoIAlign, as Mask R-CNN is trained with them.

        Equal to ``torchvision.ops.roi_align`` of the full-size masks.

        Args:
            boxes: (n, 4) left, top, right, bottom in pixels of the image; they may reach outside of it.
            index: (n,) int64, the mask that belongs to each box.
            size: height and width of the result.
            aligned: see ``roi_align``.

        Returns:
            (n, size, size) of the boxes' type, in 0 ... 1.
        """
        from torchvision.ops import roi_align  # it takes seconds to import, and only training needs it here

        out = boxes.new_zeros(len(boxes), size, size)
        used, number = index.cpu().unique(return_inverse=True)
        for part, masks in self.select(used).dense_chunks(boxes.dtype):
            chosen = ((number >= part.start) & (number < part.stop)).nonzero()[:, 0]
            rows, of_part = to_device([chosen, (number[chosen, None] - part.start).to(boxes.dtype)], boxes.device)
            rois = torch.cat((of_part, boxes[rows]), 1)
            out[rows] = roi_align(masks[:, None], rois, size, aligned=aligned)[:, 0]
        return out
