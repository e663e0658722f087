"""Types that flow through a pipeline."""

from __future__ import annotations

import pytest
import torch

from visionkit.errors import UserError
from visionkit.types import (
    IGNORE,
    BoxPrediction,
    FeatureSpec,
    ImageInfo,
    InstanceTarget,
    LabelSet,
    Level,
    MixedBatch,
    SemanticTarget,
)


def instances(n: int = 3) -> InstanceTarget:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(n, 1)
    return InstanceTarget(
        boxes,
        torch.arange(n),
        torch.zeros(n, dtype=torch.bool),
        torch.full((n,), 16.0),
        torch.arange(n) + 10,
        masks=torch.ones(n, 4, 4, dtype=torch.uint8),
    )


def test_relabel_drops_what_maps_to_nothing_and_keeps_the_rest_in_order():
    out = instances().relabel(torch.tensor([1, -1, 0]))
    assert out.labels.tolist() == [1, 0]
    assert out.ids.tolist() == [10, 12]
    assert out.masks is not None
    assert out.masks.dense().shape == (2, 4, 4)


def test_relabel_does_not_change_the_target_it_came_from():
    target = instances()
    target.relabel(torch.tensor([2, 1, 0]))
    assert target.labels.tolist() == [0, 1, 2]


def test_semantic_relabel_ignores_dropped_classes_and_keeps_ignored_pixels():
    target = SemanticTarget(torch.tensor([[0, 1], [2, IGNORE]], dtype=torch.uint8))
    assert target.relabel(torch.tensor([1, -1, 0])).labels.tolist() == [[1, IGNORE], [0, IGNORE]]


@pytest.mark.parametrize("field", ["labels", "crowd", "areas", "ids"])
def test_targets_are_checked_where_they_are_made(field):
    values = {k: getattr(instances(), k) for k in ("boxes", "labels", "crowd", "areas", "ids")}
    values[field] = values[field][:2]
    with pytest.raises(ValueError, match=field):
        InstanceTarget(**values)


def test_empty_targets_are_no_missing_targets():
    assert len(InstanceTarget.empty((4, 4), 5, masks=True)) == 0


def test_input_boxes_go_back_to_the_original_image_and_are_clipped_to_it():
    info = ImageInfo(1, "", original_size=(100, 200), size=(50, 100), affine=(0.5, 0.0, 10.0, 0.0, 0.5, 0.0))
    boxes = info.boxes_to_original(torch.tensor([[20.0, 10.0, 60.0, 30.0], [0.0, 0.0, 300.0, 300.0]]))
    assert boxes.tolist() == [[20.0, 20.0, 100.0, 60.0], [0.0, 0.0, 200.0, 100.0]]


def test_a_rotated_input_is_undone():
    info = ImageInfo(1, "", original_size=(10, 20), size=(20, 10), affine=(0.0, -1.0, 10.0, 1.0, 0.0, 0.0))
    x, y = 3.0, 4.0
    there = torch.tensor([[-y + 10.0, x]])
    assert torch.allclose(info.points_to_original(there), torch.tensor([[x, y]]))


def test_coco_records_use_the_original_category_ids():
    labels = LabelSet(("cat", "dog"), ids=(17, 18))
    prediction = BoxPrediction(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([0.5]), torch.tensor([1]))
    assert prediction.to_coco(7, labels) == [
        {"image_id": 7, "category_id": 18, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]


def test_label_sets_survive_a_run_folder_and_suggest_names():
    labels = LabelSet(("cat", "dog"), keypoints=("nose", "l_ear", "r_ear"), swaps=((1, 2),), skeleton=((0, 1),))
    assert LabelSet.from_dict(labels.to_dict()) == labels
    with pytest.raises(KeyError, match="did you mean 'dog'"):
        labels.label("dgo")
    with pytest.raises(ValueError, match="given twice: cat"):
        LabelSet(("cat", "cat"))


def test_feature_specs_name_what_they_have():
    spec = FeatureSpec({"c2": Level(64, 4)}) | FeatureSpec({"p2": Level(32, 4)})
    assert list(spec) == ["c2", "p2"]
    with pytest.raises(UserError, match=r"no feature level 'p9' \(there is: c2, p2\)"):
        spec.only(["p9"])


@pytest.mark.parametrize("mean", [(0.5, 0.5, 0.5), (0.485, 0.456, 0.406)])
def test_images_come_in_the_range_of_pictures_whatever_they_were_normalised_with(mean):
    pixels = torch.randint(0, 256, (2, 3, 6, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    info = (ImageInfo(0, "", (6, 8), (6, 8)), ImageInfo(1, "", (4, 5), (4, 5)))
    batch = MixedBatch(pixels, info, {}).normalised(torch.tensor(mean), torch.tensor((0.229, 0.224, 0.225)))
    signed = batch.view("any", [1, 0], targets=False).signed()
    expected = pixels.float() / 127.5 - 1.0
    torch.testing.assert_close(signed[1], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(signed[0, :, :4, :5], expected[1, :, :4, :5], rtol=0, atol=1e-5)
    assert not signed[0, :, 4:].any()
    assert not signed[0, :, :, 5:].any()


def test_a_batch_takes_what_it_was_normalised_with_to_another_device():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    batch = MixedBatch(images, (ImageInfo(0, "", (4, 4), (4, 4)),), {}).normalised(torch.ones(3), torch.ones(3))
    moved = batch.to("meta")
    assert {moved.images.device, moved.mean.device, moved.std.device} == {torch.device("meta")}
