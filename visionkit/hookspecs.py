"""The hooks a plugin may implement. This module imports no torch, so that listing plugins is instant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pluggy

if TYPE_CHECKING:
    from visionkit.train.loop import Run

hookspec = pluggy.HookspecMarker("visionkit")
hookimpl = pluggy.HookimplMarker("visionkit")

Kind = Literal["backbone", "neck", "head", "source", "transform", "evaluator", "balancer", "importer"]


@dataclass(frozen=True, slots=True)
class Component:
    """What a plugin offers, described without importing it.

    Attributes:
        kind: what it is.
        name: what a pipeline calls it.
        target: where it is, ``"module:Name"``; imported when it is first used.
        summary: one line for ``visionkit plugins``.
    """

    kind: Kind
    name: str
    target: str
    summary: str = ""


@hookspec
def visionkit_components() -> Iterable[Component]:
    """Backbones, necks, heads, sources, transforms, evaluators, balancers and importers that this plugin offers."""
    return ()


@hookspec
def visionkit_run_started(run: Run) -> None:
    """A training run is about to take its first step (of this process)."""


@hookspec
def visionkit_step_done(run: Run, step: int, losses: Mapping[str, float]) -> None:
    """Step ``step`` is done; ``losses`` maps ``head/name`` to the value. Called when a step is logged."""


@hookspec
def visionkit_evaluated(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """An evaluation is done; ``metrics`` maps ``source/head/metric`` to the value."""


@hookspec
def visionkit_checkpoint_saved(run: Run, step: int, path: Any) -> None:
    """A checkpoint has been written, whole, at ``path``."""
