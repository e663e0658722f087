"""What the panoptic heads know of the heads they read: which class of theirs is which of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.types import LabelSet, Output, SemanticOutput


@dataclass
class Both(Output):
    """What is merged: nothing is computed before a loss or a prediction is asked for.

    Attributes:
        semantic: scores of the pixels.
        masks: a ``MaskOutput``, of the type that the head's port demands.
    """

    semantic: SemanticOutput
    masks: Any


def table(theirs: LabelSet, ours: LabelSet) -> Tensor:
    """(their classes,) int64: the label in ``ours`` of the same name, -1 where there is none."""
    return torch.tensor([ours.names.index(name) if name in ours.names else -1 for name in theirs.names])


def things_of(labels: LabelSet) -> list[int]:
    """Labels of the countable classes."""
    return [label for label, thing in enumerate(labels.things) if thing]


def stuff_of(labels: LabelSet) -> list[int]:
    """Labels of the others."""
    return [label for label, thing in enumerate(labels.things) if not thing]


def demand(names: Iterable[str], theirs: LabelSet, port: str) -> None:
    """Raise ``UserError`` unless every one of ``names`` is a class of the head at a port."""
    if missing := [name for name in names if name not in theirs.names]:
        shown = ", ".join(f"'{name}'" for name in missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise UserError(f"the head at the port '{port}' does not know {shown} (it knows: {', '.join(theirs.names)})")
