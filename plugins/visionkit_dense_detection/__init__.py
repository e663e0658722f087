"""Heads that detect on every cell of a pyramid, without proposals."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return []
