"""Phases: heads that train several parts in turn."""

from __future__ import annotations

import torch

from visionkit.testing.case import NAME, HeadCase, number, outputs
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.types import Mean
from visionkit.types._tree import map_tensors


def check_phases_share_out_the_parameters(case: HeadCase) -> None:
    """`phases` has a `"main"`, names what `phase_loss_names` names, and puts every trained parameter into one phase."""
    head = case.head()
    phases = {phase: {id(p) for p in parameters} for phase, parameters in head.phases().items()}
    if "main" not in phases:
        raise Broken(f"phases are {sorted(phases)}; one of them must be 'main'")
    if set(phases) - {"main"} != set(head.phase_loss_names) and head.phase_loss_names:
        raise Broken(f"phases beside 'main' are {sorted(set(phases) - {'main'})}; phase_loss_names has "
                     f"{sorted(head.phase_loss_names)}")  # fmt: skip
    for name, parameter in head.named_parameters():
        owners = [phase for phase, own in phases.items() if id(parameter) in own]
        if len(owners) > 1:
            raise Broken(f"parameter '{name}' is in the phases {' and '.join(owners)}; it must be in one")
        if not owners and parameter.requires_grad:
            raise Broken(f"parameter '{name}' is in no phase, so nothing trains it")


def check_main_phase_has_the_losses(case: HeadCase) -> None:
    """`phase_losses("main", ...)` gives what `losses` gives."""
    model, batch, found = case.model(), case.batch(), []
    head = model.head(NAME)
    for ask in (head.losses, lambda output, view: head.phase_losses("main", output, view)):
        with seeded():
            named = ask(outputs(model, batch)[NAME], case.view(batch, targets=True))
        found.append({n: v.value() if isinstance(v, Mean) else v for n, v in named.items()})
    if said := difference(*found):
        raise Broken(f"losses and phase_losses('main') differ ({said})")


def check_each_phase_trains_its_own_parameters(case: HeadCase) -> None:
    """The losses of each phase are named and finite, and reach every parameter of that phase."""
    phases = list(case.head().phases())
    if phases == ["main"]:
        raise NotApplicable("it is trained in one phase")
    model, batch = case.model(), case.batch()
    head = model.head(NAME)
    made = None
    for phase in phases:
        own = {id(p) for p in head.phases()[phase]}
        for parameter in head.parameters():
            parameter.requires_grad_(id(parameter) in own)
            parameter.grad = None
        with seeded():
            losses, after = model.losses(batch, phase, made)
        made = map_tensors(after, torch.Tensor.detach) if made is None else made
        for name, value in losses[NAME].items():
            if not bool(value.isfinite()):
                raise Broken(f"in phase '{phase}' loss '{name}' is {number(value)}")
        torch.stack(list(losses[NAME].values())).sum().backward()
        missing = [n for n, p in head.named_parameters() if id(p) in own and (p.grad is None or not bool(p.grad.any()))]
        if len(missing) == len(own):
            raise Broken(f"in phase '{phase}' no loss reaches any of its parameters")
        if unused := [n for n, p in head.named_parameters() if id(p) in own and p.grad is None]:
            raise Broken(f"in phase '{phase}' no loss reaches its parameter '{unused[0]}'")


CHECKS = (
    check_phases_share_out_the_parameters,
    check_main_phase_has_the_losses,
    check_each_phase_trains_its_own_parameters,
)
