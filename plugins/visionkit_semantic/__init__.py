"""Heads that give a class to every pixel."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "head",
            "semantic_fpn",
            "visionkit_semantic.semantic_fpn:SemanticFPN",
            "a class for every pixel: semantic branch of Panoptic FPN (Kirillov, CVPR 2019)",
        ),
    ]
