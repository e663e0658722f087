"""YOLACT: masks as combinations of prototypes."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    """The head."""
    return [
        Component(
            "head", "yolact", "visionkit_yolact.yolact:YOLACT", "masks from prototypes, in one stage (Bolya, ICCV 2019)"
        ),
    ]
