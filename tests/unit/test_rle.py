"""Crops of masks are encoded exactly as pycocotools encodes the full bitmap."""

import numpy as np
import pytest
from pycocotools import mask as reference

from visionkit import rle


def pasted(crop, left, top, height, width):
    full = np.zeros((height, width), np.uint8, order="F")
    full[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return full


def random_crop(rng):
    """A crop somewhere in a small image: often at a border, often as high as the image, sometimes empty or full."""
    height, width = rng.integers(1, 13, 2)
    h = height if rng.random() < 0.3 else rng.integers(0, height + 1)
    w = width if rng.random() < 0.3 else rng.integers(0, width + 1)
    top = rng.choice([0, height - h, rng.integers(0, height - h + 1)])
    left = rng.choice([0, width - w, rng.integers(0, width - w + 1)])
    crop = (rng.random((h, w)) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])).astype(np.uint8)
    return crop, int(left), int(top), int(height), int(width)


def test_a_crop_is_encoded_as_the_full_bitmap():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        crop, left, top, height, width = random_crop(rng)
        full = pasted(crop, left, top, height, width)
        expected = reference.encode(full)
        assert rle.encode_crop(crop, left, top, height, width) == expected
        assert rle.encode_crop(crop.astype(bool), left, top, height, width) == expected
        assert rle.encode(full) == expected
        np.testing.assert_array_equal(rle.decode(expected), full)


def test_crops_of_one_image_together_equal_each_alone():
    rng = np.random.default_rng(1)
    crops = [(rng.random((h, 5)) < 0.5) for h in (1, 7, 20)]
    corners = [(0, 0), (3, 13), (25, 0)]
    together = rle.encode_crops(crops, corners, 20, 30)
    assert together == [rle.encode_crop(c, *corner, 20, 30) for c, corner in zip(crops, corners)]
    assert rle.encode_crops([], [], 20, 30) == []


def test_runs_longer_than_sixteen_bits_survive():
    crop = np.ones((2, 3), bool)
    assert rle.encode_crop(crop, 995, 1998, 2000, 1000) == reference.encode(pasted(crop, 995, 1998, 2000, 1000))


@pytest.mark.parametrize(("left", "top"), [(-1, 0), (0, -1), (3, 0), (0, 3)])
def test_a_crop_outside_the_image_is_refused(left, top):
    with pytest.raises(ValueError, match=r"2x2 pixels at .* image of 4x4"):
        rle.encode_crop(np.ones((2, 2)), left, top, 4, 4)


def test_every_form_of_segmentation_gives_the_same_mask():
    polygons = [[1.0, 1.0, 8.0, 1.5, 7.0, 9.0], [2, 2, 12, 2, 12, 11, 2, 11]]
    compressed = reference.merge(reference.frPyObjects(polygons, 14, 15))
    assert rle.from_polygons(polygons, 14, 15) == compressed
    full = reference.decode(compressed)
    flat = full.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    uncompressed = {"size": [14, 15], "counts": counts}
    assert rle.from_uncompressed(uncompressed) == compressed
    text = {"size": [14, 15], "counts": compressed["counts"].decode()}
    for form in (polygons, uncompressed, text, compressed):
        assert rle.from_segmentation(form, 14, 15) == compressed
    for form in (uncompressed, text, compressed):
        np.testing.assert_array_equal(rle.decode(form), full)


def test_wrong_segmentations_are_refused():
    with pytest.raises(ValueError, match="add up to 5, not to 2 x 3 = 6"):
        rle.from_uncompressed({"size": [2, 3], "counts": [2, 3]})
    with pytest.raises(ValueError, match="three or more x, y pairs, not 4 numbers"):
        rle.from_polygons([[0, 0, 1, 1]], 4, 4)


def test_areas_and_boxes():
    masks = [rle.encode_crop(np.ones((3, 2)), 4, 1, 10, 12), rle.empty(10, 12), rle.from_polygons([], 10, 12)]
    assert rle.area(masks).tolist() == [6, 0, 0]
    assert rle.to_boxes(masks).tolist() == [[4, 1, 6, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rle.area([]).shape == (0,)
    assert rle.to_boxes([]).shape == (0, 4)


def test_areas_of_many_masks() -> None:
    mask = np.zeros((4, 5), np.uint8)
    mask[1:3, 1:4] = 1
    assert rle.area([rle.encode(mask)] * 300).tolist() == [6] * 300
    assert rle.area([]).tolist() == []
