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
        Component(
            "head",
            "upsnet",
            "visionkit_panoptic.upsnet:UPSNet",
            "things, stuff and the unknown in one softmax: UPSNet (Xiong, CVPR 2019)",
        ),
        Component(
            "head",
            "upsnet_semantic",
            "visionkit_panoptic.upsnet_semantic:UPSNetSemantic",
            "a class for every pixel: UPSNet's deformable subnet",
        ),
    ]
