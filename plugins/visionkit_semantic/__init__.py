"""Heads that give a class to every pixel."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "head",
            "semantic_fpn",
            "visionkit_semantic.semantic_fpn:SemanticFPN",
            "a class for every pixel: semantic branch of Panoptic FPN (Kirillov, CVPR 2019)",
        ),
        Component(
            "head",
            "deeplab_v3",
            "visionkit_semantic.deeplab_v3:DeepLabV3",
            "a class for every pixel: DeepLabv3 (Chen, 2017), dilations and the whole map side by side",
        ),
        Component(
            "head",
            "deeplab_v3plus",
            "visionkit_semantic.deeplab_v3plus:DeepLabV3Plus",
            "a class for every pixel: DeepLabv3+ (Chen, ECCV 2018), with a decoder on a fine level",
        ),
        Component(
            "head",
            "pspnet",
            "visionkit_semantic.pspnet:PSPNet",
            "a class for every pixel: PSPNet (Zhao, CVPR 2017), a pyramid of averages",
        ),
        Component(
            "head",
            "deeplab_v2",
            "visionkit_semantic.deeplab_v2:DeepLabV2",
            "a class for every pixel: DeepLabv2 (Chen, TPAMI 2018), scores of several dilations added up",
        ),
        Component(
            "head",
            "fcn",
            "visionkit_semantic.fcn:FCN",
            "a class for every pixel: fully convolutional network (Long, CVPR 2015), 32s, 16s, 8s and on any levels",
        ),
        Component(
            "head",
            "unet",
            "visionkit_semantic.unet:UNet",
            "a class for every pixel: U-Net (Ronneberger, MICCAI 2015), unpadded or on any levels",
        ),
        Component(
            "head",
            "deeplab_largefov",
            "visionkit_semantic.deeplab_largefov:DeepLabLargeFOV",
            "a class for every pixel: DeepLab-LargeFOV (Chen, ICLR 2015)",
        ),
        Component(
            "head",
            "dilated_context",
            "visionkit_semantic.dilated_context:DilatedContext",
            "a class for every pixel: DilatedNet (Yu, ICLR 2016), scores in a growing context",
        ),
        Component(
            "head",
            "xception_unet",
            "visionkit_semantic.xception_unet:XceptionUNet",
            "a class for every pixel: the small net of Keras' example",
        ),
        *importers(),
    ]


def importers() -> list[Component]:
    """Weights that were trained elsewhere."""
    kazuto, jf = "visionkit_semantic.deeplab_pytorch_weights", "visionkit_semantic.deeplab_xception_weights"
    torchvision = "visionkit_semantic.torchvision_weights"
    smp = "visionkit_semantic.smp_weights"
    models = {
        "torchvision/fcn_resnet50": (f"{torchvision}:FCN", "torchvision's FCN on a ResNet"),
        "torchvision/fcn_resnet101": (f"{torchvision}:FCN", "torchvision's FCN on a ResNet"),
        "torchvision/deeplabv3_resnet50": (f"{torchvision}:DeepLab", "torchvision's DeepLabv3 on a ResNet"),
        "torchvision/deeplabv3_resnet101": (f"{torchvision}:DeepLab", "torchvision's DeepLabv3 on a ResNet"),
        "deeplab_pytorch/deeplabv2_resnet101": (f"{kazuto}:DeepLabV2", "DeepLabv2 of kazuto1011"),
        "deeplab_pytorch/deeplabv3_resnet101": (f"{kazuto}:DeepLabV3", "DeepLabv3 of kazuto1011"),
        "deeplab_pytorch/deeplabv3plus_resnet101": (f"{kazuto}:DeepLabV3Plus", "DeepLabv3+ of kazuto1011"),
        "deeplab_xception/deeplabv3plus_resnet101": (f"{jf}:ResNet", "DeepLabv3+ of jfzhang95"),
        "deeplab_xception/deeplabv3plus_xception65": (f"{jf}:Xception", "DeepLabv3+ on Xception of jfzhang95"),
        "smp/unet": (f"{smp}:Unet", "Unet of segmentation_models.pytorch on a ResNet"),
        "smp/deeplabv3plus": (f"{smp}:DeepLabV3Plus", "DeepLabV3Plus of segmentation_models.pytorch on a ResNet"),
        "semseg/pspnet50": ("visionkit_semantic.semseg_weights:PSPNet", "PSPNet of hszhao/semseg"),
        "semseg/pspnet101": ("visionkit_semantic.semseg_weights:PSPNet", "PSPNet of hszhao/semseg"),
    }
    return [Component("importer", name, path, summary) for name, (path, summary) in models.items()]
