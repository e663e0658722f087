"""Objects as points: CenterNet, CornerNet and the triplet."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component("head", "centernet", "visionkit_points.centernet:CenterNet", "boxes as centres (Objects as Points)")
    ]
