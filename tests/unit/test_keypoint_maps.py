"""Keypoints to maps and back."""

from __future__ import annotations

import math

import pytest
import torch

from visionkit.layers.keypoint_maps import keypoint_maps, keypoint_peaks, mirrored_maps


def points(count: int, *, seed: int = 0, low: float = 8.0, high: float = 40.0) -> torch.Tensor:
    """(count, 1, 3) keypoints in cells, all labelled."""
    xy = torch.rand(count, 1, 2, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    return torch.cat((xy, torch.full((count, 1, 1), 2.0)), -1)


def test_a_gaussian_has_height_one_in_the_cell_of_its_keypoint_and_the_known_values_around_it() -> None:
    maps, weights = keypoint_maps(torch.tensor([[[20.9, 10.1, 1.0]]]), (32, 48), 2.0)

    assert weights.tolist() == [[1.0]]
    row = maps[0, 0, 10]
    assert row.argmax() == 20
    for distance, value in {0: 1.0, 1: 0.8825, 2: 0.6065, 6: 0.0111, 7: 0.0}.items():
        assert float(row[20 + distance]) == pytest.approx(value, abs=5e-5)
        assert float(row[20 - distance]) == pytest.approx(value, abs=5e-5)
    assert float(maps[0, 0, 4, 14]) == pytest.approx(math.exp(-72 / 8), rel=1e-4)  # the corner of the patch


def test_maps_equal_a_gaussian_drawn_cell_by_cell() -> None:
    (x, y), sigma = (5.3, 2.8), 1.5
    for encoding, (cx, cy) in {"nearest": (5.5, 2.5), "unbiased": (x, y)}.items():
        maps, _ = keypoint_maps(torch.tensor([[[x, y, 2.0]]]), (9, 11), sigma, encoding)  # type: ignore[arg-type]
        for row in range(9):
            for column in range(11):
                dx, dy = column + 0.5 - cx, row + 0.5 - cy
                value = math.exp(-(dx**2 + dy**2) / (2 * sigma**2))
                if encoding == "nearest" and max(abs(dx), abs(dy)) > 4:
                    value = 0.0
                assert float(maps[0, 0, row, column]) == pytest.approx(value, abs=1e-6)


def test_keypoints_that_are_not_labelled_or_far_outside_weigh_nothing() -> None:
    keypoints = torch.tensor(
        [[[5.0, 5.0, 0.0], [5.0, 5.0, 1.0], [-3.0, 5.0, 2.0], [-30.0, 5.0, 2.0], [5.0, 99.0, 2.0]]]
    )

    maps, weights = keypoint_maps(keypoints, (16, 16), 2.0)

    assert weights.tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]
    assert maps[0].amax((1, 2))[[0, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    assert 0 < float(maps[0, 2].max()) < 1  # only the side of the Gaussian reaches in


@pytest.mark.parametrize(
    ("encoding", "decoding", "worst"),
    [("nearest", "quarter", 0.5), ("unbiased", "quarter", 0.2501), ("unbiased", "dark", 0.002)],
)
def test_the_way_there_and_back_misses_by_no_more_than_is_known(encoding, decoding, worst) -> None:  # type: ignore[no-untyped-def]
    keypoints = points(400)

    maps, _ = keypoint_maps(keypoints, (48, 48), 2.0, encoding)
    found, values = keypoint_peaks(maps, decoding, 2.0)

    error = (found - keypoints[..., :2]).abs()
    assert float(error.max()) <= worst
    assert float(values.min()) > 0.9


def test_dark_finds_a_tilted_gaussian_that_a_quarter_of_a_cell_misses() -> None:
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    u, v = x - 20.37, y - 25.81
    maps = (-(u.square() / 12 + v.square() / 7 + u * v / 14)).exp()[None, None]

    dark, _ = keypoint_peaks(maps, "dark", 2.0)
    quarter, _ = keypoint_peaks(maps, "quarter")

    assert float((dark[0, 0] - torch.tensor((20.37, 25.81))).norm()) < 0.01
    assert float((quarter[0, 0] - torch.tensor((20.37, 25.81))).norm()) > 0.05


@pytest.mark.parametrize("decoding", ["quarter", "dark"])
def test_peaks_at_edges_and_on_flat_maps_stay_where_they_are(decoding) -> None:  # type: ignore[no-untyped-def]
    maps = torch.zeros(1, 3, 6, 7)
    maps[0, 1, 0, 6] = 1.0
    maps[0, 2, 5, 0] = 1.0

    found, values = keypoint_peaks(maps, decoding)

    assert bool(found.isfinite().all())
    assert found[0, 1:].tolist() == [[6.5, 0.5], [0.5, 5.5]]
    assert values.tolist() == [[0.0, 1.0, 1.0]]


def test_mirrored_maps_are_those_of_mirrored_keypoints_with_left_and_right_exchanged() -> None:
    keypoints = torch.tensor([[[5.2, 3.9, 2.0], [14.0, 8.3, 2.0], [9.1, 6.0, 2.0]]])
    there = keypoints.clone()
    there[..., 0] = 20 - there[..., 0]
    there = there[:, [1, 0, 2]]  # a mirrored left one is a right one

    maps, _ = keypoint_maps(keypoints, (16, 20), 1.5, "unbiased")
    seen, _ = keypoint_maps(there, (16, 20), 1.5, "unbiased")

    torch.testing.assert_close(mirrored_maps(seen, [(0, 1)]), maps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mirrored_maps(mirrored_maps(maps, [(0, 1)]), [(0, 1)]), maps)
