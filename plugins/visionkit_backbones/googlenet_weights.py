"""torchvision's GoogLeNet as a run of ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from visionkit.data.label_sets import label_set
from visionkit.model.importing import Importer, rename
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
    """``googlenet`` with its auxiliary classifiers, as published: for pixels of -1 ... 1 (``transform_input``).

    torchvision looks at the middle of an image; here its short side is as long, and the whole of it is looked at.
    """

    pipeline = """
backbone: {name: googlenet, form: torchvision, pixels: signed}
heads:
  class:
    name: classification
    dropout: 0.2
    auxiliary: {inception_4a: 0.3, inception_4d: 0.3}
    auxiliary_norm: batch
train: {channels_last: false}
evaluate:
  transforms: [{name: resize, short: 224}]
"""
    labels = {"class": label_set("imagenet")}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state, NAMES)
