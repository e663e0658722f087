"""The label sets that a pipeline may name in place of a list: ``labels: coco_panoptic``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from visionkit.data.coco_classes import COCO_OBJECTS, COCO_PANOPTIC, COCO_PERSONS, COCO_STUFF
from visionkit.data.segmentation_classes import ADE20K, CAMVID, CITYSCAPES, VOC
from visionkit.errors import UserError
from visionkit.types import LabelSet

LABEL_SETS: Mapping[str, LabelSet] = {
    "coco": COCO_OBJECTS,
    "coco_persons": COCO_PERSONS,
    "coco_panoptic": COCO_PANOPTIC,
    "coco_stuff": COCO_STUFF,
    "voc": VOC,
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
    "camvid": CAMVID,
}


def label_set(given: str | list[str]) -> LabelSet:
    """The label set of this name, or the one with these class names.

    Raises:
        UserError: no such label set.
    """
    if not isinstance(given, str):
        return LabelSet(tuple(given))
    if given == "imagenet":
        return imagenet()
    if given not in LABEL_SETS:
        names = [*LABEL_SETS, "imagenet"]
        near = difflib.get_close_matches(given, names, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"no label set '{given}': {hint}(there is: {', '.join(names)}; or list the classes)")
    return LABEL_SETS[given]


def imagenet() -> LabelSet:
    """The 1000 classes of ImageNet by their synsets (``n01440764`` ...), which are the names of its folders."""
    from timm.data import ImageNetInfo

    return LabelSet(tuple(ImageNetInfo().label_names()))
