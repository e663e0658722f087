"""Transforms: pixels, coordinates and info stay in step, and sizes and values agree with torchvision's."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from visionkit.data import Sample, Transform
from visionkit.data.geometry import Geometry, pad_target
from visionkit.data.images import from_hwc
from visionkit.data.loader import collate
from visionkit.data.transforms import (
    ColorJitter,
    HorizontalFlip,
    Normalize,
    Resize,
    ScaleJitterCrop,
    apply_transforms,
    as_transform,
)
from visionkit.errors import DataError, UserError
from visionkit.types import IGNORE, ImageInfo, InstanceMasks, InstanceTarget, SemanticTarget, Target


def a_sample(height: int = 48, width: int = 64, image: Tensor | None = None) -> Sample:
    """Two objects with masks and three keypoints, and a label map of vertical stripes."""
    rng = np.random.default_rng(height * width)
    if image is None:
        image = from_hwc(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 10:30, 8:24] = 1
    masks[1, 20:40, 40:60] = 1
    target = InstanceTarget(
        boxes=torch.tensor([[8.0, 10, 24, 30], [40.0, 20, 60, 40]]),
        labels=torch.tensor([0, 1]),
        crowd=torch.tensor([False, True]),
        areas=torch.tensor([320.0, 400]),
        ids=torch.tensor([5, 6]),
        masks=masks,
        keypoints=torch.tensor([[[10.0, 12, 2], [20, 28, 1], [0, 0, 0]], [[41, 21, 2], [59, 39, 2], [50, 30, 1]]]),
    )
    labels = torch.arange(width).div(8, rounding_mode="floor").to(torch.uint8).expand(height, width).contiguous()
    size = (height, width)
    info = ImageInfo(id=1, path="", original_size=size, size=size)
    targets = {"boxes": target, "masks": target, "semantic": SemanticTarget(labels)}
    return Sample(image, info, targets, swaps=((0, 1),))


def coordinates(height: int, width: int) -> Tensor:
    """An image whose pixels hold their own position: x, y of the pixel's centre in continuous coordinates."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return from_hwc(np.stack((x, y, np.zeros_like(x)), 2))


class AsFloat(Transform):
    """What ``normalize`` does, but for the values."""

    def __call__(self, sample: Sample) -> Sample:
        return replace(sample, image=sample.image.float())


PIPELINES: dict[str, list[Transform]] = {
    "short": [Resize(short=30)],
    "short and long": [Resize(short=96, long=100)],
    "stretched": [Resize(size=[33, 97], antialias=False)],
    "exact": [AsFloat(), Resize(short=70, long=1000, exact=True)],
    "mirror": [HorizontalFlip(probability=1.0)],
    "grow and crop": [ScaleJitterCrop(size=[32, 40], scale=(1.2, 3.0))],
    "shrink and crop": [ScaleJitterCrop(size=24, scale=(0.5, 1.0))],
    "all": [Resize(short=60), HorizontalFlip(probability=1.0), ScaleJitterCrop(size=50, scale=(0.9, 2.0)),
            HorizontalFlip(probability=1.0), HorizontalFlip(probability=1.0)],
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_info_says_where_every_pixel_came_from(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        out = apply_transforms(PIPELINES[name], a_sample(image=coordinates(48, 64)))
        assert tuple(out.image.shape[1:]) == out.info.size
        assert out.info.original_size == (48, 64)
        inner = out.image[:2, 2:-2, 2:-2].permute(1, 2, 0)  # away from the edges, where resizing repeats pixels
        y, x = torch.meshgrid(*(torch.arange(2.0, n - 2) + 0.5 for n in out.info.size), indexing="ij")
        expected = out.info.points_to_original(torch.stack((x, y), 2))
        away = ((expected > 2) & (expected < torch.tensor((62.0, 46.0)))).all(-1)
        assert bool(away.any())
        # Antialiasing weighs whole pixels, and is off by less than a tenth of one.
        torch.testing.assert_close(inner[away], expected[away], atol=0.1, rtol=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_boxes_masks_keypoints_and_labels_move_with_the_pixels(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        before = a_sample()
        out = apply_transforms(PIPELINES[name], before)
        target = out.targets["boxes"]
        assert out.targets["masks"] is target
        height, width = out.info.size
        old = before.targets["boxes"]
        for i, number in enumerate(target.ids.tolist()):
            k = old.ids.tolist().index(number)
            ys, xs = np.nonzero(target.masks.dense()[i].numpy())
            seen = torch.tensor((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), dtype=torch.float32)
            torch.testing.assert_close(target.boxes[i], seen, atol=1.0, rtol=0)
            back = out.info.boxes_to_original(target.boxes[i : i + 1])[0]
            assert bool((back[:2] >= old.boxes[k][:2] - 1).all() and (back[2:] <= old.boxes[k][2:] + 1).all())
            assert target.areas[i] == pytest.approx(len(xs), rel=0.25)
            flips = out.info.affine[0] < 0
            for j, (x, y, seen_as) in enumerate(target.keypoints[i].tolist()):
                theirs = old.keypoints[k][(1, 0, 2)[j] if flips else j]
                if seen_as:
                    assert seen_as == theirs[2]
                    assert 0 <= x <= width
                    assert 0 <= y <= height
                    place = out.info.points_to_original(torch.tensor((x, y)))
                    torch.testing.assert_close(place, theirs[:2], atol=1e-3, rtol=0)
        y, x = torch.meshgrid(*(torch.arange(float(n)) + 0.5 for n in out.info.size), indexing="ij")
        column = out.info.points_to_original(torch.stack((x, y), 2))[..., 0]
        found = out.targets["semantic"].labels.float()
        assert bool(((column / 8 - found > -0.15) & (column / 8 - found < 1.15)).all())
    assert before.info.affine == (1, 0, 0, 0, 1, 0)  # the sample that came in is as it was


@pytest.mark.parametrize(
    ("size", "short", "long"),
    [((427, 640), 800, 1333), *((size, *sides) for size in ((427, 640), (333, 500), (64, 48), (500, 333))
                                for sides in ((97, 120), (320, 640)))],
)  # fmt: skip
def test_exact_resize_equals_torchvision(size: tuple[int, int], short: int, long: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    boxes = torch.tensor([[3.0, 5, 40, 44], [0, 0, size[1], size[0]]])
    theirs = GeneralizedRCNNTransform(short, long, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], size_divisible=1)
    images, targets = theirs([image / 255], [{"boxes": boxes}])
    base = a_sample(*size, image=image)
    base.targets = {"boxes": InstanceTarget(boxes, *(torch.zeros(2, dtype=t) for t in (torch.int64, torch.bool)),
                                            torch.zeros(2), torch.zeros(2, dtype=torch.int64))}  # fmt: skip
    mine = Resize(short=short, long=long, exact=True)(Normalize()(base))
    assert mine.info.size == images.image_sizes[0]
    assert torch.equal(mine.image, images.tensors[0])
    torch.testing.assert_close(mine.targets["boxes"].boxes, targets[0]["boxes"], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("size", [[20, 30], [48, 64], [100, 130], [30, 100]])
@pytest.mark.parametrize("antialias", [True, False])
def test_resize_equals_transforms_v2(size: list[int], antialias: bool) -> None:
    sample = a_sample()
    theirs = functional.resize(sample.image, size, antialias=antialias)
    mine = Resize(size=size, antialias=antialias)(sample).image
    assert mine.dtype == torch.uint8
    assert int((mine.int() - theirs.int()).abs().max()) <= 1


def test_sides() -> None:
    assert Resize(short=30).size((60, 80)) == (30, 40)
    assert Resize(short=30, long=35).size((60, 80)) == (26, 35)
    assert Resize(long=40).size((60, 80)) == (30, 40)
    assert Resize(short=1).size((10, 1000)) == (1, 100)
    several = Resize(short=[10, 20, 30])
    assert {several.size((60, 60))[0] for _ in range(60)} == {10, 20, 30}


def test_objects_that_leave_the_image_are_left_out_and_keypoints_no_longer_labelled() -> None:
    out = Geometry((0, 0, 30, 20), (20, 30)).sample(a_sample())
    target = out.targets["boxes"]
    assert target.ids.tolist() == [5]
    assert target.boxes.tolist() == [[8, 10, 24, 20]]
    assert target.areas.tolist() == [160]
    assert target.keypoints[0].tolist() == [[10, 12, 2], [0, 0, 0], [0, 0, 0]]
    assert target.crowd.tolist() == [False]


def test_an_object_whose_box_remains_but_whose_mask_is_gone_is_left_out() -> None:
    sample = a_sample()
    dense = sample.targets["masks"].masks.dense()
    dense[0, :, :20] = 0
    sample.targets["masks"].masks = InstanceMasks.from_dense(dense)
    assert Geometry((0, 0, 18, 48), (48, 18)).sample(sample).targets["masks"].ids.tolist() == []
    without = a_sample()
    without.targets["boxes"].masks = None
    kept = Geometry((0, 0, 16, 48), (48, 16)).sample(without).targets["boxes"]
    assert kept.boxes.tolist() == [[8, 10, 16, 30]]
    assert kept.areas.tolist() == [160]


def test_mirroring_twice_changes_nothing() -> None:
    sample = a_sample()
    flip = HorizontalFlip(probability=1.0)
    once, twice = flip(sample), flip(flip(sample))
    assert torch.equal(twice.image, sample.image)
    assert twice.info == sample.info
    assert torch.equal(twice.targets["boxes"].keypoints, sample.targets["boxes"].keypoints)
    # Left and right change places: what was the second keypoint is now the first.
    assert once.targets["boxes"].keypoints[1, 0].tolist() == [64 - 59, 39, 2]
    assert HorizontalFlip(probability=0.0)(sample) is sample


def test_a_target_of_another_type_moves_by_its_own_method() -> None:
    class Arrows(Target):
        def moved(self, geometry: Geometry) -> str:
            return f"moved to {geometry.size}"

    class Fixed(Target):
        pass

    sample = a_sample()
    sample.targets["arrows"] = Arrows()
    assert Resize(size=[3, 4])(sample).targets["arrows"] == "moved to (3, 4)"
    sample.targets["arrows"] = Fixed()
    with pytest.raises(NotImplementedError, match="Fixed cannot be cropped, resized or mirrored"):
        Resize(size=[3, 4])(sample)


def test_padding_of_targets() -> None:
    sample = a_sample()
    labels = pad_target(sample.targets["semantic"], (50, 70)).labels
    assert labels.shape == (50, 70)
    assert bool((labels[48:] == IGNORE).all() and (labels[:, 64:] == IGNORE).all())
    masks = pad_target(sample.targets["masks"], (50, 70)).masks
    assert masks.dense().shape == (2, 50, 70)
    assert int(masks.areas().sum()) == 720


# -- colours ----------------------------------------------------------------------------------------------------------


def fixed(value: float) -> Callable[[float, float], float]:
    return lambda low, high: high if high > low else low


def soft_image() -> Tensor:
    """Colours that no change within the tests drives out of 0 ... 255."""
    return from_hwc(np.random.default_rng(0).integers(90, 150, (40, 50, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("arguments", "theirs"),
    [
        ({"brightness": 0.4}, lambda x: functional.adjust_brightness(x, 1.4)),
        ({"contrast": 0.4}, lambda x: functional.adjust_contrast(x, 1.4)),
        ({"saturation": 0.4}, lambda x: functional.adjust_saturation(x, 1.4)),
        ({}, lambda x: x),
    ],
)
def test_colour_jitter_equals_torchvision(
    arguments: dict[str, float], theirs: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionkit.data.transforms._uniform", fixed(1.0))
    image = soft_image()
    mine = ColorJitter(**arguments)(a_sample(40, 50, image)).image
    assert mine.dtype == torch.uint8
    assert int((mine.int() - theirs(image).int()).abs().max()) <= 1


def test_hue_leaves_grey_and_brightness_and_turns_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionkit.data.transforms._uniform", fixed(1.0))
    jitter = ColorJitter(hue=1 / 3)
    grey = soft_image()[:1].expand(3, -1, -1).contiguous()
    assert torch.equal(jitter(a_sample(40, 50, grey)).image, grey)
    image = soft_image()
    out = image
    for turns in range(3):
        out = jitter(a_sample(40, 50, out)).image
        luma = [functional.rgb_to_grayscale(x.float())[0] for x in (image, out)]
        torch.testing.assert_close(luma[0], luma[1], atol=2.5, rtol=0)
        assert (int((out.int() - image.int()).abs().max()) <= 3) == (turns == 2)  # three thirds of a circle


def test_colour_jitter_depends_on_the_seed_alone() -> None:
    jitter = ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.1)
    images = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images.append(jitter(a_sample(40, 50, soft_image())).image)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


# -- torchvision ------------------------------------------------------------------------------------------------------


def test_photometric_transforms_of_torchvision_are_wrapped() -> None:
    sample = a_sample()
    blurred = as_transform(v2.GaussianBlur(5, sigma=2.0))(sample)
    assert torch.equal(blurred.image, functional.gaussian_blur(sample.image, [5, 5], [2.0, 2.0]))
    assert blurred.targets is sample.targets
    assert blurred.info == sample.info
    assert as_transform(v2.Grayscale(3))(sample).image.shape == sample.image.shape
    mine = Resize(short=20)
    assert as_transform(mine) is mine


@pytest.mark.parametrize(
    "transform", [v2.RandomHorizontalFlip(1.0), v2.RandomRotation((20, 30)), v2.Resize(20), v2.RandomCrop(16)]
)
def test_transforms_of_torchvision_that_move_pixels_are_refused(transform: v2.Transform) -> None:
    with pytest.raises(UserError, match=f"{type(transform).__name__}' of torchvision moves pixels"):
        as_transform(transform)(a_sample())


def test_transforms_of_torchvision_that_change_the_type_are_refused() -> None:
    with pytest.raises(UserError, match=r"makes torch.float32 images of 3 channels; they must stay torch.uint8"):
        as_transform(v2.ToDtype(torch.float32, scale=True))(a_sample())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Resize(),
        lambda: Resize(short=3, size=4),
        lambda: Resize(short=0),
        lambda: ScaleJitterCrop(size=8, scale=(2.0, 1.0)),
        lambda: HorizontalFlip(probability=1.5),
        lambda: ColorJitter(hue=0.7),
        lambda: ColorJitter(contrast=-1),
    ],
)
def test_arguments_that_make_no_sense(make: Callable[[], Transform]) -> None:
    with pytest.raises(UserError):
        make()


def test_scale_counts_from_the_image_or_from_the_window() -> None:
    random.seed(0)
    own = ScaleJitterCrop(size=1000, scale=(0.5, 0.5))(a_sample())
    assert own.info.size == (24, 32)
    fit = ScaleJitterCrop(size=128, scale=(0.5, 0.5), fit=True)(a_sample())
    assert fit.info.size == (48, 64)


def test_normalized_images_are_not_normalised_again() -> None:
    sample = a_sample()
    early = collate([Normalize()(sample)])
    late = collate([sample])
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    a, b = (batch.normalised(mean, std, channels_last=False).images for batch in (early, late))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert a.is_contiguous()
    assert b.is_contiguous()


def test_normalize_is_for_all_images_of_a_batch_and_once() -> None:
    sample = a_sample()
    with pytest.raises(UserError, match="normalised and images that are not"):
        collate([sample, Normalize()(sample)])
    with pytest.raises(UserError, match="normalised already"):
        Normalize()(Normalize()(sample))
    with pytest.raises(UserError, match="put the transform 'normalize' before it"):
        Resize(short=30, exact=True)(sample)
    with pytest.raises(UserError, match="std must be above 0"):
        Normalize(std=(0.2, 0.0, 0.2))


# -- extreme shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 70_000), (70_000, 2)])
def test_extreme_shapes_are_transformed_or_refused_by_name(size: tuple[int, int]) -> None:
    image = torch.zeros(size[0], size[1], 3, dtype=torch.uint8).permute(2, 0, 1)
    info = ImageInfo(id=1, path="strip.png", original_size=size, size=size)
    sample = Sample(image, info, {"semantic": SemanticTarget(torch.zeros(size, dtype=torch.uint8))})
    for transform in (
        Resize(size=(8, 6)),
        Resize(short=8, long=16),
        ScaleJitterCrop(size=8),
        HorizontalFlip(),
        ColorJitter(),
    ):
        out = apply_transforms([transform], sample)
        assert out.image.shape[1:] == out.targets["semantic"].labels.shape == out.info.size
    if max(size) > 1:
        with pytest.raises(DataError, match=r"^strip\.png: would be resized to \d+x\d+ .*at most 67,108,864 pixels"):
            apply_transforms([Resize(short=800)], sample)


def test_what_opencv_cannot_do_names_the_image() -> None:
    class TooWide(Transform):
        def __call__(self, sample: Sample) -> Sample:
            cv2.resize(np.zeros((1, 1), np.uint8), (0, 0))
            return sample

    with pytest.raises(
        DataError, match=r"^1: TooWide cannot be applied to an image of 48x64 \(height x width\): [^\n]+$"
    ):
        apply_transforms([TooWide()], a_sample())
