"""Panoptic pictures: shades of a class, outlines between all segments, and the panoptic map in place of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from visionkit.data.coco import CocoSource
from visionkit.data.images import as_hwc
from visionkit.draw import class_colors, comparison, draw_panoptic, draw_prediction
from visionkit.draw.panoptic import THING, Map, heart, name_segments
from visionkit.draw.text import Words
from visionkit.types import (
    KeypointPrediction,
    LabelSet,
    PanopticPrediction,
    PanopticTarget,
    SemanticPrediction,
)

LABELS = LabelSet(("cat", "sky"), things=(True, False), keypoints=("nose",))


def gray(height: int = 120, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def segments(void: int = 0) -> torch.Tensor:
    """Two cats side by side under a sky, with ``void`` rows at the bottom."""
    out = torch.full((120, 160), 3, dtype=torch.int32)
    out[60:, :80], out[60:, 80:] = 1, 2
    if void:
        out[-void:] = 0
    return out


def prediction(void: int = 0) -> PanopticPrediction:
    return PanopticPrediction(segments(void), torch.tensor([0, 0, 1]), torch.ones(3))


def target(crowd: bool = False) -> PanopticTarget:
    return PanopticTarget(segments(), torch.tensor([0, 0, 1]), torch.tensor([False, crowd, False]), torch.arange(3))


def test_instances_have_shades_of_the_color_of_their_class() -> None:
    picture = draw_panoptic(gray(), prediction(), LABELS)
    left, right, sky = (picture[y, x].astype(float) for y, x in ((70, 10), (70, 150), (5, 5)))
    colors = {name: np.array(color) for name, color in class_colors([LABELS]).items()}
    np.testing.assert_allclose(left, 100 * (1 - THING) + colors["cat"] * THING, atol=1)  # the first is the class's own
    assert np.abs(left - right).max() > 15
    assert np.linalg.norm(right - left) < np.linalg.norm(right - sky)
    np.testing.assert_allclose(sky, (100 + colors["sky"]) / 2, atol=1)


def test_an_outline_runs_between_all_segments() -> None:
    picture = draw_panoptic(gray(), prediction(), LABELS)
    assert (picture[60, 2:60] > 200).all()
    assert (picture[62:80, 80] > 200).all()
    assert not (picture[2:20, 2:] > 200).all(-1).any()


def test_void_is_striped_and_keeps_the_image_between() -> None:
    picture = draw_panoptic(gray(), prediction(void=30), LABELS)
    void = picture[92:]
    assert np.ptp(void.reshape(-1, 3), axis=1).max() == 0  # grey
    assert void.min() == 100
    assert void.max() > 105


def test_a_crowd_is_striped_and_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(Words, "name", lambda self, text, center: bool(written.append(text)) or True)
    picture = draw_panoptic(gray(), target(crowd=True), LABELS)
    assert len(np.unique(picture[70:100, 90:150].reshape(-1, 3), axis=0)) > 3
    assert len(np.unique(picture[70:100, 10:60].reshape(-1, 3), axis=0)) == 1
    assert sorted(written) == ["cat", "cat (crowd)", "sky"]


def test_names_stand_inside_their_segments() -> None:
    ring = np.zeros((41, 41), bool)
    ring[4:37, 4:37] = True
    ring[12:29, 12:29] = False
    (x, y), depth = heart(ring)
    assert ring[int(y), int(x)]
    assert depth == pytest.approx(4.5, abs=1.0)


def test_small_segments_are_named_once_for_a_class() -> None:
    number = np.zeros((120, 160), np.int32)
    for i in range(6):
        number[10:18, 10 + 24 * i : 20 + 24 * i] = i + 1
    words = Words(gray(), 12)
    name_segments(words, Map(number, ["cat"] * 6, [(9, 9, 9)] * 6, [True] * 6, [False] * 6))
    assert len(words.taken) == 1


def test_the_image_stays_and_the_picture_is_scaled() -> None:
    image = gray()
    assert draw_panoptic(image, prediction(), LABELS, scale=3).shape == (360, 480, 3)
    assert (image == 100).all()


def test_nothing_found() -> None:
    nothing = PanopticPrediction(
        torch.zeros(120, 160, dtype=torch.int32), torch.zeros(0, dtype=torch.int64), torch.ones(0)
    )
    assert draw_panoptic(gray(), nothing, LABELS).shape == (120, 160, 3)


def test_predictions_and_targets_draw_themselves() -> None:
    expected = draw_panoptic(gray(), prediction(), LABELS)
    np.testing.assert_array_equal(prediction().draw(gray(), LABELS), expected)
    np.testing.assert_array_equal(target().draw(gray(), LABELS), expected)


def test_it_stands_for_label_maps_and_boxes_but_not_for_keypoints() -> None:
    semantic = SemanticPrediction(torch.zeros(120, 160, dtype=torch.uint8))
    boxes = torch.tensor([[10.0, 20, 70, 100]])
    parts = {"boxes": boxes, "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    pose = KeypointPrediction(**parts, keypoints=torch.tensor([[[40.0, 30, 1]]]))
    labels = dict.fromkeys(("panoptic", "semantic", "pose"), LABELS)
    alone = draw_prediction(gray(), {"panoptic": prediction()}, labels)
    both = draw_prediction(gray(), {"semantic": semantic, "panoptic": prediction()}, labels)
    np.testing.assert_array_equal(alone, both)
    posed = draw_prediction(gray(), {"pose": pose, "panoptic": prediction()}, labels, scale=1)
    assert (posed[28:32, 38:42] != draw_panoptic(gray(), prediction(), LABELS)[28:32, 38:42]).any()


def test_beside_other_heads_it_has_a_row_of_its_own_and_its_classes_are_in_the_legend() -> None:
    semantic = SemanticPrediction(torch.zeros(120, 160, dtype=torch.uint8))
    labels = {"panoptic": LABELS, "semantic": LABELS}
    alone = comparison(gray(), {"panoptic": target()}, {"panoptic": prediction()}, labels)
    both = comparison(gray(), {"panoptic": target()}, {"semantic": semantic, "panoptic": prediction()}, labels)
    assert both.shape[0] > 1.8 * alone.shape[0]
    sky = np.array(class_colors([LABELS])["sky"])
    assert (alone[-30:] == sky).all(-1).any()


@pytest.mark.real_data
def test_real_truth_covers_the_picture(real_data: Path) -> None:
    folder = real_data / "coco_panoptic"
    source = CocoSource(images=str(folder / "images"), panoptic=str(folder / "panoptic.json"), tasks=["panoptic"])
    for index in (0, 7):
        sample = source.load(index, ["panoptic"])
        image, truth = as_hwc(sample.image), sample.targets["panoptic"]
        picture = draw_panoptic(image, truth, source.labels["panoptic"])
        known = truth.segments.numpy() > 0
        assert (picture != image).any(-1)[known].mean() > 0.95
