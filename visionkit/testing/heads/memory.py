"""Memory: heads that carry something from one frame of a clip to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from visionkit.model import MultiTaskModel
from visionkit.testing.case import NAME, HeadCase, outputs, predictions
from visionkit.testing.compare import difference, tensors
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.types import MixedBatch, Prediction


def check_memory_goes_out_and_comes_in(case: HeadCase) -> None:
    """A head that remembers has a field `memory` in its output; handed back, it changes what comes next."""
    _only_if_it_remembers(case)
    model, batch = case.model().eval(), case.images(2)
    if not hasattr(outputs(model, batch)[NAME], "memory"):
        raise Broken("it says that it remembers, but its output has no field 'memory'")
    memory: dict[str, Any] = {}
    _ask(model, _row(batch, 0), memory)
    if memory.get(NAME) is None:
        raise Broken("after a frame its memory is None: nothing is handed on")
    found = []
    for before in ({}, memory):
        with seeded(), torch.no_grad():
            branches = model.branches(model.features(batch.images[1:]))
            made = model.run_heads(branches, _row(batch, 1), {name: [0] for name in model.order}, before)
        found.append(tensors(made[NAME]))
    if not difference(*found):
        raise Broken("its memory is handed on, but with and without it the next frame's output is the same")


def check_a_fresh_memory_restarts_the_clip(case: HeadCase) -> None:
    """With an empty memory, a frame is seen as the first of its clip, whatever was seen before."""
    _only_if_it_remembers(case)
    model, batch = case.model().eval(), case.images(2)
    first: list[Prediction] = _ask(model, _row(batch, 0), {})
    memory: dict[str, Any] = {}
    for frame in (1, 0, 1):
        _ask(model, _row(batch, frame), memory)
    if said := difference(first, _ask(model, _row(batch, 0), {})):
        raise Broken(f"with a fresh memory, a frame is not predicted as at the start of a clip ({said}); keep nothing "
                     "on the module")  # fmt: skip
    if said := difference(first, predictions(model, _row(batch, 0))):
        raise Broken(f"with a fresh memory, the first frame is not predicted as a single image ({said})")


def _only_if_it_remembers(case: HeadCase) -> None:
    if not case.cls.remembers:
        raise NotApplicable("it has no memory")


def _row(batch: MixedBatch, row: int) -> MixedBatch:
    info = dataclasses.replace(batch.info[row], clip="clip", frame=row)
    return dataclasses.replace(batch, images=batch.images[row : row + 1], info=(info,), targets={})


def _ask(model: MultiTaskModel, batch: MixedBatch, memory: dict[str, Any]) -> list[Prediction]:
    with seeded(), torch.no_grad():
        return list(model.predict(batch, [NAME], memory)[NAME])


CHECKS = (check_memory_goes_out_and_comes_in, check_a_fresh_memory_restarts_the_clip)
