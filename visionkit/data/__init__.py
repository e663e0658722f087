"""Data sources, their mixing, transforms and batching."""

from visionkit.data.base import Sample, Source, Transform

__all__ = ["Sample", "Source", "Transform"]
