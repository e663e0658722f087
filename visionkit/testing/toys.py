"""A small backbone and neck that offer every level that a head may ask for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from visionkit.model import Backbone, Neck
from visionkit.types import Features, FeatureSpec, Level

WIDTHS = {"c1": 8, "c2": 16, "c3": 16, "c4": 24, "c5": 32}
PYRAMID = ("p2", "p3", "p4", "p5", "p6", "p7")
WIDTH, STRIDE = 16, 4


class ToyBackbone(Backbone):
    """Levels ``c1`` ... ``c5`` by five convolutions of stride 2.

    Args:
        levels: names of the levels that are read; ``None``: all.
    """

    def __init__(self, *, levels: Collection[str] | None = None) -> None:
        super().__init__()
        names = list(WIDTHS)
        wanted = [name for name in names if levels is None or name in levels]
        self.spec = FeatureSpec({name: Level(WIDTHS[name], 2 ** int(name[1:])) for name in wanted})
        self.stages = nn.ModuleDict()
        before = 3
        for name in names[: names.index(wanted[-1]) + 1]:
            self.stages[name] = nn.Sequential(nn.Conv2d(before, WIDTHS[name], 3, 2, 1), nn.LeakyReLU(0.1))
            before = WIDTHS[name]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        made = {}
        for name, stage in self.stages.items():
            images = made[name] = stage(images)
        return {name: made[name] for name in self.spec}


class ToyNeck(Neck):
    """A pyramid ``p2`` ... ``p7`` of one width.

    Args:
        spec: of the backbone, with ``c2`` ... ``c5``.
        levels: names of the levels that are read; ``None``: all.
        more: names of levels that are offered as well; each is ``p2`` under another name.
    """

    reads = ("c2", "c3", "c4", "c5")

    def __init__(self, spec: FeatureSpec, *, levels: Collection[str] | None = None, more: Collection[str] = ()) -> None:
        super().__init__()
        strides = {**{name: 2 ** int(name[1:]) for name in PYRAMID}, **dict.fromkeys(more, STRIDE)}
        self.spec = FeatureSpec({n: Level(WIDTH, s) for n, s in strides.items() if levels is None or n in levels})
        self.lateral = nn.ModuleDict({name: nn.Conv2d(spec[name].channels, WIDTH, 1) for name in self.reads})

    def forward(self, features: Features) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        above: Tensor | None = None
        for name in reversed(self.reads):
            x = self.lateral[name](features[name])
            above = x if above is None else x + F.interpolate(above, size=x.shape[-2:])
            made[f"p{name[1:]}"] = above
        made["p6"] = made["p5"][:, :, ::2, ::2]
        made["p7"] = made["p6"][:, :, ::2, ::2]
        return {name: made.get(name, made["p2"]) for name in self.spec}


class SpecOfAll(FeatureSpec):
    """A spec that has every level it is asked for, so that a head with levels of its own backbone's names can be built.

    Names such as ``c7`` and ``p1`` are spelled wrong rather than unknown: they are errors as ever.

    Attributes:
        added: levels that it was asked for and did not have.
    """

    def __init__(self, levels: Mapping[str, Level]) -> None:
        super().__init__(levels)
        self.added: dict[str, Level] = {}

    def __getitem__(self, name: str) -> Level:
        if name in self._levels or not isinstance(name, str) or re.fullmatch(r"[cp]\d+", name):
            return super().__getitem__(name)
        return self.added.setdefault(name, Level(WIDTH, STRIDE))

    def only(self, names: Iterable[str]) -> FeatureSpec:
        """The spec of just these levels, in the order given."""
        return FeatureSpec({name: self[name] for name in names})
