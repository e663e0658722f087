"""Backbones from timm, and the feature pyramid on top of them."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "backbone", "timm", "visionkit_backbones.timm_backbone:TimmBackbone", "any timm feature backbone, by name"
        ),
        Component("neck", "fpn", "visionkit_backbones.fpn:FPN", "feature pyramid network (Lin, CVPR 2017), P2 to P7"),
    ]
