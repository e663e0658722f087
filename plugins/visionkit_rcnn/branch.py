"""What the branches on a detector's boxes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from visionkit.types import Output, RegionOutput


@dataclass
class BranchOutput(Output):
    """Nothing is computed before it is known which boxes are wanted: sampled ones to learn, final ones to predict.

    Attributes:
        features: level -> (B, C, h, w).
        regions: the boxes.
    """

    features: Mapping[str, Tensor]
    regions: RegionOutput
