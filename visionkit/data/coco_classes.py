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

_STUFF_SLOTS = (
    "92 banner/93 blanket/95 bridge/100 cardboard/107 counter/109 curtain/112 door-stuff/118 floor-wood/"
    "119 flower/122 fruit/125 gravel/128 house/130 light/133 mirror-stuff/138 net/141 pillow/144 platform/"
    "145 playingfield/147 railroad/148 river/149 road/151 roof/154 sand/155 sea/156 shelf/159 snow/161 stairs/"
    "166 tent/168 towel/171 wall-brick/175 wall-stone/176 wall-tile/177 wall-wood/178 water-other/"
    "180 window-blind/181 window-other/184 tree-merged/185 fence-merged/186 ceiling-merged/187 sky-other-merged/"
    "188 cabinet-merged/189 table-merged/190 floor-other-merged/191 pavement-merged/192 mountain-merged/"
    "193 grass-merged/194 dirt-merged/195 paper-merged/196 food-other-merged/197 building-other-merged/"
    "198 rock-merged/199 wall-other-merged/200 rug-merged"
)
_STUFF = tuple((int(number), name) for number, name in (entry.split(" ", 1) for entry in _STUFF_SLOTS.split("/")))

COCO_PANOPTIC = LabelSet(
    COCO_OBJECTS.names + tuple(name for _, name in _STUFF),
    ids=COCO_OBJECTS.ids + tuple(number for number, _ in _STUFF),
    things=(True,) * len(COCO_OBJECTS) + (False,) * len(_STUFF),
)
"""The 80 classes of objects and the 53 of stuff that panoptic segmentation knows (Kirillov et al., CVPR 2019)."""

COCO_STUFF = LabelSet(
    ("things", *(name for _, name in _STUFF)), ids=(0, *(number for number, _ in _STUFF)), things=(False,) * 54
)
"""One class for all objects, and the 53 of stuff: what the semantic branch of Panoptic FPN tells apart."""
