"""Backbones, the necks on top of them, and the head that they are mostly trained with first."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    return [
        Component(
            "backbone", "timm", "visionkit_backbones.timm_backbone:TimmBackbone", "any timm feature backbone, by name"
        ),
        Component(
            "backbone",
            "aligned_xception",
            "visionkit_backbones.xception:AlignedXception",
            "Xception-65 with strides instead of pooling, as DeepLabv3+ has it",
        ),
        Component(
            "backbone",
            "dilated_resnet",
            "visionkit_backbones.dilated_resnet:DilatedResNet",
            "a ResNet of timm with dilated stages and a multi-grid, as the DeepLabs and PSPNet have it",
        ),
        Component(
            "backbone",
            "vgg16",
            "visionkit_backbones.vgg:VGG16",
            "VGG16 with fully connected layers as convolutions: FCN's, LargeFOV's and DilatedNet's forms",
        ),
        Component(
            "backbone",
            "googlenet",
            "visionkit_backbones.googlenet:GoogLeNet",
            "GoogLeNet (Szegedy, CVPR 2015), as published or as torchvision has it",
        ),
        Component(
            "head",
            "classification",
            "visionkit_backbones.classification:Classification",
            "a class for the whole image, with auxiliary classifiers",
        ),
        Component(
            "importer",
            "torchvision/googlenet",
            "visionkit_backbones.googlenet_weights:GoogLeNet",
            "torchvision's GoogLeNet",
        ),
        Component(
            "importer",
            "newell/hourglass2",
            "visionkit_backbones.hourglass_weights:StackedHourglass",
            "MPII, persons, 16 keypoints",
        ),
        Component(
            "importer",
            "newell/hourglass8",
            "visionkit_backbones.hourglass_weights:StackedHourglass",
            "MPII, persons, 16 keypoints",
        ),
        Component(
            "backbone",
            "unet_encoder",
            "visionkit_backbones.unet_encoder:UNetEncoder",
            "the contracting path of U-Net (Ronneberger, MICCAI 2015)",
        ),
        Component(
            "backbone",
            "xception_encoder",
            "visionkit_backbones.xception_encoder:XceptionEncoder",
            "the encoder of Keras' example of segmentation",
        ),
        Component(
            "backbone",
            "hourglass",
            "visionkit_backbones.hourglass:StackedHourglass",
            "stacked hourglass (Newell, ECCV 2016), 1 to 8 stacks",
        ),
        Component(
            "backbone",
            "corner_hourglass",
            "visionkit_backbones.hourglass:CornerHourglass",
            "CornerNet's hourglass (Law, ECCV 2018): Hourglass-104, -52 and smaller ones",
        ),
        Component("neck", "fpn", "visionkit_backbones.fpn:FPN", "feature pyramid network (Lin, CVPR 2017), P2 to P7"),
        Component("neck", "deconv", "visionkit_backbones.deconv:DeconvNeck", "deconvolutions to P2 (Xiao, ECCV 2018)"),
        Component("neck", "dla_up", "visionkit_backbones.dla_up:DLAUp", "deep aggregation to P2 (CenterNet on DLA)"),
    ]
