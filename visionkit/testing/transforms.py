"""What every transform promises."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from visionkit.data import Sample
from visionkit.data.transforms import as_transform
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.types import IGNORE, ImageInfo, InstanceMasks, InstanceTarget, SemanticTarget

SEEDS = range(4)
SIZE = (96, 144)


@dataclass
class TransformCase:
    """What the checks of a transform work on: its class and keyword arguments."""

    cls: Any
    args: Mapping[str, Any]

    def build(self) -> Any:
        return as_transform(self.cls(**self.args))

    def transformed(self, sample: Sample, seed: int) -> Sample:
        """The sample after a new transform, with the random numbers of a seed."""
        transform = self.build()
        with seeded(seed):
            return transform(sample)


def check_is_built(case: TransformCase) -> None:
    """It can be built from its keyword arguments, and makes a sample of a sample."""
    made = case.transformed(textured_sample(), 0)
    if not isinstance(made, Sample):
        raise Broken(f"it returns a {type(made).__name__}, not a Sample")


def check_arguments_are_its_configuration(case: TransformCase) -> None:
    """The constructor takes keywords only, annotated, with defaults that keep to the annotation, and refuses others."""
    _only_our_own(case)
    assert_configurable("transform", case.cls, given=0)


def check_arguments_are_documented(case: TransformCase) -> None:
    """The docstring has a line for every keyword argument."""
    _only_our_own(case)
    assert_documented(case.cls, given=0)


def check_samples_stay_as_they_are(case: TransformCase) -> None:
    """The sample that comes in is not changed: neither its image nor its targets."""
    for seed in SEEDS:
        sample = textured_sample()
        case.transformed(sample, seed)
        if said := difference(textured_sample(), sample):
            raise Broken(f"it changes the sample that it is given ({said}); return a new one")


def check_a_seed_decides(case: TransformCase) -> None:
    """With the same seed of torch's and NumPy's global generators, it does the same."""
    for seed in SEEDS:
        found = [case.transformed(textured_sample(), seed) for _ in range(2)]
        if said := difference(*found):
            raise Broken(f"with the same seed it makes different samples ({said}); draw from torch's or NumPy's global "
                         "generator")  # fmt: skip


def check_info_says_where_pixels_came_from(case: TransformCase) -> None:
    """`info.size` is the size of the image, and `info.affine` leads from original pixels to those of the image."""
    for seed in SEEDS:
        made = case.transformed(textured_sample(), seed)
        size = tuple(made.image.shape[1:])
        if made.info.size != size:
            raise Broken(f"info.size is {made.info.size} for an image of {size[0]} x {size[1]}")
        if made.info.original_size != SIZE:
            raise Broken(
                f"it changes info.original_size to {made.info.original_size}; that is the image as it was read"
            )
        if min(size) < 8 or min(abs(made.info.affine[0]), abs(made.info.affine[4])) < 0.4:
            continue  # too small to tell
        seen, expected = made.image.float().mean(0), texture(made.info.points_to_original(centres(size)))
        if float(seen.std()) > 0 and (near := correlation(seen, expected)) < 0.7:
            raise Broken(f"what info.affine says of the pixels does not fit the image (correlation {near:.2f}): it "
                         "moves pixels without keeping info in step; see visionkit.data.geometry.Geometry")  # fmt: skip


def check_targets_move_with_their_image(case: TransformCase) -> None:
    """Boxes, keypoints, masks and label maps lie where `info.affine` says, and inside the image."""
    for seed in SEEDS:
        made = case.transformed(textured_sample(), seed)
        height, width = made.image.shape[1:]
        objects, maps = cast(InstanceTarget, made.targets["boxes"]), cast(SemanticTarget, made.targets["semantic"])
        if tuple(maps.labels.shape) != (height, width):
            raise Broken(f"the label map has {tuple(maps.labels.shape)} pixels, the image {height} x {width}")
        if objects.masks is not None and objects.masks.size != (height, width):
            raise Broken(f"masks have {objects.masks.size} pixels, the image {height} x {width}")
        corner = torch.tensor((width, height))
        if len(objects) and bool((objects.boxes < -0.01).any() | (objects.boxes > corner.repeat(2) + 0.01).any()):
            raise Broken(f"boxes reach beyond the image of {height} x {width}")
        _assert_moved(made, objects, maps)


def check_workers_can_be_given_it(case: TransformCase) -> None:
    """It can be pickled for worker processes."""
    copy = pickle.loads(pickle.dumps(case.build()))
    with seeded(1):
        made = copy(textured_sample())
    if said := difference(case.transformed(textured_sample(), 1), made):
        raise Broken(f"a pickled copy makes another sample ({said})")


def check_images_without_targets_are_transformed_alike(case: TransformCase) -> None:
    """Without targets, as in prediction, the image and its info become the same."""
    for seed in SEEDS:
        whole = case.transformed(textured_sample(), seed)
        bare = case.transformed(replace(textured_sample(), targets={}), seed)
        if said := difference((whole.image, whole.info), (bare.image, bare.info)):
            raise Broken(f"without targets the image becomes another ({said})")


def centres(size: tuple[int, int]) -> Tensor:
    """x, y of the centre of every pixel, (H, W, 2)."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    return torch.stack((x, y), -1)


def texture(points: Tensor) -> Tensor:
    """A grey value in 0 ... 255 for every point: waves that repeat nowhere within the image, and have no symmetry."""
    x, y = points.double().unbind(-1)
    waves = torch.sin(x / 4 + y / 9) + torch.sin(x / 9 - y / 4 + 1) + torch.sin((x + y) / 6 + 2)
    return 127.5 + 40 * waves


def textured_sample() -> Sample:
    """An image with a texture that tells where each pixel is, one object with points, and a label map."""
    grey = texture(centres(SIZE)).round().clamp(0, 255).to(torch.uint8)
    labels = torch.zeros(SIZE, dtype=torch.uint8)
    labels[:, 72:] = 1
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, 20:70, 30:90], masks[1, 60:90, 100:140] = 1, 1
    objects = InstanceTarget(
        boxes=torch.tensor([[30.0, 20, 90, 70], [100, 60, 140, 90]]),
        labels=torch.tensor([0, 1]),
        crowd=torch.tensor([False, False]),
        areas=torch.tensor([3000.0, 1200.0]),
        ids=torch.tensor([1, 2]),
        masks=InstanceMasks.from_dense(masks),
        keypoints=torch.tensor([[[40.0, 30, 2], [80, 60, 1]], [[110, 70, 2], [130, 80, 0]]]),
    )
    info = ImageInfo(id=1, path="drawn.png", original_size=SIZE, size=SIZE)
    return Sample(grey.expand(3, *SIZE).clone(), info, {"boxes": objects, "semantic": SemanticTarget(labels)})


def correlation(a: Tensor, b: Tensor) -> float:
    """Of the grey values of two images."""
    return float(np.corrcoef(a.double().flatten().numpy(), b.double().flatten().numpy())[0, 1])


def _assert_moved(made: Sample, objects: InstanceTarget, maps: SemanticTarget) -> None:
    """Points and the label map against what ``info`` says of them."""
    before = cast(InstanceTarget, textured_sample().targets["boxes"])
    if before.keypoints is None or objects.keypoints is None:
        raise Broken("the keypoints of the objects are gone")
    for number, points in zip(objects.ids.tolist(), objects.keypoints):
        kept = points[:, 2] > 0
        original = made.info.points_to_original(points[:, :2])[kept]
        if said := difference(before.keypoints[before.ids == number][0, :, :2][kept], original, rtol=1e-3):
            raise Broken(f"keypoints are not where info.affine says ({said})")
    x = made.info.points_to_original(centres((maps.labels.shape[0], maps.labels.shape[1])))[..., 0]
    clear = ((x - 72).abs() > 3) & (maps.labels != IGNORE)  # of the border, where nearest pixels may round either way
    wrong = (maps.labels != (x >= 72).to(maps.labels.dtype)) & clear
    if float(wrong.float().mean()) > 0.02:
        raise Broken(f"{float(wrong.float().mean()):.0%} of the label map is not where info.affine says")


def _only_our_own(case: TransformCase) -> None:
    if str(getattr(case.cls, "__module__", "")).startswith("torchvision."):
        raise NotApplicable("its constructor is torchvision's")


CHECKS = (
    check_is_built,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_samples_stay_as_they_are,
    check_a_seed_decides,
    check_info_says_where_pixels_came_from,
    check_targets_move_with_their_image,
    check_workers_can_be_given_it,
    check_images_without_targets_are_transformed_alike,
)
