"""Backbones from timm, and the feature pyramid on top of them."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "backbone", "timm", "visionkit_backbones.timm_backbone:TimmBackbone", "any timm feature backbone, by name"
        ),
        Component("neck", "fpn", "visionkit_backbones.fpn:FPN", "feature pyramid network (Lin, CVPR 2017), P2 to P7"),
        Component("neck", "deconv", "visionkit_backbones.deconv:DeconvNeck", "deconvolutions from C5 to P2 (Xiao, 2018)"),
        Component("neck", "dla_up", "visionkit_backbones.dla_up:DLAUp", "deep aggregation to P2 (CenterNet on DLA)"),
    ]
