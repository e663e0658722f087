"""The fully connected CRF: closed forms, the sum over all pairs of pixels, and what it is for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visionkit.data.shapes import ShapesSource
from visionkit.errors import UserError
from visionkit.layers.dense_crf import DenseCRF, ExactFilter, GridFilter, PlaneFilter
from visionkit.types import SemanticTarget


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """A drawn scene with the noise of a camera: (3, 64, 64) float, and its label map."""
    sample = ShapesSource(images=1, seed=4, size=64, root=str(tmp_path_factory.mktemp("shapes"))).load(0, {"semantic"})
    target = sample.targets["semantic"]
    assert isinstance(target, SemanticTarget)
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    return (sample.image.float() + 4 * noise).clamp(0, 255), target.labels.long()


DATA = Path(__file__).parents[1] / "data" / "densecrf"
BOTH = {"appearance_weight": 10.0, "appearance_xy": 80.0, "appearance_rgb": 13.0,
        "smoothness_weight": 3.0, "smoothness_xy": 3.0}  # fmt: skip
PLACE = {"appearance_weight": 0.0, "smoothness_weight": 3.0, "smoothness_xy": 3.0}


def published(options: dict[str, Any], *, exact: bool | None = None) -> Tensor:
    """What the CRF makes of the reference's probabilities, at every second row and column."""
    with np.load(DATA / "io.npz") as arrays:
        image, probabilities = arrays["image"], torch.from_numpy(arrays["softmax"])
        if options.pop("matrix", False):
            options["compatibility"] = arrays["compat_matrix"].tolist()
    return DenseCRF(**options)(probabilities, torch.from_numpy(image).permute(2, 0, 1), exact=exact)[:, ::2, ::2]


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("q_unary_only_it1", {"iterations": 1, "appearance_weight": 0.0, "smoothness_weight": 0.0}),
        ("exact_gauss_it5", {"iterations": 5, **PLACE}),
        ("exact_both_it5", {"iterations": 5, **BOTH}),
    ],
)
def test_marginals_are_those_of_an_exact_mean_field(array: str, options: dict[str, Any]) -> None:
    with np.load(DATA / "io.npz") as arrays:
        want = torch.from_numpy(arrays[array])
    torch.testing.assert_close(published(dict(options), exact=True), want, rtol=0, atol=2e-4)
    by_grid = published(dict(options), exact=False)
    assert (by_grid - want).abs().mean() < 1e-4
    assert torch.equal(by_grid.argmax(0), want.argmax(0))


@pytest.mark.parametrize(
    ("array", "options"),
    [
        ("q_both_it1", {"iterations": 1, **BOTH}),
        ("q_both_it5", {"iterations": 5, **BOTH}),
        ("q_both_it10", {"iterations": 10, **BOTH}),
        ("q_gauss_it5", {"iterations": 5, **PLACE}),
        ("q_bilateral_it5", {"iterations": 5, "appearance_weight": 5.0, "appearance_xy": 20.0, "appearance_rgb": 8.0,
                             "smoothness_weight": 0.0}),
        ("q_deeplab_it10", {}),
        ("q_matrix_it5", {"iterations": 5, "appearance_weight": 1.0, "appearance_xy": 40.0, "appearance_rgb": 13.0,
                          "smoothness_weight": 1.0, "smoothness_xy": 3.0, "matrix": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exact", [True, False])
def test_labels_are_those_of_the_authors_code(array: str, options: dict[str, Any], exact: bool) -> None:
    with np.load(DATA / "io.npz") as arrays:
        want = torch.from_numpy(arrays[array])
    found = published(dict(options), exact=exact)
    assert (found.argmax(0) == want.argmax(0)).float().mean() > 0.995
    assert (found - want).abs().mean() < 2e-3  # the lattice is off by as much where two labels are level


def guess(classes: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.softmax(3 * torch.rand(classes, height, width, generator=torch.Generator().manual_seed(seed)), 0)


@pytest.mark.parametrize(("xy", "rgb"), [(67.0, 3.0), (67.0, 13.0), (20.0, 13.0)])
def test_sums_by_the_grid_are_those_over_all_pairs(scene: tuple[Tensor, Tensor], xy: float, rgb: float) -> None:
    image = scene[0][:, 10:42, 14:50]
    values = torch.cat((guess(3, 32, 36), torch.ones(1, 32, 36))).flatten(1).T.contiguous()
    got, want = GridFilter(image, xy, rgb)(values), ExactFilter(image, xy, rgb)(values)
    # Normalised, as the CRF uses them.
    torch.testing.assert_close(got[:, :3] / got[:, 3:], want[:, :3] / want[:, 3:], rtol=0, atol=1e-2)


def test_all_pairs_are_the_formula() -> None:
    image = 255 * torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(0))
    values = torch.arange(6.0)[:, None]
    want = []
    for y in range(3):
        for x in range(2):
            total = 0.0
            for v in range(3):
                for u in range(2):
                    place = ((y - v) ** 2 + (x - u) ** 2) / (2 * 1.5**2)
                    color = float((image[:, y, x] - image[:, v, u]).square().sum()) / (2 * 90.0**2)
                    total += math.exp(-place - color) * float(values[v * 2 + u])
            want.append(total)
    torch.testing.assert_close(ExactFilter(image, 1.5, 90.0)(values)[:, 0], torch.tensor(want))


def test_sums_in_the_plane_are_the_formula() -> None:
    values = torch.rand(30 * 20, 2, generator=torch.Generator().manual_seed(0))
    rows, columns = (torch.exp(-((torch.arange(n)[:, None] - torch.arange(n)) ** 2) / 8.0) for n in (30, 20))
    want = torch.einsum("yv,xu,vuc->yxc", rows, columns, values.view(30, 20, 2))
    torch.testing.assert_close(PlaneFilter((30, 20), 2.0)(values).view(30, 20, 2), want, rtol=1e-3, atol=1e-3)


def test_many_colours_make_the_grid_coarser_and_keep_it_small() -> None:
    image = 255 * torch.rand(3, 60, 80, generator=torch.Generator().manual_seed(0))
    fine, coarse = GridFilter(image, 40.0, 20.0), GridFilter(image, 40.0, 20.0, work=1 << 20)
    assert coarse.spacing > fine.spacing
    values = torch.rand(4800, 2, generator=torch.Generator().manual_seed(1))
    values[:, 1] = 1.0
    sums = [f(values) for f in (fine, coarse, ExactFilter(image, 40.0, 20.0))]
    means = [x[:, 0] / x[:, 1] for x in sums]
    assert float((means[0] - means[2]).abs().mean()) < float((means[1] - means[2]).abs().mean()) < 0.05


def test_a_grid_that_cannot_be_fine_is_coarse() -> None:
    image = 255 * torch.rand(3, 50, 60, generator=torch.Generator().manual_seed(0))
    grid = GridFilter(image, 0.5, 1.0, work=1 << 10)
    means = grid(torch.rand(3000, 1)) / grid(torch.ones(3000, 1))
    assert grid.rows * grid.columns <= 1 << 10
    assert float(means.min()) >= 0.0
    assert float(means.max()) <= 1.0 + 1e-5


@pytest.mark.parametrize("exact", [True, False])
def test_without_pairwise_energy_probabilities_stay(scene: tuple[Tensor, Tensor], exact: bool) -> None:
    probabilities = guess(4, 64, 64)
    got = DenseCRF(appearance_weight=0.0, smoothness_weight=0.0)(probabilities, scene[0], exact=exact)
    torch.testing.assert_close(got, probabilities)


@pytest.mark.parametrize("exact", [True, False])
def test_a_flat_image_is_smoothed_by_gaussians_alone(exact: bool) -> None:
    """One iteration with one kernel: evidence times exp(weight x normalised blur)."""
    probabilities, image = guess(3, 24, 30), torch.full((3, 24, 30), 77.0)
    got = DenseCRF(iterations=1, appearance_weight=2.0, appearance_xy=4.0, smoothness_weight=0.0)(
        probabilities, image, exact=exact
    )
    blur = PlaneFilter((24, 30), 4.0)
    scale = blur(torch.ones(720, 1)).rsqrt()
    support = (blur(probabilities.flatten(1).T * scale) * scale).T.reshape(3, 24, 30)
    torch.testing.assert_close(got, torch.softmax(probabilities.log() + 2.0 * support, 0), rtol=0, atol=1e-2)


def test_mean_field_by_the_grid_is_the_exact_one(scene: tuple[Tensor, Tensor]) -> None:
    image, labels = scene[0][:, :48, :48], scene[1][:48, :48]
    crf, start = DenseCRF(appearance_rgb=13.0), blurred(labels, 0)
    exact, fast = crf(start, image, exact=True), crf(start, image, exact=False)
    assert float((exact - start).abs().mean()) > 0.01
    assert float((exact - fast).abs().mean()) < 1e-2
    torch.testing.assert_close(fast.sum(0), torch.ones(48, 48))
    assert float((exact.argmax(0) == fast.argmax(0)).float().mean()) > 0.995


def blurred(labels: Tensor, seed: int) -> Tensor:
    """What a network might say: the truth at a quarter of its size, and noise."""
    classes = int(labels.max()) + 1
    height, width = labels.shape
    truth = F.one_hot(labels, classes).permute(2, 0, 1)[None].float()
    coarse = F.interpolate(F.avg_pool2d(truth, 4), size=(height, width), mode="bilinear")
    noise = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(8 * coarse + 2 * noise, 1)[0]


def mean_iou(found: Tensor, labels: Tensor) -> float:
    values = []
    for one in labels.unique():
        a, b = found == one, labels == one
        values.append(float((a & b).sum() / (a | b).sum()))
    return sum(values) / len(values)


def test_it_brings_coarse_probabilities_to_the_edges(scene: tuple[Tensor, Tensor]) -> None:
    image, labels = scene
    start = blurred(labels, 1)
    before, after = mean_iou(start.argmax(0), labels), mean_iou(DenseCRF()(start, image).argmax(0), labels)
    assert after > before + 0.05


def test_it_improves_maps_of_photographs(real_data: Path) -> None:
    gains = []
    for file in sorted((real_data / "coco_panoptic" / "panoptic").glob("*.png"))[:3]:
        (image, labels) = photograph(real_data, file)
        start = blurred(labels, 1)
        gains.append(
            mean_iou(DenseCRF(iterations=5)(start, image).argmax(0), labels) - mean_iou(start.argmax(0), labels)
        )
    assert min(gains) > 0.0
    assert sum(gains) / len(gains) > 0.04


def photograph(real_data: Path, file: Path) -> tuple[Tensor, Tensor]:
    """A photograph at a third of its size with its larger segments as classes."""
    colors = cv2.imread(str(file)).astype(np.int64)
    picture = cv2.imread(str(real_data / "coco_panoptic" / "images" / f"{file.stem}.jpg"))
    height, width = (side // 24 * 8 for side in picture.shape[:2])
    ids = (colors * [65536, 256, 1]).sum(2)[::3, ::3][:height, :width]
    _, labels, counts = np.unique(ids, return_inverse=True, return_counts=True)
    order = np.argsort(-counts)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.minimum(np.arange(len(order)), 7)
    small = cv2.resize(picture[: height * 3, : width * 3], (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1).float(), torch.from_numpy(rank[labels.reshape(height, width)])


def test_energies_of_pairs_of_labels_can_be_told(scene: tuple[Tensor, Tensor]) -> None:
    probabilities, image = guess(3, 24, 24), scene[0][:, :24, :24]
    potts = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    torch.testing.assert_close(DenseCRF(compatibility=potts)(probabilities, image), DenseCRF()(probabilities, image))
    forgiving = [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    got = DenseCRF(compatibility=forgiving)(probabilities, image)
    # Labels 0 and 1 do not mind each other, so that what is between them is what it was.
    torch.testing.assert_close(got[0] / got[1], probabilities[0] / probabilities[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_it_keeps_its_precision_where_networks_run_in_less(scene: tuple[Tensor, Tensor], exact: bool) -> None:
    probabilities, image, crf = guess(3, 24, 24), scene[0][:, :24, :24], DenseCRF(iterations=2)
    want = crf(probabilities, image, exact=exact)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(crf(probabilities, image, exact=exact), want)


@pytest.mark.gpu
def test_a_gpu_finds_the_same(scene: tuple[Tensor, Tensor]) -> None:
    image, crf = scene[0], DenseCRF(iterations=3)
    start = blurred(scene[1], 0)
    for exact in (True, False):
        want = crf(start, image, exact=exact)
        torch.testing.assert_close(crf(start.cuda(), image.cuda(), exact=exact).cpu(), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"appearance_xy": 0.0}, "appearance_xy: 0.0 is not above 0"),
        ({"smoothness_weight": -1.0}, "smoothness_weight: -1.0 is below 0"),
        ({"compatibility": [[0.0, 1.0]]}, "compatibility: 1 rows that are not all as long"),
    ],
)
def test_impossible_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DenseCRF(**options)


def test_a_compatibility_of_other_classes_is_told() -> None:
    crf = DenseCRF(compatibility=[[0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(UserError, match="compatibility: of 2 classes, but there are 3"):
        crf(guess(3, 4, 4), torch.zeros(3, 4, 4))
