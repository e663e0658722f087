"""YOLACT: masks as combinations of prototypes."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return []
