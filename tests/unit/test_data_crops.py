"""Objects as samples: what the source shows, what the transform cuts out, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visionkit.data import Sample
from visionkit.data.crops import CropObject, ObjectsSource, TurnedWindow
from visionkit.data.shapes import ShapesSource
from visionkit.errors import DataError, UserError
from visionkit.evaluate.coco import CocoKeypoints
from visionkit.types import Crop, ImageInfo, InstanceTarget, KeypointPrediction

SCENES = {"name": "shapes", "images": 6, "size": 96}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects") / "shapes"
    ShapesSource(images=6, size=96, root=str(folder))
    return folder


@pytest.fixture
def source(folder: Path) -> ObjectsSource:
    return ObjectsSource(source={**SCENES, "root": str(folder)})


def drawn() -> Sample:
    """A dark image with a bright square of 3 x 3 pixels around each keypoint of one object."""
    points = torch.tensor([[[60.5, 40.5, 2.0], [80.5, 70.5, 2.0], [70.5, 55.5, 1.0]]])
    image = torch.zeros(3, 100, 140, dtype=torch.uint8)
    for x, y in points[0, :, :2].long().tolist():
        image[:, y - 1 : y + 2, x - 1 : x + 2] = 255
    target = InstanceTarget(
        boxes=torch.tensor([[55.0, 35.0, 85.0, 75.0]]),
        labels=torch.tensor([0]),
        crowd=torch.tensor([False]),
        areas=torch.tensor([1200.0]),
        ids=torch.tensor([1]),
        keypoints=points,
    )
    info = ImageInfo(1, "", (100, 140), (100, 140), crop=Crop(0, (55.0, 35.0, 85.0, 75.0), "person"))
    return Sample(image, info, {"keypoints": target}, swaps=((0, 1),))


def test_every_object_with_keypoints_is_a_sample_of_its_own(source: ObjectsSource, folder: Path) -> None:
    scenes = ShapesSource(images=6, size=96, root=str(folder))
    expected = []
    for index in range(len(scenes)):
        target: Any = scenes.load(index, {"keypoints"}).targets["keypoints"]
        seen = (target.keypoints[..., 2] > 0).any(1) & ~target.crowd
        expected += [(scenes.image_id(index), tuple(box)) for box in target.boxes[seen].tolist()]

    samples = [source.load(index, {"keypoints"}) for index in range(len(source))]

    assert [(s.info.id, s.info.crop.box) for s in samples if s.info.crop] == expected
    assert all(len(s.targets["keypoints"]) == 1 for s in samples)  # type: ignore[arg-type]
    assert len({s.info.key for s in samples}) == len(samples)


def test_the_window_has_the_shape_of_the_crop_and_holds_the_padded_box() -> None:
    made = CropObject(size=[64, 48], padding=1.25)(drawn())

    box = made.targets["keypoints"].boxes[0].tolist()  # type: ignore[attr-defined]
    # 30 x 40 pixels: the height decides (40 * 3/4 = 30, both fit alike), 64 / 40 / 1.25 = 1.28
    assert made.image.shape == (3, 64, 48)
    assert box == pytest.approx([24 - 15 * 1.28, 32 - 20 * 1.28, 24 + 15 * 1.28, 32 + 20 * 1.28])
    assert made.info.affine[0] == made.info.affine[4] == pytest.approx(1.28)


@pytest.mark.parametrize("seed", range(5))
def test_pixels_keypoints_and_the_way_back_agree_whatever_the_turn(seed: int) -> None:
    torch.manual_seed(seed)
    before = drawn()
    made = CropObject(size=[96, 72], padding=1.6, scale=0.2, rotation=40.0, rotated=1.0)(before)

    points: Tensor = made.targets["keypoints"].keypoints[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(
        made.info.points_to_original(points[:, :2]), before.targets["keypoints"].keypoints[0, :, :2]  # type: ignore[attr-defined]
    )  # fmt: skip
    grey = made.image[0].float()
    y, x = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(72) + 0.5, indexing="ij")
    for px, py in points[:, :2].tolist():  # the middle of the light around each keypoint
        near = grey * (((x - px).abs() < 6) & ((y - py).abs() < 6))
        assert float((near * x).sum() / near.sum()) == pytest.approx(px, abs=0.1)
        assert float((near * y).sum() / near.sum()) == pytest.approx(py, abs=0.1)


def test_without_randomness_and_turn_it_is_a_plain_window() -> None:
    window = TurnedWindow((20.0, 10.0, 68.0, 74.0), (64, 48))
    assert torch.equal(window.image(drawn().image), drawn().image[:, 10:74, 20:68])


def test_an_image_that_shows_no_one_object_is_kept_whole() -> None:
    sample = replace(drawn(), info=ImageInfo(1, "", (100, 140), (100, 140)), targets={})
    made = CropObject(size=70, padding=1.25)(sample)
    assert made.info.affine == pytest.approx((0.5, 0.0, 0.0, 0.0, 0.5, 10.0))


def test_a_large_window_is_averaged_and_not_picked_from() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 400, 400)).astype(np.uint8))
    made = CropObject(size=50)(Sample(noise, ImageInfo(1, "", (400, 400), (400, 400))))
    assert float(made.image.float().std()) < 25  # of 74; the mean of 8 x 8 of them: 9


def test_the_objects_of_an_image_are_judged_together(source: ObjectsSource) -> None:
    evaluator = CocoKeypoints(source, source.labels["keypoints"])
    for index in range(len(source)):
        sample = source.load(index, {"keypoints"})
        target: Any = sample.targets["keypoints"]
        made = KeypointPrediction.from_target(target, sample.info, source.labels["keypoints"])
        evaluator.add([made], [target], [sample.info])
        evaluator.add([made], [target], [sample.info])  # seen twice counts once

    assert evaluator.result()["AP"] == pytest.approx(1.0)
    ground = evaluator._ground_truth()
    assert len(ground.images) == len(set(ground.images.ids))


def test_boxes_of_a_file_are_looked_at_in_place_of_the_annotated_ones(folder: Path, tmp_path: Path) -> None:
    robot = ShapesSource(images=6, size=96, root=str(folder)).labels["keypoints"].ids[0]
    file = tmp_path / "boxes.json"
    boxes = [
        {"image_id": 3, "category_id": robot, "bbox": [4, 5, 20, 30], "score": 0.25},
        {"image_id": 1, "category_id": robot, "bbox": [1, 2, 10, 12], "score": 0.75},
        {"image_id": 1, "category_id": 999, "bbox": [1, 2, 10, 12], "score": 0.9},
        {"image_id": 2, "category_id": robot, "bbox": [1, 2, 10, 12], "score": 0.01},
    ]
    file.write_text(json.dumps(boxes))

    source = ObjectsSource(source={**SCENES, "root": str(folder)}, boxes=str(file), min_score=0.1)

    samples = [source.load(index, {"keypoints"}) for index in range(len(source))]
    assert [(s.info.id, s.info.crop) for s in samples] == [
        (1, Crop(1, (1.0, 2.0, 11.0, 14.0), "robot", 0.75)),
        (3, Crop(0, (4.0, 5.0, 24.0, 35.0), "robot", 0.25)),
    ]
    assert not any(s.targets for s in samples)


@pytest.mark.parametrize(
    ("content", "said"),
    [('[{"image_id": 99, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 1}]', "image 99, which is none of the 6"),
     ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "number 1 has no 'category_id'"),
     ("{}", "must be a list of detections, not an empty object"),
     ("nonsense", "not valid JSON"), ("[]", "no object")],
)  # fmt: skip
def test_a_wrong_file_of_boxes_is_told_in_one_line(folder: Path, tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        ObjectsSource(source={**SCENES, "root": str(folder)}, boxes=str(file))


def test_wrong_arguments_are_told() -> None:
    with pytest.raises(UserError, match="crop_object: size 0"):
        CropObject(size=0)
    with pytest.raises(UserError, match="rotated must lie"):
        CropObject(size=8, rotated=2.0)
    with pytest.raises(UserError, match="objects: source 'shapes'"):
        ObjectsSource(source={"name": "shapes", "sice": 3})
