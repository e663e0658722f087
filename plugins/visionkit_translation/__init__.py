"""Images made from images: GANs, cycles, styles."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    """The heads."""
    return [
        Component(
            "head", "pix2pix", "visionkit_translation.pix2pix:Pix2Pix", "pictures learnt from pairs (Isola, CVPR 2017)"
        ),
        Component(
            "head", "cyclegan", "visionkit_translation.cyclegan:CycleGAN", "pictures without pairs (Zhu, ICCV 2017)"
        ),
        Component(
            "head", "cgan", "visionkit_translation.cgan:ConditionalGAN", "pictures of a class (Mirza, Osindero, 2014)"
        ),
        Component(
            "head", "style_transfer", "visionkit_translation.style:StyleTransfer", "a style (Johnson, ECCV 2016)"
        ),
        Component(
            "importer",
            "pix2pix/unet256",
            "visionkit_translation.published_weights:Pix2Pix",
            "a U-Net or ResNet of pytorch-CycleGAN-and-pix2pix",
        ),
        Component(
            "importer",
            "cyclegan/resnet9",
            "visionkit_translation.published_weights:CycleGAN",
            "a ResNet of pytorch-CycleGAN-and-pix2pix",
        ),
    ]
