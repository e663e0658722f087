"""The classes of well-known data sets for semantic segmentation, with their colours."""

from __future__ import annotations

from collections.abc import Sequence

from visionkit.types import LabelSet


def _set(
    names: Sequence[str], first: int = 0, ids: Sequence[int] = (), colors: Sequence[tuple[int, int, int]] = ()
) -> LabelSet:
    """Stuff alone: a label map counts no objects. ``ids`` are the values of the pixels, from ``first`` on."""
    values = tuple(ids) or tuple(range(first, first + len(names)))
    return LabelSet(tuple(names), ids=values, things=(False,) * len(names), colors=tuple(colors))


def voc_palette(count: int) -> list[tuple[int, int, int]]:
    """The colours that the development kit of VOC gives its labels: the bits of a label, three at a time, are the
    highest bits of red, green and blue, then the next ones."""

    def channel(label: int, first: int) -> int:
        return sum((label >> (first + 3 * place) & 1) << (7 - place) for place in range(8))

    return [(channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(count)]


VOC = _set(
    (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    colors=voc_palette(21),
)  # fmt: skip
"""PASCAL VOC 2012, background first."""

_CITYSCAPES = {
    "road": (7, (128, 64, 128)), "sidewalk": (8, (244, 35, 232)), "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)), "fence": (13, (190, 153, 153)), "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)), "traffic sign": (20, (220, 220, 0)), "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)), "sky": (23, (70, 130, 180)), "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)), "car": (26, (0, 0, 142)), "truck": (27, (0, 0, 70)), "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)), "motorcycle": (32, (0, 0, 230)), "bicycle": (33, (119, 11, 32)),
}  # fmt: skip
CITYSCAPES = _set(
    tuple(_CITYSCAPES), ids=[i for i, _ in _CITYSCAPES.values()], colors=[c for _, c in _CITYSCAPES.values()]
)
"""The 19 that Cityscapes is judged by, in the order of its ``trainIds``; ``ids`` are its ``labelIds``."""

ADE20K = _set(
    (
        "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
        "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
        "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
        "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
        "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
        "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
        "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
        "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
        "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
        "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster",
        "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
        "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
        "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
        "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
        "bulletin board", "shower", "radiator", "glass", "clock", "flag",
    ),
    first=1,
)  # fmt: skip
"""The 150 of ADE20K's scene parsing; 0 in its label maps is everything else."""

CAMVID_COLORS: dict[str, list[tuple[int, int, int]]] = {
    "sky": [(128, 128, 128)],
    "building": [(128, 0, 0), (0, 128, 64), (64, 192, 0), (64, 0, 64), (192, 0, 128)],  # bridge, wall, tunnel, archway
    "pole": [(192, 192, 128), (0, 0, 64)],  # traffic cone
    "road": [(128, 64, 128), (128, 0, 192), (192, 0, 64)],  # lane markings
    "pavement": [(0, 0, 192), (64, 192, 128), (128, 128, 192)],  # parking block, road shoulder
    "tree": [(128, 128, 0), (192, 192, 0)],  # other vegetation
    "sign": [(192, 128, 128), (128, 128, 64), (0, 64, 64)],  # other text, traffic light
    "fence": [(64, 64, 128)],
    "car": [(64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)],  # pick-up, bus, train, other
    "pedestrian": [(64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)],  # child, pram, animal
    "bicyclist": [(0, 128, 192), (192, 0, 192)],  # motorcycle
}
"""The eleven classes that CamVid is judged by, each with the colours that fall to it, its own first."""
CAMVID = _set(tuple(CAMVID_COLORS), colors=[colors[0] for colors in CAMVID_COLORS.values()])
"""CamVid in eleven classes, in the order of its label maps of indices."""
