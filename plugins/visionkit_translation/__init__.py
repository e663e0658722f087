"""Images made from images: GANs, cycles, styles."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    """The heads."""
    return [
        Component(
            "head", "pix2pix", "visionkit_translation.pix2pix:Pix2Pix", "pictures learnt from pairs (Isola, CVPR 2017)"
        ),
    ]
