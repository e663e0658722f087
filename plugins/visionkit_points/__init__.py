"""Objects as points: CenterNet, CornerNet and the triplet."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    weights = "visionkit_points.centernet_weights"
    importers = [
        ("centernet/resnet18", "CenterNetResNet18", "COCO, 80 classes, boxes"),
        ("centernet/resnet101", "CenterNetResNet101", "COCO, 80 classes, boxes"),
        ("centernet/resdcn18", "CenterNetResDCN18", "COCO, 80 classes, boxes"),
        ("centernet/resdcn101", "CenterNetResDCN101", "COCO, 80 classes, boxes"),
        ("centernet/dla34", "CenterNetDLA34", "COCO, 80 classes, boxes"),
    ]
    return [
        Component("head", "centernet", "visionkit_points.centernet:CenterNet", "boxes as centres (Objects as Points)"),
        *(Component("importer", name, f"{weights}:{cls}", summary) for name, cls, summary in importers),
    ]
