"""Class probabilities of every pixel, better than one look gives them: averaged over views of the image, which is cut
into windows where it is large, and refined by a dense CRF."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.config import RefineConfig
from visionkit.errors import UserError
from visionkit.layers.dense_crf import DenseCRF
from visionkit.layers.semantic import cell_size, original_bands
from visionkit.model.graph import MultiTaskModel
from visionkit.types import ImageInfo, MixedBatch, Prediction, SemanticOutput, SemanticPrediction
from visionkit.types.device import to_device

_STRIP = 1 << 24  # pixels x classes of the original image that are averaged at once: 64 MB of float32
_TOGETHER = 4  # views that go through the network together


def predict_refined(
    model: MultiTaskModel,
    batch: MixedBatch,
    heads: Sequence[str],
    refine: Mapping[str, RefineConfig],
    *,
    size_divisor: int = 32,
) -> dict[str, Sequence[Prediction]]:
    """Predictions by head, as :meth:`MultiTaskModel.predict` gives them; those of the heads in ``refine`` as it says.

    An image is given the same predictions alone and in any batch: see :func:`predict_by_size`.

    Args:
        model: in evaluation mode.
        batch: normalised by the mean and deviation of the model.
        heads: who is asked.
        refine: by head; of heads that are not asked too.
        size_divisor: views are padded to a multiple of it.

    Raises:
        UserError: such a head does not score the classes of every pixel.
    """
    plain = [name for name in heads if name not in refine]
    found = predict_by_size(model, batch, plain, size_divisor) if plain else {}
    for name in heads:
        if name in refine:
            check_refinable(model, name)
            found[name] = [
                Refiner(model, name, refine[name], size_divisor).predict(batch.images[row], info)
                for row, info in enumerate(batch.info)
            ]
    return {name: found[name] for name in heads}


def predict_by_size(
    model: MultiTaskModel, batch: MixedBatch, heads: Sequence[str], size_divisor: int
) -> dict[str, Sequence[Prediction]]:
    """Predictions by head of images that were padded to the size of the largest of the batch.

    Only images of one size, rounded up to ``size_divisor``, go through the network together. Otherwise every
    convolution would carry what the larger images were padded with a little further into the smaller ones, and a
    prediction would depend on what else is in its batch.
    """
    height, width = (int(side) for side in batch.images.shape[-2:])
    sizes = [
        (min(height, -(-info.size[0] // size_divisor) * size_divisor),
         min(width, -(-info.size[1] // size_divisor) * size_divisor)) for info in batch.info
    ]  # fmt: skip
    if all(size == (height, width) for size in sizes):
        return model.predict(batch, heads)
    last = batch.images.is_contiguous(memory_format=torch.channels_last)
    kind = torch.channels_last if last else torch.contiguous_format
    found: dict[str, dict[int, Prediction]] = {name: {} for name in heads}
    for size in dict.fromkeys(sizes):
        rows = [row for row, other in enumerate(sizes) if other == size]
        images = batch.images[rows, :, : size[0], : size[1]].contiguous(memory_format=kind)
        part = replace(batch, images=images, info=tuple(batch.info[row] for row in rows), targets={})
        for name, predictions in model.predict(part, heads).items():
            found[name].update(zip(rows, predictions, strict=True))
    return {name: [found[name][row] for row in range(len(batch))] for name in heads}


def check_refinable(model: MultiTaskModel, name: str) -> None:
    """Raises ``UserError`` unless the head scores the classes of every pixel."""

    def can(head: str) -> bool:
        one = model.head(head)
        return issubclass(one.output, SemanticOutput) and issubclass(one.makes, SemanticPrediction)

    if not can(name):
        others = [other for other in model.order if can(other)]
        raise UserError(
            f"refine: head '{name}' makes a {model.head(name).makes.__name__}; only class probabilities of pixels can "
            f"be averaged or refined (heads that have them: {', '.join(others) or 'none'})"
        )


@dataclass(frozen=True)
class View:
    """A part of the image, scaled and mirrored.

    Attributes:
        group: views of one group are parts of one picture.
        size: (height, width) of that picture.
        flip: whether it is mirrored.
        top, left: where the part begins in it; what sticks out is filled by mirroring.
        info: the part as an image of its own.
        whole: it is the whole picture.
    """

    group: int
    size: tuple[int, int]
    flip: bool
    top: int
    left: int
    info: ImageInfo
    whole: bool

    def along(self, axis: int) -> tuple[slice, Tensor]:
        """Which rows (axis 0) or columns (1) of the original image it speaks of, and how much its word counts there:
        the more, the further from the edge of the part."""
        a, _, tx, _, d, ty = self.info.affine
        start, (scale, shift) = (self.top, self.left)[axis], ((d, ty), (a, tx))[axis]
        count, length = self.info.original_size[axis], self.info.size[axis]
        if self.whole:
            return slice(0, count), torch.ones(count)
        at = (torch.arange(count) + 0.5) * scale + shift
        # What lies beside the picture, because it was cropped, is spoken of by the part next to it.
        at = at.clamp(0.5 - start, self.size[axis] - 0.5 - start)
        inside = ((at >= 0) & (at < length)).nonzero()
        if not len(inside):
            return slice(0, 0), torch.ones(0)
        covered = slice(int(inside[0]), int(inside[-1]) + 1)
        return covered, torch.minimum(at, length - at)[covered].clamp(min=1e-3)


def views_of(info: ImageInfo, config: RefineConfig) -> list[View]:
    """All views of an image, from those of its upper rows to those of its lower ones.

    Raises:
        UserError: windows of an image that was turned.
    """
    a, b, tx, c, d, ty = info.affine
    if config.window is not None and (b or c):
        raise UserError(f"refine: {info.path or info.id} was turned, and cannot be cut into windows")
    views = []
    looks = itertools.product(config.scales, (False, True) if config.flip else (False,))
    for group, (scale, flip) in enumerate(looks):
        height, width = (max(1, round(side * scale)) for side in info.size)
        down, right = height / info.size[0], width / info.size[1]
        across = (a * right, b * right, tx * right)
        if flip:
            across = (-across[0], -across[1], width - across[2])
        rows, columns = (_cuts(side, config) for side in (height, width))
        for (top, tall), (left, wide) in itertools.product(rows, columns):
            affine = (across[0], across[1], across[2] - left, c * down, d * down, ty * down - top)
            part = replace(info, size=(tall, wide), affine=affine)
            views.append(View(group, (height, width), flip, top, left, part, config.window is None))
    return sorted(views, key=lambda view: (view.along(0)[0].start, view.group))


def _cuts(length: int, config: RefineConfig) -> list[tuple[int, int]]:
    """Where the parts along one axis begin, and how long they are. They lie evenly, from margin to margin."""
    total = length + 2 * config.margin
    if config.window is None:
        return [(-config.margin, total)]
    step = max(1, int(config.window * (1 - config.overlap)))
    count = 1 + max(0, -(-(total - config.window) // step))
    last = max(0, total - config.window)
    return [(round(i * last / max(1, count - 1)) - config.margin, config.window) for i in range(count)]


class Refiner:
    """One head on one image after the other.

    Args:
        model: in evaluation mode.
        name: of the head.
        config: how to look.
        size_divisor: views are padded to a multiple of it.
    """

    def __init__(self, model: MultiTaskModel, name: str, config: RefineConfig, size_divisor: int) -> None:
        self.model, self.name, self.config, self.size_divisor = model, name, config, size_divisor
        needed = {name}
        for other in reversed(model.order):
            if other in needed:
                needed.update(model.reads[other].values())
        self.needed = needed

    def predict(self, image: Tensor, info: ImageInfo) -> SemanticPrediction:
        """Of one normalised image (3, H, W), which may be padded."""
        image = image[:, : info.size[0], : info.size[1]]
        labels = torch.empty(info.original_size, dtype=torch.uint8, device=image.device)
        if self.config.crf is None:
            for strip, probabilities in self.strips(image, info):
                labels[strip] = probabilities.argmax(1).to(torch.uint8)
            return SemanticPrediction(labels)
        whole = torch.cat([probabilities for _, probabilities in self.strips(image, info)]).transpose(0, 1)
        pixels = torch.cat([rows for _, rows in original_bands(image, info, 1)]).transpose(0, 1)
        mean, std = (x.to(pixels)[:, None, None] for x in (self.model.mean, self.model.std))
        crf = DenseCRF(**asdict(self.config.crf))
        return SemanticPrediction(crf(whole, (pixels * std + mean) * 255).argmax(0).to(torch.uint8))

    def strips(self, image: Tensor, info: ImageInfo) -> Iterator[tuple[slice, Tensor]]:
        """Mean probabilities (rows, classes, W) of some rows of the original image at a time, from the top.

        Only the scores of views that reach into these rows are held, and only these rows at full size.
        """
        height, width = info.original_size
        waiting, held = views_of(info, self.config), list[tuple[View, Tensor, int]]()
        groups = 1 + max(view.group for view in waiting)
        step = max(1, _STRIP // (width * len(self.model.head(self.name).labels)))
        for top in range(0, height, step):
            strip = slice(top, min(top + step, height))
            due = [view for view in waiting if view.along(0)[0].start < strip.stop]
            waiting = waiting[len(due) :]
            held += self.scored(image, due)
            parts = [_blend([one for one in held if one[0].group == group], strip, width) for group in range(groups)]
            yield strip, torch.stack(parts).mean(0) if groups > 1 else parts[0]
            held = [one for one in held if one[0].along(0)[0].stop > strip.stop]

    def scored(self, image: Tensor, views: Sequence[View]) -> Iterator[tuple[View, Tensor, int]]:
        """Each view with its logits (classes, h, w) and the pixels per cell of them."""
        for _, alike in itertools.groupby(views, key=lambda view: view.info.size):
            same = list(alike)
            for some in (same[i : i + _TOGETHER] for i in range(0, len(same), _TOGETHER)):
                yield from zip(some, *self.logits(image, some))

    def logits(self, image: Tensor, views: Sequence[View]) -> tuple[Sequence[Tensor], Sequence[int]]:
        """Logits (classes, h, w) of views of one size, and the pixels per cell of each."""
        batch = MixedBatch(
            torch.stack([self.pixels(image, view) for view in views]),
            tuple(view.info for view in views),
            {},
            self.model.mean,
            self.model.std,
        )
        everything = list(range(len(views)))
        branches = self.model.branches(self.model.features(batch.images))
        output = self.model.run_heads(branches, batch, dict.fromkeys(self.needed, everything))[self.name]
        stride = cell_size(output.logits, batch.view(self.name, everything, targets=False))
        return output.logits, [stride] * len(views)

    def pixels(self, image: Tensor, view: View) -> Tensor:
        """(3, h, w) of a view, padded as the images of a batch are."""
        if view.size != tuple(image.shape[1:]):
            image = F.interpolate(image[None], size=view.size, mode="bilinear", antialias=True)[0]
        if view.flip:
            image = image.flip(2)
        height, width = view.info.size
        if (view.top, view.left, height, width) != (0, 0, *view.size):
            rows, columns = mirrored(view.top, height, view.size[0]), mirrored(view.left, width, view.size[1])
            rows, columns = to_device([rows, columns], image.device)
            image = image[:, rows][:, :, columns]
        return F.pad(image, (0, -width % self.size_divisor, 0, -height % self.size_divisor))


def mirrored(start: int, count: int, length: int) -> Tensor:
    """(count,) indices from ``start`` on into ``length`` pixels, mirrored at both ends as often as it takes."""
    index = torch.arange(start, start + count) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def _blend(parts: Sequence[tuple[View, Tensor, int]], strip: slice, width: int) -> Tensor:
    """Probabilities (rows, classes, width) of a strip, from the views of one picture that reach into it."""
    (first, logits, stride), *others = parts
    if first.whole and not others:
        return _probabilities(first, logits, stride, strip, slice(0, width))
    total = logits.new_zeros(strip.stop - strip.start, len(logits), width, dtype=torch.float32)
    weights = logits.new_zeros(strip.stop - strip.start, 1, width, dtype=torch.float32)
    for view, logits, stride in parts:
        (rows, down), (columns, across) = view.along(0), view.along(1)
        top, bottom = max(rows.start, strip.start), min(rows.stop, strip.stop)
        if top >= bottom or columns.start >= columns.stop:
            continue
        weight = (down[top - rows.start : bottom - rows.start, None] * across)[:, None].to(total.dtype)
        weight = to_device([weight], total.device)[0]
        where = slice(top - strip.start, bottom - strip.start)
        seen = _probabilities(view, logits, stride, slice(top, bottom), columns)
        total[where, :, columns] += seen * weight
        weights[where, :, columns] += weight
    return total / weights


def _probabilities(view: View, logits: Tensor, stride: int, rows: slice, columns: slice) -> Tensor:
    """(rows, classes, columns) of a rectangle of the original image, as one view sees it."""
    a, b, tx, c, d, ty = view.info.affine
    x, y = columns.start, rows.start
    affine = (a, b, tx + a * x + b * y, c, d, ty + c * x + d * y)
    size = rows.stop - rows.start, columns.stop - columns.start
    part = replace(view.info, original_size=size, affine=affine)
    return torch.cat([scores.softmax(1) for _, scores in original_bands(logits.detach(), part, stride)])
