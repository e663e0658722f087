"""The fully connected CRF (Krähenbühl and Koltun, NeurIPS 2011): class probabilities that follow the edges of an image.

Its mean field needs, ten times over, for every pixel i the sum of ``exp(-|f_i - f_j|^2 / 2) q_j`` over all pixels j, in
five dimensions. :class:`ExactFilter` adds just that up. :class:`GridFilter` does it in time that grows with the pixels
alone: it spreads them onto a grid, adds up there, and reads off.

The grid has few nodes in the plane of the image, where the kernel is wide, and is sparse in colours, of which an image
has few. Linear interpolation to nodes ``h`` standard deviations apart is itself a blur, of variance h^2 / 6 on average
at either end; the kernel between nodes is so much narrower, and it goes straight from node to node. (The permutohedral
lattice blurs from neighbour to neighbour instead, and loses what passes through nodes that no pixel has touched.)
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.errors import UserError
from visionkit.types.device import to_device, without_autocast

_FINEST, _COARSER = 0.3, 1.2  # spacing of the grid in standard deviations, and what it grows by where nodes are many
_NODES, _WORK = 3 << 19, 3 << 26  # nodes of a grid, and pairs of nodes near each other, at most
_SIDE = 272  # of the table that nodes are looked up in: 252 along an axis, and room for the reach of a kernel
_REACH = 3.5  # standard deviations after which a kernel ends: less than 1 % of a Gaussian in 3-D lies beyond
_SMALL = 1 << 12  # pixels up to which all pairs are added up
_CLASSES = 32  # that go through a filter together


class DenseCRF:
    """Refines class probabilities by the colours of the image.

    The pairwise energy of two pixels is ``appearance_weight`` times a Gaussian of place and colour plus
    ``smoothness_weight`` times one of place, for two labels that differ (section 2). Both kernels are normalised
    symmetrically, ``k_ij / sqrt(sum_j k_ij sum_i k_ij)``, and a pixel is among its own neighbours, as in the code of
    the authors. The default values are those of DeepLab's public version for ResNet-101.

    Args:
        iterations: of the mean field.
        appearance_weight, appearance_xy, appearance_rgb: weight, standard deviations in pixels and in levels of 255.
        smoothness_weight, smoothness_xy: likewise, of the Gaussian of place alone.
        compatibility: (classes, classes) energy of each pair of labels; ``None``: 1 where they differ (Potts).

    Raises:
        UserError: a deviation that is not positive, a negative weight, a compatibility that is not square.
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        appearance_weight: float = 4.0,
        appearance_xy: float = 67.0,
        appearance_rgb: float = 3.0,
        smoothness_weight: float = 3.0,
        smoothness_xy: float = 1.0,
        compatibility: Sequence[Sequence[float]] | None = None,
    ) -> None:
        widths = {"appearance_xy": appearance_xy, "appearance_rgb": appearance_rgb, "smoothness_xy": smoothness_xy}
        weights = {"appearance_weight": appearance_weight, "smoothness_weight": smoothness_weight}
        for name, value in widths.items():
            if not value > 0:
                raise UserError(f"{name}: {value} is not above 0")
        for name, value in {**weights, "iterations": iterations}.items():
            if value < 0:
                raise UserError(f"{name}: {value} is below 0")
        self.iterations = iterations
        self.appearance_weight, self.smoothness_weight = appearance_weight, smoothness_weight
        self.appearance_xy, self.appearance_rgb, self.smoothness_xy = appearance_xy, appearance_rgb, smoothness_xy
        self.compatibility: Tensor | None = None
        if compatibility is not None:
            if any(len(row) != len(compatibility) for row in compatibility):
                raise UserError(f"compatibility: {len(compatibility)} rows that are not all as long")
            self.compatibility = torch.tensor([list(row) for row in compatibility], dtype=torch.float32)

    @torch.no_grad()
    def __call__(self, probabilities: Tensor, image: Tensor, *, exact: bool | None = None) -> Tensor:
        """Probabilities after the mean field (algorithm 1).

        Args:
            probabilities: (classes, H, W) of each pixel, adding up to 1.
            image: (3, H, W) in 0 ... 255.
            exact: add up all pairs of pixels; ``None``: only in images of up to 4096 pixels.

        Returns:
            (classes, H, W), adding up to 1.

        Raises:
            UserError: a compatibility of another number of classes.
        """
        classes, height, width = probabilities.shape
        if image.shape[1:] != (height, width):
            raise ValueError(f"probabilities of {height}x{width} pixels, an image of {tuple(image.shape[1:])}")
        if self.compatibility is not None and len(self.compatibility) != classes:
            raise UserError(f"compatibility: of {len(self.compatibility)} classes, but there are {classes}")
        with without_autocast(image.device):  # sums over thousands of pixels want all their digits
            q = self._mean_field(
                probabilities.permute(1, 2, 0).reshape(-1, classes).float(),
                list(self._kernels(image.float(), height * width <= _SMALL if exact is None else exact)),
            )
        return q.T.reshape(classes, height, width)

    def _mean_field(self, q: Tensor, kernels: Sequence[tuple[float, Normalised]]) -> Tensor:
        """Of probabilities (pixels, classes)."""
        evidence = q.clamp(min=1e-8).log()
        for _ in range(self.iterations if kernels else 0):
            support = torch.stack([weight * kernel(q) for weight, kernel in kernels]).sum(0)
            if self.compatibility is not None:
                support = -support @ self.compatibility.to(support).T
            q = torch.softmax(evidence + support, 1)
        return q

    def _kernels(self, image: Tensor, exact: bool) -> Iterator[tuple[float, Normalised]]:
        """Both kernels with their weights; none whose weight is 0."""
        if self.appearance_weight:
            of = ExactFilter if exact else GridFilter
            yield self.appearance_weight, Normalised(of(image, self.appearance_xy, self.appearance_rgb), image)
        if self.smoothness_weight:
            yield self.smoothness_weight, Normalised(PlaneFilter(image.shape[1:], self.smoothness_xy), image)


class Normalised:
    """A filter with symmetric normalisation: of values (pixels, channels)."""

    def __init__(self, filtered: ExactFilter | GridFilter | PlaneFilter, image: Tensor) -> None:
        self.filtered = filtered
        self.scale = filtered(image.new_ones(image[0].numel(), 1)).rsqrt()

    def __call__(self, values: Tensor) -> Tensor:
        return self.filtered(values * self.scale).mul_(self.scale)


class PlaneFilter:
    """Sums over all pixels, weighted by a Gaussian of their distance in the plane: two sums along the axes.

    Args:
        size: (height, width).
        xy: standard deviation in pixels.
    """

    def __init__(self, size: Sequence[int], xy: float) -> None:
        self.height, self.width = size
        self.radius = math.ceil((_REACH + 0.5) * xy)
        self.weights = torch.exp(-0.5 * (torch.arange(-self.radius, self.radius + 1) / xy) ** 2)

    def __call__(self, values: Tensor) -> Tensor:
        """Of values (H * W, channels)."""
        channels = values.shape[1]
        x = values.reshape(1, self.height, self.width, channels).permute(0, 3, 1, 2)
        kernel = to_device([self.weights.to(values.dtype)], values.device)[0].expand(channels, 1, -1)
        x = F.conv2d(x, kernel[..., None], padding=(self.radius, 0), groups=channels)
        x = F.conv2d(x, kernel[:, :, None], padding=(0, self.radius), groups=channels)
        return x.permute(0, 2, 3, 1).reshape(-1, channels)


class ExactFilter:
    """Sums over all pixels, weighted by a Gaussian of their distance in place and colour; all pairs, in blocks.

    Args:
        image: (3, H, W).
        xy, rgb: standard deviations in pixels and in units of the image.
    """

    def __init__(self, image: Tensor, xy: float, rgb: float) -> None:
        rows, columns = (torch.arange(side, device=image.device) / xy for side in image.shape[1:])
        place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).to(image)
        self.features = torch.cat((place, image / rgb)).flatten(1).T.contiguous()
        self.weights = self.kernel(self.features) if len(self.features) <= _SMALL else None

    def __call__(self, values: Tensor) -> Tensor:
        """Of values (H * W, channels)."""
        if self.weights is not None:
            return self.weights @ values
        blocks = self.features.split(max(1, _SMALL * _SMALL // len(self.features)))
        return torch.cat([self.kernel(block) @ values for block in blocks])

    def kernel(self, features: Tensor) -> Tensor:
        """(n, H * W) weights of all pixels at the n places with these features."""
        # Differences, not products: |a|^2 + |b|^2 - 2 a b has lost the small distances.
        distance = torch.cdist(features, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        return distance.square_().mul_(-0.5).exp_()


class GridFilter:
    """The same sums by way of a grid, as fine as a fixed number of nodes allows.

    Its error in a normalised sum of values in 0 ... 1 is below 0.01 where nodes are 0.3 standard deviations apart: in
    small images. In a photograph of 480x640 it is that on average; nodes are about one deviation apart then. Where an
    image has too many colours for that, or ``xy`` is only a few pixels, they are put further apart, and the kernel gets
    as wide as the cells are.

    Args:
        image: (3, H, W).
        xy, rgb: standard deviations in pixels and in units of the image.
        work: pairs of nodes near each other, at most.
    """

    def __init__(self, image: Tensor, xy: float, rgb: float, *, work: int = _WORK) -> None:
        colors = image.flatten(1).T / rgb
        self.spacing = _finest(colors - colors.amin(0), image.shape[1:], xy, work)
        step = _in_plane(self.spacing) * xy
        (below, share), (left, part) = (_between(side, step, image.device) for side in image.shape[1:])
        self.rows, self.columns = int(below.max()) + 1, int(left.max()) + 1

        where, weights = _in_tetrahedra((colors - colors.amin(0)) / self.spacing)
        colors_at, corner = torch.unique(where, return_inverse=True)
        place = (below[:, None, :, None] * self.columns + left[None, :, None, :]).flatten(0, 1).flatten(1)
        near = (share[:, None, :, None] * part[None, :, None, :]).flatten(0, 1).flatten(1)
        index = (corner[:, :, None] * (self.rows * self.columns) + place[:, None, :]).flatten(1)
        self.read = _Sum(index, (weights[:, :, None] * near[:, None, :]).flatten(1))
        self.spread = self.read.transposed(len(colors_at) * self.rows * self.columns)

        rows, columns = (_between_nodes(count, step / xy, image) for count in (self.rows, self.columns))
        # One product is faster than two where the plane has few nodes. With each, how many nodes stand together.
        self.in_plane = [(rows, self.columns), (columns, 1)]
        if self.rows * self.columns <= 256:
            self.in_plane = [(torch.kron(rows, columns), 1)]
        self.between_colors = _between_colors(colors_at, self.spacing, image)

    def __call__(self, values: Tensor) -> Tensor:
        """Of values (H * W, channels)."""
        return torch.cat([self._few(part.contiguous()) for part in values.split(_CLASSES, 1)], 1)

    def _few(self, values: Tensor) -> Tensor:
        channels = values.shape[1]
        x = self.spread(values)
        for kernel, together in self.in_plane:
            x = kernel @ x.view(-1, len(kernel), together * channels)
        x = self.between_colors(x.view(-1, self.rows * self.columns * channels))
        return self.read(x.view(-1, channels))


class _Sum:
    """Weighted sums of rows: a sparse matrix, as what ``embedding_bag`` calls bags.

    Args:
        index: (n, k) int64 rows that each sum is over; or (total,), with ``first``.
        weights: of the same shape.
        first: (n + 1,) where each sum begins in ``index``.
    """

    def __init__(self, index: Tensor, weights: Tensor, first: Tensor | None = None) -> None:
        kind = torch.int64 if first is not None and int(first[-1]) >= 1 << 31 else torch.int32
        self.index, self.weights = index.to(kind).contiguous(), weights.contiguous()
        self.first = None if first is None else first.to(kind)

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, channels) from rows (r, channels)."""
        return F.embedding_bag(
            self.index, rows, self.first, mode="sum", per_sample_weights=self.weights.to(rows),
            include_last_offset=self.first is not None,
        )  # fmt: skip

    def transposed(self, rows: int) -> _Sum:
        """The transposed matrix of a (n, k) one, which has so many ``rows``."""
        index, order = self.index.flatten().sort()
        counts = torch.bincount(index, minlength=rows)
        first = F.pad(counts.cumsum(0), (1, 0))
        return _Sum(order // self.index.shape[1], self.weights.flatten()[order], first)


def _finest(colors: Tensor, size: Sequence[int], xy: float, work: int) -> float:
    """The smallest spacing, in standard deviations, that takes no more nodes and work than there may be."""
    finest = max(_FINEST, float(colors.max()) / 250)
    spacings = [finest * _COARSER**i for i in range(32)]

    def fits(spacing: float) -> bool:
        where, _ = _in_tetrahedra(colors / spacing)
        touched = int((torch.bincount(where.flatten()) > 0).sum())
        nodes = touched * math.prod(int(side / (_in_plane(spacing) * xy)) + 2 for side in size)
        return nodes <= _NODES and nodes * len(_ball(spacing, colors.device)) <= work

    return spacings[min(bisect_left(spacings, True, key=fits), len(spacings) - 1)]


def _in_plane(spacing: float) -> float:
    """Of nodes in the plane, which stay closer than those of colours where these are far apart."""
    return min(spacing, max(1.0, spacing / 1.2))


def _strides(device: torch.device) -> Tensor:
    return to_device([torch.tensor([_SIDE * _SIDE, _SIDE, 1])], device)[0]


def _between(side: int, step: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The two nodes that each of ``side`` pixels lies between, (side, 2), and its shares in them."""
    at = torch.arange(side, device=device) / step
    first = at.floor()
    part = at - first
    return torch.stack((first, first + 1), 1).long(), torch.stack((1 - part, part), 1)


def _in_tetrahedra(colors: Tensor) -> tuple[Tensor, Tensor]:
    """The four nodes of the tetrahedron that each colour lies in, as (N, 4) keys, and its shares in them.

    Every cube is cut into six along a diagonal. Neighbouring cubes mirror each other (Todd's triangulation J1), so that
    what the cuts prefer as a direction cancels out.
    """
    base = colors.floor()
    odd = base.remainder(2)
    part = torch.where(odd > 0, 1 - (colors - base), colors - base)
    largest, order = part.sort(1, descending=True)
    moves = ((1 - 2 * odd).long() * _strides(colors.device)).gather(1, order)
    first = ((base + odd).long() * _strides(colors.device)).sum(1, keepdim=True)
    ends = F.pad(largest, (1, 1))
    ends[:, 0] = 1
    return torch.cat((first, first + moves.cumsum(1)), 1), ends[:, :-1] - ends[:, 1:]


def _variance(spacing: float) -> float:
    """Of the kernel between nodes, in units of the spacing: of the whole, less what interpolation adds at both ends."""
    return max(1 - spacing**2 / 3, 1e-3) / spacing**2


def _between_nodes(count: int, spacing: float, like: Tensor) -> Tensor:
    """(count, count) kernel between the nodes of one axis of the plane."""
    at = torch.arange(count, device=like.device)
    variance = _variance(spacing)
    return torch.exp(-0.5 * (at[:, None] - at).square() / variance).to(like) / math.sqrt(variance * spacing**2)


def _ball(spacing: float, device: torch.device) -> Tensor:
    """(n, 3) int64 steps from a node to all that its kernel reaches."""
    radius = int(_REACH * math.sqrt(_variance(spacing)))
    axis = torch.arange(-radius, radius + 1, device=device)
    steps = torch.cartesian_prod(axis, axis, axis)
    return steps[steps.square().sum(1) <= _REACH**2 * _variance(spacing)]


def _between_colors(keys: Tensor, spacing: float, like: Tensor) -> _Sum:
    """The kernel between nodes of colours, given their keys in ascending order."""
    variance, steps = _variance(spacing), _ball(spacing, keys.device)
    weights = torch.exp(-0.5 * steps.square().sum(1) / variance).to(like) / (variance * spacing**2) ** 1.5
    moves = (steps * _strides(keys.device)).sum(1)

    margin = int(moves.max())
    table = torch.full((int(keys[-1]) + 2 * margin + 1,), -1, dtype=torch.int32, device=keys.device)
    table[keys + margin] = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
    found = []
    for some in (keys + margin).split(max(1, (1 << 22) // len(moves))):
        other = table[some[:, None] + moves]
        hit = other >= 0
        found.append((other[hit], weights.expand(hit.shape)[hit], hit.sum(1)))
    other, near, counts = (torch.cat(part) for part in zip(*found))
    return _Sum(other, near, F.pad(counts.cumsum(0), (1, 0)))
