"""Images made from images: GANs, cycles, styles."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return []
