"""What the core itself offers, described by the same hook that any plugin uses."""

from __future__ import annotations

from visionkit.hookspecs import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component("source", "coco", "visionkit.data.coco:CocoSource", "COCO json: boxes, masks, keypoints, panoptic"),
        Component("source", "folder", "visionkit.data.folder:FolderSource", "a folder of images and one of label maps"),
        Component("source", "class_folder", "visionkit.data.class_folder:ClassFolderSource", "a folder for each class"),
        Component("source", "class_shapes", "visionkit.data.class_shapes:ClassShapesSource", "a drawn shape an image"),
        Component(
            "source", "pairs", "visionkit.data.pairs:PairsSource", "images and the pictures they are turned into"
        ),
        Component("source", "unpaired", "visionkit.data.pairs:UnpairedSource", "images of two domains, in no order"),
        Component("source", "painted", "visionkit.data.pairs:PaintedSource", "label maps of any source as pictures"),
        Component("source", "voc", "visionkit.data.segmentation_sets:VocSource", "PASCAL VOC's folders, semantic"),
        Component(
            "source", "cityscapes", "visionkit.data.segmentation_sets:CityscapesSource", "Cityscapes' folders, semantic"
        ),
        Component("source", "ade20k", "visionkit.data.segmentation_sets:Ade20kSource", "ADE20K's folders, semantic"),
        Component("source", "camvid", "visionkit.data.segmentation_sets:CamvidSource", "CamVid's folders, semantic"),
        Component(
            "source", "outlines", "visionkit.data.outlines:OutlinesSource", "instances as maps of objects and borders"
        ),
        Component("source", "objects", "visionkit.data.crops:ObjectsSource", "every object with keypoints as a sample"),
        Component("source", "shapes", "visionkit.data.shapes:ShapesSource", "drawn scenes with every kind of label"),
        Component("transform", "normalize", "visionkit.data.transforms:Normalize", "normalise before resizing"),
        Component("transform", "resize", "visionkit.data.transforms:Resize", "resize by short and long side"),
        Component(
            "transform", "scale_jitter_crop", "visionkit.data.transforms:ScaleJitterCrop", "random scale, random crop"
        ),
        Component("transform", "crop_object", "visionkit.data.crops:CropObject", "cut out one object, turn, scale"),
        Component("transform", "hflip", "visionkit.data.transforms:HorizontalFlip", "mirror, left and right swapped"),
        Component("transform", "color_jitter", "visionkit.data.transforms:ColorJitter", "brightness, contrast, colour"),
        Component("evaluator", "coco_bbox", "visionkit.evaluate.coco:CocoBoxes", "COCO AP and AR of boxes"),
        Component("evaluator", "coco_segm", "visionkit.evaluate.coco:CocoMasks", "COCO AP and AR of masks"),
        Component("evaluator", "coco_keypoints", "visionkit.evaluate.coco:CocoKeypoints", "COCO AP and AR by OKS"),
        Component("evaluator", "pck", "visionkit.evaluate.keypoints:PckEvaluator", "PCK, AUC, error in pixels"),
        Component(
            "evaluator",
            "classification",
            "visionkit.evaluate.classification:ClassificationEvaluator",
            "top-1 and top-5 accuracy",
        ),
        Component(
            "evaluator", "semantic", "visionkit.evaluate.semantic:SemanticEvaluator", "mIoU, IoU a class, accuracy"
        ),
        Component(
            "evaluator", "boundary", "visionkit.evaluate.boundary:BoundaryEvaluator", "boundary IoU and F of label maps"
        ),
        Component("evaluator", "pq", "visionkit.evaluate.panoptic:PanopticEvaluator", "panoptic quality: PQ, SQ, RQ"),
        Component(
            "evaluator", "pictures", "visionkit.evaluate.pictures:PicturesEvaluator", "L1, PSNR, SSIM; FID, KID, LPIPS"
        ),
        Component("balancer", "fixed", "visionkit.train.balance:Fixed", "a weight for each head's losses"),
        Component("balancer", "uncertainty", "visionkit.train.weighting:Uncertainty", "learnt uncertainty"),
        Component("balancer", "imtl_l", "visionkit.train.weighting:ImpartialLosses", "learnt scales (IMTL-L)"),
        Component("balancer", "dwa", "visionkit.train.weighting:DynamicWeightAverage", "more where losses fall slowly"),
        Component("balancer", "random", "visionkit.train.weighting:RandomWeights", "random weights, a baseline (RLW)"),
        Component("balancer", "geometric_mean", "visionkit.train.weighting:GeometricMean", "product of losses (GLS)"),
        Component("balancer", "gradnorm", "visionkit.train.weighting:GradNorm", "gradients of like norms"),
        Component("balancer", "pcgrad", "visionkit.train.aggregation:PCGrad", "conflicts taken out pair by pair"),
        Component("balancer", "cagrad", "visionkit.train.aggregation:CAGrad", "best for the worst-off head"),
        Component("balancer", "mgda", "visionkit.train.aggregation:MGDA", "the shortest mixture of gradients"),
        Component("balancer", "nash_mtl", "visionkit.train.aggregation:NashMTL", "a bargain between the heads"),
        Component("balancer", "aligned_mtl", "visionkit.train.aggregation:AlignedMTL", "gradients made orthogonal"),
        Component("balancer", "imtl_g", "visionkit.train.aggregation:ImpartialGradients", "equal progress (IMTL-G)"),
        Component("balancer", "upgrad", "visionkit.train.aggregation:UPGrad", "each gradient made harmless, summed"),
        Component("balancer", "dualproj", "visionkit.train.aggregation:DualProj", "the sum of gradients made harmless"),
    ]
