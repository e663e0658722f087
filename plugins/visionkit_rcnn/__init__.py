"""Faster, Mask and Keypoint R-CNN as heads that read one another: boxes, masks, keypoints."""

from collections.abc import Iterable

from visionkit import Component, hookimpl

TORCHVISION = {
    "fasterrcnn_resnet50_fpn": ("FasterRCNN", "COCO, 91 classes, boxes"),
    "maskrcnn_resnet50_fpn": ("MaskRCNN", "COCO, 91 classes, boxes, masks"),
    "keypointrcnn_resnet50_fpn": ("KeypointRCNN", "COCO persons, boxes, 17 keypoints"),
    "fasterrcnn_resnet50_fpn_v2": ("FasterRCNN", "COCO, 91 classes, boxes; batch norm throughout"),
    "maskrcnn_resnet50_fpn_v2": ("MaskRCNN", "COCO, 91 classes, boxes, masks; batch norm throughout"),
}
DETECTRON2 = {
    "faster_rcnn_R_50_FPN_3x": ("FasterRCNN", "COCO, 80 classes, boxes"),
    "faster_rcnn_R_101_FPN_3x": ("FasterRCNN", "COCO, 80 classes, boxes"),
    "mask_rcnn_R_50_FPN_3x": ("MaskRCNN", "COCO, 80 classes, boxes, masks"),
    "mask_rcnn_R_101_FPN_3x": ("MaskRCNN", "COCO, 80 classes, boxes, masks"),
    "keypoint_rcnn_R_50_FPN_3x": ("KeypointRCNN", "COCO persons, boxes, 17 keypoints"),
    "keypoint_rcnn_R_101_FPN_3x": ("KeypointRCNN", "COCO persons, boxes, 17 keypoints"),
    "panoptic_fpn_R_50_3x": ("PanopticFPN", "COCO, 80 classes of things, 53 of stuff"),
    "panoptic_fpn_R_101_3x": ("PanopticFPN", "COCO, 80 classes of things, 53 of stuff"),
}


@hookimpl
def visionkit_components() -> Iterable[Component]:
    """Three heads, and the importers of torchvision's and detectron2's weights."""
    yield Component(
        "head", "rcnn", "visionkit_rcnn.rcnn:RCNN", "boxes: region proposals and a box branch (Faster R-CNN)"
    )
    yield Component("head", "roi_mask", "visionkit_rcnn.roi_mask:RoIMask", "a mask for every box (Mask R-CNN)")
    yield Component(
        "head", "roi_keypoint", "visionkit_rcnn.roi_keypoint:RoIKeypoint", "keypoints for every box (Mask R-CNN)"
    )
    for origin, models in (("torchvision", TORCHVISION), ("detectron2", DETECTRON2)):
        for name, (importer, summary) in models.items():
            yield Component("importer", f"{origin}/{name}", f"visionkit_rcnn.{origin}_weights:{importer}", summary)
