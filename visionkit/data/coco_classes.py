"""The classes of COCO (Lin et al., ECCV 2014), for models that were trained on it."""

from __future__ import annotations

from visionkit.types import LabelSet

# In the order of their ids, 1 ... 90; ten ids were never used.
_SLOTS = (
    "person/bicycle/car/motorcycle/airplane/bus/train/truck/boat/traffic light/fire hydrant//stop sign/parking meter/"
    "bench/bird/cat/dog/horse/sheep/cow/elephant/bear/zebra/giraffe//backpack/umbrella///handbag/tie/suitcase/"
    "frisbee/skis/snowboard/sports ball/kite/baseball bat/baseball glove/skateboard/surfboard/tennis racket/bottle//"
    "wine glass/cup/fork/knife/spoon/bowl/banana/apple/sandwich/orange/broccoli/carrot/hot dog/pizza/donut/cake/"
    "chair/couch/potted plant/bed//dining table///toilet//tv/laptop/mouse/remote/keyboard/cell phone/microwave/oven/"
    "toaster/sink/refrigerator//book/clock/vase/scissors/teddy bear/hair drier/toothbrush"
)
_NAMES = _SLOTS.split("/")

COCO_OBJECTS = LabelSet(
    tuple(name for name in _NAMES if name), ids=tuple(i for i, name in enumerate(_NAMES, start=1) if name)
)
"""The 80 classes of objects, with their ids."""

COCO_OBJECTS_90 = LabelSet(tuple(name or f"unused {i}" for i, name in enumerate(_NAMES, start=1)))
"""The same with a place for each unused id, as torchvision's weights have it: label + 1 is the id."""

_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSONS = LabelSet(
    ("person",),
    keypoints=("nose", *(f"{side}_{part}" for part in _SIDED for side in ("left", "right"))),
    skeleton=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
        (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
    swaps=tuple((i, i + 1) for i in range(1, 17, 2)),
)  # fmt: skip
"""Persons with their 17 keypoints."""
