"""Visualizations of large images: of bounded size, with everything where it is in the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from visionkit.draw import comparison, draw_prediction, encode_image, overlay, visualization
from visionkit.draw.canvas import bounded
from visionkit.draw.shrink import shrink
from visionkit.types import (
    InstanceMasks,
    InstanceTarget,
    KeypointPrediction,
    LabelSet,
    MaskPrediction,
    PanopticPrediction,
    Prediction,
    SemanticPrediction,
)

LABELS = LabelSet(("sky", "car"), things=(False, True))
HEIGHT, WIDTH = 1000, 5000


def block(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


@dataclass
class Plugin(Prediction):
    def draw(self, image: np.ndarray, labels: LabelSet) -> np.ndarray:
        assert image.shape == (HEIGHT, WIDTH, 3)  # a plugin's prediction is in the pixels of the original image
        out = image.copy()
        out[:, WIDTH // 2 :] = (255, 0, 0)
        return out


def everything() -> dict[str, Prediction]:
    box = torch.tensor([[2500.0, 250.0, 3750.0, 750.0]])
    common = {"boxes": box, "scores": torch.ones(1), "labels": torch.tensor([1])}
    mask = block(250, 2500, 500, 1250)
    return {
        "masks": MaskPrediction(**common, rles=InstanceMasks.from_dense(torch.from_numpy(mask)[None]).to_rles()),
        "points": KeypointPrediction(**common, keypoints=torch.tensor([[[3000.0, 500.0, 1.0]]])),
        "semantic": SemanticPrediction(torch.from_numpy(mask)),
        "panoptic": PanopticPrediction(torch.from_numpy(mask).int(), torch.tensor([1]), torch.ones(1)),
        "plugin": Plugin(),
    }


def test_everything_is_scaled_with_the_image() -> None:
    items = everything()
    size = (200, 1000)
    masks = shrink(items["masks"], (HEIGHT, WIDTH), size)
    assert masks.boxes.tolist() == [[500, 50, 750, 150]]
    (small,) = InstanceMasks.from_rles(masks.rles, size).dense().numpy()
    assert (small == block(250, 2500, 500, 1250)[::5, ::5]).all()
    points = shrink(items["points"], (HEIGHT, WIDTH), size)
    assert points.keypoints.tolist() == [[[600, 100, 1]]]
    semantic = shrink(items["semantic"], (HEIGHT, WIDTH), size)
    assert (semantic.labels.numpy() == block(250, 2500, 500, 1250)[::5, ::5]).all()
    panoptic = shrink(items["panoptic"], (HEIGHT, WIDTH), size)
    assert panoptic.segments.dtype == torch.int32
    assert int(panoptic.segments.sum()) == 100 * 250
    assert items["masks"].boxes.tolist() == [[2500, 250, 3750, 750]]  # what is written stays as it was


def test_targets_are_scaled_too() -> None:
    masks = torch.from_numpy(np.stack([block(0, 0, 1000, 5000), block(999, 4999, 1, 1)]))
    target = InstanceTarget(
        boxes=torch.tensor([[0.0, 0, 5000, 1000], [4999, 999, 5000, 1000]]),
        labels=torch.tensor([1, 1]),
        crowd=torch.tensor([False, False]),
        areas=torch.tensor([5e6, 1.0]),
        ids=torch.tensor([1, 2]),
        masks=InstanceMasks.from_dense(masks),
    )
    small = shrink(target, (HEIGHT, WIDTH), (2, 10))
    assert small.masks is not None
    assert small.masks.size == (2, 10)
    assert small.masks.dense().sum((1, 2)).tolist() == [20, 1]
    assert small.areas.tolist() == pytest.approx([20, 4e-6])


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 70_000), (3000, 2)])
def test_the_longer_side_is_bounded(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    labels = {"semantic": LABELS, "boxes": LABELS}
    semantic = SemanticPrediction(torch.ones(size, dtype=torch.uint8))
    drawn = draw_prediction(image, {"semantic": semantic}, labels)
    assert max(drawn.shape) == 2048
    assert min(drawn.shape) >= 1
    picture = comparison(image, {}, {"semantic": semantic}, labels)
    assert max(picture.shape) < 4 * 2048
    assert visualization(lambda: picture, "image") is not None


def test_a_plugin_draws_at_full_size_and_beside_the_core() -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    predictions = everything()
    picture = overlay(image, predictions, dict.fromkeys(predictions, LABELS))
    assert picture.shape[1] < 4 * 2048
    drawn = draw_prediction(image, {"plugin": predictions["plugin"]}, {"plugin": LABELS})
    assert drawn.shape == (410, 2048, 3)
    assert drawn[200, 1500].tolist() == [255, 0, 0]
    assert drawn[200, 500].tolist() == [0, 0, 0]


def test_small_images_are_as_they_were() -> None:
    image = np.zeros((2048, 10, 3), np.uint8)
    assert bounded(image) is image


def test_what_fails_is_reported_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> np.ndarray:
        raise ValueError("first line\nsecond line")

    assert visualization(fail, "a.jpg") is None
    assert visualization(lambda: np.zeros((0, 0, 3), np.uint8), "b.jpg") is None
    assert caplog.messages[0] == "a.jpg: no visualization: ValueError: first line"
    assert len(caplog.messages) == 2
    with pytest.raises(ValueError, match=r"float64 of shape \(2, 2\) cannot be written as \.jpg"):
        encode_image(np.zeros((2, 2)), ".jpg")
