"""The classes of PASCAL VOC."""

from visionkit.types import LabelSet

VOC = LabelSet(
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )
)  # fmt: skip
"""The 21 of PASCAL VOC 2012 in the order of its label maps, background first."""
