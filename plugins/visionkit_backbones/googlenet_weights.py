"""torchvision's GoogLeNet as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit.data.label_sets import label_set
from visionkit.model.importing import Importer, class_labels, rename, section, shape_of
from visionkit.types import LabelSet
from visionkit_backbones.googlenet import MODULES

HEAD, LAYERS = "heads.class.", "backbone.layers."
# Where a layer of theirs is in ours, before '.conv' or '.bn'.
UNITS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3.0"} | {
    f"{name.replace('_', '')}.{theirs}": f"{name}.{ours}"
    for name in MODULES
    for theirs, ours in {
        "branch1": "branch1",
        **{f"branch{b}.{i}": f"branch{b}.{i}" for b in (2, 3) for i in (0, 1)},
        "branch4.1": "branch4.1",
    }.items()
}
NAMES = {
    **{f"{theirs}.conv.": f"{LAYERS}{ours}.conv." for theirs, ours in UNITS.items()},
    **{f"{theirs}.bn.": f"{LAYERS}{ours}.norm." for theirs, ours in UNITS.items()},
    "fc.": f"{HEAD}linear.",
}
NAMES |= {
    f"aux{i + 1}.{theirs}.": f"{HEAD}auxiliary.{i}.{ours}."
    for i in (0, 1)
    for theirs, ours in {"conv.conv": "conv.conv", "conv.bn": "conv.norm", "fc1": "hidden", "fc2": "score"}.items()
}


class GoogLeNet(Importer):
    """``googlenet`` of any number of classes, with or without its auxiliary classifiers.

    torchvision looks at the middle of an image; here its short side is as long, and the whole of it is looked at.

    Args:
        transform_input: whether it is for pixels of -1 ... 1, as the published weights are, and those that started
            from them; else for pixels with the mean and spread of ImageNet.
    """

    key = "inception3a.branch1.conv.weight"

    def __init__(self, *, transform_input: bool = True) -> None:
        self.transform_input = transform_input

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        backbone = {"name": "googlenet", "form": "torchvision"}
        backbone |= {"pixels": "signed"} if self.transform_input else {}
        head: dict[str, Any] = {"name": "classification", "dropout": 0.2}
        if "aux1.fc2.weight" in state:
            head |= {"auxiliary": {"inception_4a": 0.3, "inception_4d": 0.3}, "auxiliary_norm": "batch"}
        text = section(
            backbone=backbone,
            heads={"class": head},
            train={"channels_last": False},
            evaluate={"transforms": [{"name": "resize", "short": 224}]},
        )
        return text, {"class": class_labels(shape_of(state, "fc.weight")[0], label_set("imagenet"))}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, NAMES)
