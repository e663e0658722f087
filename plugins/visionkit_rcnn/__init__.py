"""Faster, Mask and Keypoint R-CNN as heads that read one another: boxes, masks, keypoints."""

from collections.abc import Iterable

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> Iterable[Component]:
    """Three heads, and the importers of torchvision's weights."""
    torchvision = "visionkit_rcnn.torchvision_weights"
    return [
        Component(
            "head", "rcnn", "visionkit_rcnn.rcnn:RCNN", "boxes: region proposals and a box branch (Faster R-CNN)"
        ),
        Component("head", "roi_mask", "visionkit_rcnn.roi_mask:RoIMask", "a mask for every box (Mask R-CNN)"),
        Component(
            "head", "roi_keypoint", "visionkit_rcnn.roi_keypoint:RoIKeypoint", "keypoints for every box (Mask R-CNN)"
        ),
        Component(
            "importer", "torchvision/fasterrcnn_resnet50_fpn", f"{torchvision}:FasterRCNN", "COCO, 91 classes, boxes"
        ),
        Component(
            "importer", "torchvision/maskrcnn_resnet50_fpn", f"{torchvision}:MaskRCNN", "COCO, 91 classes, boxes, masks"
        ),
        Component(
            "importer",
            "torchvision/fasterrcnn_resnet50_fpn_v2",
            f"{torchvision}:FasterRCNNV2",
            "COCO, 91 classes, boxes; batch norm throughout",
        ),
        Component(
            "importer",
            "torchvision/maskrcnn_resnet50_fpn_v2",
            f"{torchvision}:MaskRCNNV2",
            "COCO, 91 classes, boxes, masks; batch norm throughout",
        ),
        Component(
            "importer",
            "torchvision/keypointrcnn_resnet50_fpn",
            f"{torchvision}:KeypointRCNN",
            "COCO persons, boxes, 17 keypoints",
        ),
    ]
