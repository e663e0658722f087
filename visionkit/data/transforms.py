"""Augmentation and resizing of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visionkit.data.base import Sample, Transform


def apply_transforms(transforms: Sequence[Transform], sample: Sample) -> Sample:
    """The sample after all of them, in order."""
    for transform in transforms:
        sample = transform(sample)
    return sample


def as_transform(transform: Any) -> Transform:
    return transform
