"""Heads that detect on every cell of a pyramid, without proposals."""

from collections.abc import Iterable

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> Iterable[Component]:
    """RetinaNet."""
    return [
        Component(
            "head", "retinanet", "visionkit_dense_detection.retinanet:RetinaNet", "boxes at every anchor (RetinaNet)"
        ),
    ]
