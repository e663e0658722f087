"""YOLACT: masks as combinations of prototypes."""

from visionkit import Component, hookimpl


@hookimpl
def visionkit_components() -> list[Component]:
    """The head, and the importers of the published weights."""
    weights = "visionkit_yolact.yolact_weights"
    return [
        Component(
            "head", "yolact", "visionkit_yolact.yolact:YOLACT", "masks from prototypes, in one stage (Bolya, ICCV 2019)"
        ),
        Component("importer", "yolact/resnet50", f"{weights}:YOLACT", "masks of COCO's 80 or other classes"),
        Component("importer", "yolact/resnet101", f"{weights}:YOLACT", "masks of COCO's 80 or other classes"),
    ]
