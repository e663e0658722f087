"""Images on their way through the network: what a head sees, and what a loader yields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from visionkit.types._tree import map_tensors
from visionkit.types.device import constant, to_device
from visionkit.types.targets import Target

T = TypeVar("T", bound=Target)


@dataclass(frozen=True)
class Crop:
    """The one object of an image that a sample shows, where a source makes a sample of every object.

    Attributes:
        number: of the object in its image; no two samples of an image have the same.
        box: left, top, right, bottom in pixels of the original image.
        name: its class, as the source calls it.
        score: of the box, where a detector has found it.
    """

    number: int
    box: tuple[float, float, float, float]
    name: str
    score: float = 1.0


@dataclass(frozen=True)
class ImageInfo:
    """Where one image of a batch came from and how it got there.

    Attributes:
        id: id in the annotation file, else the file name.
        path: the image file, for messages; empty for arrays.
        original_size: (height, width) of the image as it was read.
        size: (height, width) of the image in the batch; beyond it lies padding.
        affine: ``(a, b, tx, c, d, ty)``: original (x, y) lies at input (a x + b y + tx, c x + d y + ty). Coordinates
            are continuous: a pixel covers [i, i + 1).
        source: name of the source in the pipeline.
        clip: name of the video clip, or ``None`` for a single image.
        frame: index of the frame in its clip.
        crop: the object that is shown; ``None`` where it is the image itself that counts.
    """

    id: int | str
    path: str
    original_size: tuple[int, int]
    size: tuple[int, int]
    affine: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    source: str = ""
    clip: str | None = None
    frame: int | None = None
    crop: Crop | None = None

    @property
    def key(self) -> int | str:
        """What no other sample of its source has: the id, with the number of the object that is shown."""
        return self.id if self.crop is None else f"{self.id}#{self.crop.number}"

    def points_to_original(self, points: Tensor) -> Tensor:
        """Input coordinates (..., 2) of x, y in the original image, in float32 or float64; not clipped."""
        # Neither a matrix product, which mixed precision would round to half precision, nor half-precision input.
        x, y = (points if points.dtype == torch.float64 else points.float()).unbind(-1)
        a, b, tx, c, d, ty = self.affine
        if b == 0.0 and c == 0.0:
            return torch.stack(((x - tx) * (1.0 / a), (y - ty) * (1.0 / d)), -1)
        matrix = torch.tensor(((a, b, tx), (c, d, ty), (0.0, 0.0, 1.0)), dtype=torch.float64)
        (a, b, tx), (c, d, ty), _ = matrix.inverse().tolist()
        return torch.stack((x * a + y * b + tx, x * c + y * d + ty), -1)

    def boxes_to_original(self, boxes: Tensor) -> Tensor:
        """Input boxes (N, 4) as boxes of the original image, clipped to it."""
        left, top, right, bottom = boxes.unbind(1)
        corners = torch.stack((left, top, right, top, right, bottom, left, bottom), 1)
        out = self.points_to_original(corners.view(-1, 4, 2))
        low, high = out.amin(1), out.amax(1)
        h, w = self.original_size
        x = torch.stack((low[:, 0], high[:, 0]), 1).clamp(0, w)
        y = torch.stack((low[:, 1], high[:, 1]), 1).clamp(0, h)
        return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), 1)


@dataclass(frozen=True)
class Batch(Generic[T]):
    """What a head sees: images that are all labelled for it (or no targets at all).

    Attributes:
        images: (B, 3, H, W) float, normalised; padding is 0.
        info: one a row.
        targets: one a row, in input pixels and in the head's own labels; empty where none were asked for
            (``forward`` and ``predict`` never need them).
        mean, std: (3,) what pixels (0 ... 1, RGB) were normalised with: the backbone's statistics, or 0.5 in a pipeline
            without one; ``None`` where it is not known, which then is taken for 0.5 too.
    """

    images: Tensor
    info: tuple[ImageInfo, ...]
    targets: tuple[T, ...] = ()
    mean: Tensor | None = None
    std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.info)

    def signed(self) -> Tensor:
        """The images (B, 3, H, W) float32 in -1 ... 1, whatever they were normalised with; padding is 0."""
        if self.mean is None or self.std is None:
            return self.images.float()
        x = self.images.float() * (self.std * 2.0)[:, None, None] + (self.mean * 2.0 - 1.0)[:, None, None]
        return _blank(x, self.info)

    def rows(self, rows: Sequence[int]) -> Batch[T]:
        """The batch of just these rows."""
        if list(rows) == list(range(len(self))):
            return self
        index = constant(list(rows), self.images, torch.int64)
        return replace(
            self,
            images=self.images[index],
            info=tuple(self.info[i] for i in rows),
            targets=tuple(self.targets[i] for i in rows) if self.targets else (),
        )


@dataclass(frozen=True)
class MixedBatch:
    """What a loader yields: images of several sources, each labelled for some heads only.

    Attributes:
        images: (B, 3, H, W), uint8 until :meth:`normalised`; or float from the start, where a transform has normalised
            them already.
        info: one a row.
        targets: by head name, one a row; ``None`` where the image is not labelled for that head.
        mean, std: (3,) what :meth:`normalised` has normalised them with.
    """

    images: Tensor
    info: tuple[ImageInfo, ...]
    targets: Mapping[str, Sequence[Target | None]]
    mean: Tensor | None = None
    std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.info)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MixedBatch:
        """The same batch on another device; to a CUDA device, all of it in one transfer that is not waited for.

        A target whose class has a method ``to`` of its own moves itself, with ``non_blocking``.
        """
        own = {
            head: [t if t is None or type(t).to is Target.to else t.to(device, non_blocking) for t in targets]
            for head, targets in self.targets.items()
        }
        fields = (self.images, self.mean, self.std, own)
        tensors: dict[int, Tensor] = {}  # heads may share a target
        map_tensors(fields, lambda tensor: tensors.setdefault(id(tensor), tensor))
        moved = dict(zip(tensors, to_device(list(tensors.values()), device)))
        images, mean, std, targets = map_tensors(fields, lambda tensor: moved[id(tensor)])
        return replace(self, images=images, mean=mean, std=std, targets=targets)

    def normalised(self, mean: Tensor, std: Tensor, *, channels_last: bool = True) -> MixedBatch:
        """Images as float, ``(x / 255 - mean) / std``, with padding set to 0; those that are float already are kept.

        Args:
            mean, std: (3,) in units of 0 ... 1, RGB.
            channels_last: memory format of the result.
        """
        x = self.images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        if x.is_floating_point():
            return replace(self, images=x)
        x = (x.float() - (mean * 255.0)[:, None, None]) / (std * 255.0)[:, None, None]
        return replace(self, images=_blank(x, self.info), mean=mean, std=std)

    def mirrored(self) -> MixedBatch:
        """The same images with left and right exchanged, their padding where it was; without targets.

        ``info`` still says where pixels were before.
        """
        images = self.images.clone()
        for row, info in enumerate(self.info):
            width = info.size[1]
            images[row, :, :, :width] = self.images[row, :, :, :width].flip(-1)
        return replace(self, images=images, targets={})

    def labelled(self, head: str) -> list[int]:
        """Rows that are labelled for ``head``."""
        return [row for row, target in enumerate(self.targets.get(head, ())) if target is not None]

    def view(self, head: str, rows: Sequence[int], *, targets: bool) -> Batch:
        """What ``head`` is shown of these rows; with ``targets``, every one of them must be labelled for it."""
        batch: Batch = Batch(self.images, self.info, mean=self.mean, std=self.std).rows(rows)
        if not targets:
            return batch
        mine = [self.targets[head][row] for row in rows]
        if any(t is None for t in mine):
            raise ValueError(f"rows {list(rows)} are not all labelled for head '{head}'")
        return replace(batch, targets=tuple(mine))


def _blank(x: Tensor, infos: Sequence[ImageInfo]) -> Tensor:
    """Images (B, 3, H, W) with their padding set to 0, in place."""
    height, width = x.shape[-2:]
    for row, info in enumerate(infos):
        if info.size[0] < height:
            x[row, :, info.size[0] :, :] = 0.0
        if info.size[1] < width:
            x[row, :, :, info.size[1] :] = 0.0
    return x
