"""PSPNet of hszhao/semseg (ResNets with a deep stem) as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.importing import Importer, class_labels, count_in, rename, section, shape_of
from visionkit.model.resnets import resnet_section
from visionkit.types import LabelSet
from visionkit_semantic.voc import VOC

BODY = "backbone.resnet.body."
HEAD = "heads.semantic."
STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}
BRANCH = {"0": "0.conv", "1": "0.norm", "4": "2"}


class PSPNet(Importer):
    """``PSPNet(layers=50 | 101 | 152, zoom_factor=8)``, for sides of 8 n + 1 pixels. Its output stride is always 8.

    Args:
        bins: cells per side of each average; only their number can be read from the weights.
    """

    key = "cls.4.weight"
    names: Mapping[str, str] = {
        **{f"layer0.{theirs}.": f"{BODY}{ours}." for theirs, ours in STEM.items()},
        **{f"layer{i}.": f"{BODY}layer{i}." for i in range(1, 5)},
        "ppm.features.#.1.": f"{HEAD}pool.branches.#.conv.",
        "ppm.features.#.2.": f"{HEAD}pool.branches.#.norm.",
        **{f"cls.{theirs}.": f"{HEAD}branch.{ours}." for theirs, ours in BRANCH.items()},
        **{f"aux.{theirs}.": f"{HEAD}auxiliary.{ours}." for theirs, ours in BRANCH.items()},
    }

    def __init__(self, *, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        self.bins = tuple(bins)

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        resnet = resnet_section(state, [f"layer{i}." for i in range(1, 5)])
        stem = {"stem_width": shape_of(state, "layer0.0.weight")[0], "stem_type": "deep"}
        resnet["options"] = {**resnet.get("options", {}), **stem}
        branches = count_in(state, "ppm.features.#.")
        if branches != len(self.bins):
            raise UserError(f"the pyramid has {branches} averages: add --set bins=[...] with the cells a side of each")
        head = {"name": "pspnet", "align": "corners", "hidden": shape_of(state, "cls.0.weight")[0]}
        head |= {"bins": list(self.bins)}
        if "aux.0.weight" in state:
            head["auxiliary_hidden"] = shape_of(state, "aux.0.weight")[0]
        else:
            head["auxiliary"] = None
        text = section(
            backbone={"name": "dilated_resnet", **resnet, "output_stride": 8},
            heads={"semantic": head},
            train={"channels_last": False},
        )
        return text, {"semantic": class_labels(shape_of(state, self.key)[0], VOC)}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, self.names)
