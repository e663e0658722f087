"""Gaussian targets, their radius, the focal loss on them, and peaks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from visionkit.layers.heatmaps import (
    RadiusFormula,
    at_cells,
    cell_points,
    draw_gaussians,
    gaussian_radius,
    heatmap_focal_sum,
    local_maxima,
    top_peaks,
)

SIZES = torch.tensor([[20.0, 40.0], [7.0, 9.0], [64.0, 12.0], [1.0, 1.0]])


@pytest.fixture(scope="module")
def centernet(repository: Path) -> dict[str, Tensor]:
    with np.load(repository / "tests/data/centernet_decode/io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def cornernet(repository: Path) -> dict[str, Tensor]:
    with np.load(repository / "tests/data/cornernet_decode/io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def moved(size: Tensor, radius: float) -> Tensor:
    """IoU of a box with those whose corners are moved alike, inwards and outwards by ``radius``."""
    height, width = size.tolist()
    box = torch.tensor([[0.0, 0.0, width, height]])
    r = radius
    others = torch.tensor(
        [[r, r, width + r, height + r], [r, r, width - r, height - r], [-r, -r, width + r, height + r]]
    )
    return box_iou(box, others)[0]


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
def test_the_original_radius_is_that_of_the_authors(centernet: dict[str, Tensor], overlap: float) -> None:
    radii = gaussian_radius(centernet["radius_hw"].double(), overlap)
    torch.testing.assert_close(radii.float(), centernet[f"radius_{int(overlap * 10)}"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_the_corrected_radius_leaves_just_the_overlap(overlap: float, size: Tensor) -> None:
    radius = float(gaussian_radius(size[None].double(), overlap, "corrected"))
    assert float(moved(size, radius).min()) == pytest.approx(overlap, abs=1e-5)


@pytest.mark.parametrize(
    ("overlap", "formula", "radius"),
    [(0.7, "original", 7.356), (0.7, "corrected", 2.155), (0.3, "original", 13.56), (0.3, "corrected", 5.78)],
)
def test_the_two_formulas_differ_as_is_known(overlap: float, formula: RadiusFormula, radius: float) -> None:
    assert float(gaussian_radius(SIZES[:1], overlap, formula)) == pytest.approx(radius, abs=0.005)


def test_gaussians_are_drawn_as_the_authors_do(centernet: dict[str, Tensor]) -> None:
    points = centernet["draw_points"].long()
    shape = (1, *centernet["drawn"].shape)
    drawn = draw_gaussians(shape, torch.zeros(len(points), dtype=torch.int64), points[:, :2], points[:, 2])
    torch.testing.assert_close(drawn[0], centernet["drawn"], rtol=0, atol=1e-6)


def test_each_gaussian_goes_into_its_own_map_and_the_larger_wins() -> None:
    cells = torch.tensor([[3, 2], [5, 2], [3, 2]])
    maps = draw_gaussians((2, 6, 9), torch.tensor([0, 0, 1]), cells, torch.tensor([2, 2, 0]))
    near = math.exp(-1 / (2 * (5 / 6) ** 2))
    assert maps[0, 2, 3] == maps[0, 2, 5] == maps[1, 2, 3] == 1
    assert float(maps[0, 2, 4]) == pytest.approx(near)  # not twice as much
    assert int((maps[1] > 0).sum()) == 1


def test_nothing_is_drawn_where_there_is_nothing() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert not draw_gaussians((2, 3, 4), none, none.view(0, 2), none).any()


def test_the_focal_loss_is_that_of_the_authors(cornernet: dict[str, Tensor]) -> None:
    target = cornernet["loss_gt_heat"]
    loss = heatmap_focal_sum(cornernet["tl_heat"], target) / (target == 1).sum()
    assert float(loss) == pytest.approx(float(cornernet["loss_focal"]), rel=1e-5)


def test_the_focal_loss_forgives_near_an_object_and_in_crowds() -> None:
    logits, target = torch.zeros(1, 1, 1, 3), torch.tensor([[[[0.0, 0.5, 1.0]]]])
    far = 0.25 * math.log(2)
    assert float(heatmap_focal_sum(logits, target)) == pytest.approx(far * (1 + 0.5**4 + 1))
    counted = torch.tensor([[[[0.0, 1.0, 0.0]]]])  # what is positive stays so
    assert float(heatmap_focal_sum(logits, target, counted)) == pytest.approx(far * (0.5**4 + 1))


def test_extreme_logits_still_have_gradients() -> None:
    logits = torch.tensor([[[[-60.0, 60.0]]]], requires_grad=True)
    heatmap_focal_sum(logits, torch.tensor([[[[1.0, 0.0]]]])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs() > 0.5).all()


def test_peaks_are_the_maxima_of_three_by_three(centernet: dict[str, Tensor]) -> None:
    heat = centernet["hm"]
    assert torch.equal(torch.where(local_maxima(heat), heat, 0.0)[0], centernet["hm_nms"])


@pytest.mark.parametrize(("size", "count"), [(3, 25), (1, 400), (5, 7)])
def test_the_highest_peaks_are_those_of_sorting_everything(size: int, count: int) -> None:
    heat = torch.randn(2, 5, 9, 11, generator=torch.Generator().manual_seed(0))
    height, channel, cell = top_peaks(heat, count, size)
    maxima = torch.where(local_maxima(heat, size), heat, -torch.inf)
    n = min(count, heat[0].numel())
    assert torch.equal(height, maxima.flatten(1).sort(descending=True).values[:, :n])
    rows = torch.arange(2)[:, None].expand_as(cell)
    there = height > -torch.inf
    assert torch.equal(heat.flatten(2)[rows, channel, cell][there], height[there])


def test_cells_are_read_by_row_and_column() -> None:
    maps = torch.arange(2 * 3 * 4, dtype=torch.float32).view(1, 2, 3, 4)
    cells = torch.tensor([[0, 5, 11]])
    assert at_cells(maps, cells).tolist() == [[[0, 12], [5, 17], [11, 23]]]
    assert cell_points(cells, 4).tolist() == [[[0, 0], [1, 1], [3, 2]]]
