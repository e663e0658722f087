"""Objects as points: CenterNet, CornerNet and the triplet."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    weights = "visionkit_points.centernet_weights"
    importers = [
        ("centernet/resnet18", "CenterNetResNet", "COCO, 80 classes, boxes"),
        ("centernet/resnet101", "CenterNetResNet", "COCO, 80 classes, boxes"),
        ("centernet/resdcn18", "CenterNetResNet", "COCO, 80 classes, boxes"),
        ("centernet/resdcn101", "CenterNetResNet", "COCO, 80 classes, boxes"),
        ("centernet/dla34", "CenterNetDLA34", "COCO, 80 classes, boxes"),
        ("centernet/dla34_pose", "CenterNetPoseDLA34", "COCO, persons, 17 keypoints"),
    ]
    corners = "visionkit_points.corner_weights"
    corner_importers = [
        ("centernet/hourglass104", "CenterNetHourglass", "COCO, 80 classes, boxes"),
        ("cornernet/hourglass104", "CornerNet", "COCO, 80 classes, boxes"),
        ("centernet_triplet/hourglass52", "Triplet", "COCO, 80 classes, boxes"),
        ("centernet_triplet/hourglass104", "Triplet", "COCO, 80 classes, boxes"),
    ]
    return [
        Component("head", "centernet", "visionkit_points.centernet:CenterNet", "boxes as centres (Objects as Points)"),
        Component(
            "head",
            "centernet_pose",
            "visionkit_points.centernet_pose:CenterNetPose",
            "keypoints as offsets from centres",
        ),
        Component("head", "cornernet", "visionkit_points.cornernet:CornerNet", "boxes as pairs of corners (CornerNet)"),
        Component(
            "head",
            "centernet_triplet",
            "visionkit_points.centernet_triplet:CenterNetTriplet",
            "boxes as corners that a centre confirms (CenterNet, Duan 2019)",
        ),
        *(Component("importer", name, f"{weights}:{cls}", summary) for name, cls, summary in importers),
        *(Component("importer", name, f"{corners}:{cls}", summary) for name, cls, summary in corner_importers),
    ]
