"""Pictures as targets and predictions: they follow their image, and come back at its original size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visionkit.data.geometry import Geometry
from visionkit.types import ImageInfo, LabelSet, PicturePrediction, PictureTarget

NOTHING = LabelSet(())


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8))


def info(original: tuple[int, int], size: tuple[int, int]) -> ImageInfo:
    return ImageInfo(
        id=1,
        path="",
        original_size=original,
        size=size,
        affine=(size[1] / original[1], 0, 0, 0, size[0] / original[0], 0),
    )


def test_a_picture_follows_its_image() -> None:
    picture = noise(40, 60)
    moved = PictureTarget(picture).moved(Geometry((10, 4, 50, 36), (32, 40), mirror=True))
    assert torch.equal(moved.picture, picture[:, 4:36, 10:50].flip(2))
    small = PictureTarget(picture).moved(Geometry((0, 0, 60, 40), (20, 30)))
    np.testing.assert_allclose(small.picture.float().mean(), picture.float().mean(), atol=3.0)


def test_padding_lies_in_the_middle_of_the_range_as_that_of_images_does() -> None:
    padded = PictureTarget(noise(5, 7)).padded((8, 12))
    assert padded.picture.shape == (3, 8, 12)
    assert float(padded.signed()[:, 5:].abs().max()) < 0.005
    assert torch.equal(padded.picture[:, :5, :7], noise(5, 7))


def test_every_byte_survives_the_way_through_the_range_of_a_generator() -> None:
    target = PictureTarget(noise(16, 16))
    assert float(target.signed().min()) >= -1.0
    assert float(target.signed().max()) <= 1.0
    again = PicturePrediction.from_signed(target.signed(), info((16, 16), (16, 16)))
    assert torch.equal(again.bytes(), target.picture)


def test_what_is_made_of_a_padded_batch_has_the_original_size() -> None:
    made = torch.full((3, 64, 64), -1.0)
    made[:, :32, :48] = 1.0  # the image; the rest is padding
    prediction = PicturePrediction.from_signed(made, info((64, 96), (32, 48)))
    assert prediction.picture.shape == (3, 64, 96)
    assert float(prediction.picture.min()) == 1.0


def test_it_is_drawn_in_place_of_the_image_and_written_as_it_is() -> None:
    target = PictureTarget(noise(12, 20))
    made = PicturePrediction.from_target(target, info((12, 20), (12, 20)), NOTHING)
    image = np.zeros((12, 20, 3), np.uint8)
    pixels = target.picture.permute(1, 2, 0).numpy()
    for drawn in (target.draw(image, NOTHING), made.draw(image, NOTHING), made.files()[""]):
        np.testing.assert_array_equal(drawn, pixels)
    assert target.draw(np.zeros((24, 40, 3), np.uint8), NOTHING).shape == (24, 40, 3)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4)])
def test_what_is_no_picture_is_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="a picture must be"):
        PictureTarget(wrong)
    with pytest.raises(ValueError, match="a picture must be"):
        PicturePrediction(wrong[0] if wrong.dtype != torch.uint8 else wrong)
