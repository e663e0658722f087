"""Keypoints of one person or object: heatmaps, coordinates, hourglasses."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return []
