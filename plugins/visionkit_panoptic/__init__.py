"""Heads that give every pixel a class and every thing an identity."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "head",
            "panoptic_fusion",
            "visionkit_panoptic.panoptic_fusion:PanopticFusion",
            "things and stuff of two other heads, merged: Panoptic FPN (Kirillov, CVPR 2019)",
        ),
    ]
