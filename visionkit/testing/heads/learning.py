"""Gradients: where they arrive, and that they lead somewhere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from visionkit.testing.case import NAME, HeadCase, losses, number, outputs, total
from visionkit.testing.report import Broken
from visionkit.types import Mean

STEPS = 25
FALL = 0.6


def check_gradients_reach_every_parameter(case: HeadCase) -> None:
    """The losses reach every parameter of the head that is trained in the main phase."""
    model = case.model()
    head = model.head(NAME)
    total(losses(model, case.batch())).backward()
    main = {id(parameter) for parameter in head.phases()["main"]}
    for name, parameter in head.named_parameters():
        if id(parameter) not in main or not parameter.requires_grad:
            continue
        if parameter.grad is None:
            raise Broken(f"no loss reaches parameter '{name}': it is not used, or cut off (detach, no_grad)")
        if not bool(parameter.grad.isfinite().all()):
            raise Broken(f"the gradient of parameter '{name}' is not finite")
    if main and not any(p.grad is not None and bool(p.grad.any()) for p in head.parameters()):
        raise Broken("the gradients of all parameters are zero: nothing is learnt")


def check_gradients_reach_the_features(case: HeadCase) -> None:
    """The head reads every level that it names in `levels`, and its losses reach what it reads."""
    model, batch = case.model(), case.batch()
    head = model.head(NAME)
    if not head.levels:
        return
    read: set[str] = set()
    shared = {level: value.detach().requires_grad_() for level, value in model.features(batch.images).items()}
    upstream = outputs(model, batch, {level: value.detach() for level, value in shared.items()})
    ports = {port: upstream[other] for port, other in model.reads[NAME].items()}
    output = head(
        _Watched({level: shared[level] for level in head.levels}, read), case.view(batch, targets=False), ports
    )
    found = head.losses(output, case.view(batch, targets=True))
    if unread := [level for level in head.levels if level not in read]:
        raise Broken(f"it names level '{unread[0]}' in 'levels', but does not read it; the core builds it in vain")
    total({name: loss.total if isinstance(loss, Mean) else loss for name, loss in found.items()}).backward()
    if not any(value.grad is not None and bool(value.grad.any()) for value in shared.values()):
        raise Broken("no gradient arrives at the features that it reads, so the backbone learns nothing from it")


def check_a_toy_batch_is_learnt(case: HeadCase) -> None:
    """Trained on one small batch, its losses fall clearly."""
    tried = []
    for rate in (3e-3, 1e-2, 3e-4):
        first, best = _train(case, rate)
        if best < first - (1 - FALL) * abs(first):
            return
        tried.append(f"{first:.3g} -> {best:.3g}")
    raise Broken(f"in {STEPS} steps on one batch the sum of its losses goes {', '.join(tried)} (three rates); it "
                 f"should fall below {FALL} of what it was")  # fmt: skip


def _train(case: HeadCase, rate: float) -> tuple[float, float]:
    """The sum of the losses at the start, and the least of all steps."""
    model, batch = case.model().train(), case.batch(2, sides=((64, 64),))
    head = model.head(NAME)
    kept_out = {id(p) for phase, parameters in head.phases().items() if phase != "main" for p in parameters}
    optimizer = torch.optim.Adam([p for p in model.parameters() if id(p) not in kept_out and p.requires_grad], lr=rate)
    values: list[float] = []
    for _ in range(STEPS):
        loss = total(losses(model, batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        values.append(number(loss))
        if values[-1] < values[0] - (1 - FALL) * abs(values[0]):
            break
    return values[0], min(values)


def check_two_heads_of_a_kind_are_independent(case: HeadCase) -> None:
    """Two heads of the class in one pipeline share no parameters, and each learns from its own labels alone."""
    model = case.model((NAME, "twin"))
    one, twin = model.head(NAME), model.head("twin")
    if shared := {id(p) for p in one.parameters()} & {id(p) for p in twin.parameters()}:
        raise Broken(f"two heads of the class share {len(shared)} parameters")
    batch = case.batch(names=("twin",))
    total(losses(model, batch, "twin")).backward()
    if bad := [name for name, p in one.named_parameters() if p.grad is not None and bool(p.grad.any())]:
        raise Broken(f"labels of one head train '{bad[0]}' of another head of its class")


class _Watched(dict[str, Tensor]):
    """Features that note which levels are read."""

    def __init__(self, levels: dict[str, Tensor], read: set[str]) -> None:
        super().__init__(levels)
        self.read = read

    def __getitem__(self, level: str) -> Tensor:
        self.read.add(level)
        return super().__getitem__(level)

    def get(self, level, default=None):  # type: ignore[no-untyped-def, override]
        self.read.add(level)
        return super().get(level, default)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()  # defined, so that dict(features) and {**features} ask for the items one by one

    def values(self):  # type: ignore[no-untyped-def, override]
        return [self[level] for level in self]

    def items(self):  # type: ignore[no-untyped-def, override]
        return [(level, self[level]) for level in self]


CHECKS = (
    check_gradients_reach_every_parameter,
    check_gradients_reach_the_features,
    check_a_toy_batch_is_learnt,
    check_two_heads_of_a_kind_are_independent,
)
