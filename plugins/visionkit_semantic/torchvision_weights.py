"""torchvision's FCN and DeepLabv3 (ResNets of stride 8) as runs of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionkit.model.importing import Importer, class_labels, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet
from visionkit_semantic.voc import VOC

HEAD = "heads.semantic."
SCORE = {"0.": "0.conv.", "1.": "0.norm.", "4.": "2."}
SHARED = {
    "backbone.": "backbone.body.",
    **{f"aux_classifier.{theirs}": f"{HEAD}auxiliary.{ours}" for theirs, ours in SCORE.items()},
}


class TorchvisionSegmentation(Importer):
    """What both have in common. Depth, classes, and whether there are auxiliary scores are read from the tensors."""

    key = "classifier.4.weight"
    names: Mapping[str, str]

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        resnet = resnet_section(state, [f"backbone.layer{i}." for i in range(1, 5)])
        labels = class_labels(shape_of(state, self.key)[0], VOC)
        head = self.head(state)
        if "aux_classifier.4.weight" in state:
            head |= {"auxiliary": "c4", "auxiliary_weight": 0.5}
        # Sums in torchvision's own order, and its size of images: what is found is then equal to the last bits.
        text = section(
            backbone={"name": "timm", **resnet, "output_stride": 8},
            heads={"semantic": head},
            train={"channels_last": False},
            evaluate={"transforms": [{"name": "resize", "short": 520}]},
        )
        return text, {"semantic": labels}

    @abstractmethod
    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The keys of the head's section."""

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, self.names)


class FCN(TorchvisionSegmentation):
    """``fcn_resnet50`` and ``fcn_resnet101``."""

    names: Mapping[str, str] = {
        **SHARED,
        **{f"classifier.{theirs}": f"{HEAD}score.0.{ours}" for theirs, ours in SCORE.items()},
    }

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        hidden = shape_of(state, "classifier.0.weight")[0]
        return {"name": "fcn", "levels": ["c5"], "hidden": hidden, "enlarge": "bilinear"}


class DeepLab(TorchvisionSegmentation):
    """``deeplabv3_resnet50`` and ``deeplabv3_resnet101``."""

    names = {
        **SHARED,
        "classifier.0.convs.#.0.": f"{HEAD}aspp.branches.#.conv.",
        "classifier.0.convs.#.1.": f"{HEAD}aspp.branches.#.norm.",
        "classifier.0.convs.4.1.": f"{HEAD}aspp.pool.conv.",
        "classifier.0.convs.4.2.": f"{HEAD}aspp.pool.norm.",
        "classifier.0.project.0.": f"{HEAD}aspp.project.conv.",
        "classifier.0.project.1.": f"{HEAD}aspp.project.norm.",
        "classifier.1.": f"{HEAD}hidden.conv.",
        "classifier.2.": f"{HEAD}hidden.norm.",
        "classifier.4.": f"{HEAD}score.",
    }

    def head(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"name": "deeplab_v3", "hidden": True, "channels": shape_of(state, "classifier.1.weight")[0]}
