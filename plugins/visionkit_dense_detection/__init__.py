"""Heads that detect on every cell of a pyramid, without proposals."""

from collections.abc import Iterable

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> Iterable[Component]:
    """RetinaNet, and the importers of its weights."""
    weights = "visionkit_dense_detection.retinanet_weights"
    return [
        Component(
            "head", "retinanet", "visionkit_dense_detection.retinanet:RetinaNet", "boxes at every anchor (RetinaNet)"
        ),
        Component(
            "importer",
            "torchvision/retinanet_resnet50_fpn",
            f"{weights}:TorchvisionRetinaNet",
            "COCO, 91 classes, boxes",
        ),
        Component(
            "importer",
            "torchvision/retinanet_resnet50_fpn_v2",
            f"{weights}:TorchvisionRetinaNet",
            "COCO, 91 classes, boxes",
        ),
        Component(
            "importer",
            "detectron2/retinanet_R_50_FPN_3x",
            f"{weights}:Detectron2RetinaNet",
            "COCO, 80 classes, boxes",
        ),
        Component(
            "importer",
            "detectron2/retinanet_R_101_FPN_3x",
            f"{weights}:Detectron2RetinaNet",
            "COCO, 80 classes, boxes",
        ),
    ]
