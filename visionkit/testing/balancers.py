"""What every balancer promises."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.model.graph import Losses
from visionkit.testing.compare import difference
from visionkit.testing.report import Broken, NotApplicable, seeded
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.train.balance import Balancer

HEADS = {"a": ("x",), "b": ("y", "z"), "c": ("w",)}
ALL = {"a": 4, "b": 4, "c": 4}


@dataclass
class BalancerCase:
    """What the checks of a balancer work on: its class and keyword arguments."""

    cls: type[Balancer]
    args: Mapping[str, Any]

    def build(self) -> Balancer:
        with seeded():
            return self.cls(HEADS, **self.args)


def check_is_built(case: BalancerCase) -> None:
    """It can be built from the loss names of the heads and its keyword arguments."""
    if case.build().heads != HEADS:
        raise Broken("it has no attribute 'heads' with what it was built for: call super().__init__(heads)")


def check_arguments_are_its_configuration(case: BalancerCase) -> None:
    """After the heads, the constructor takes keywords only, annotated, with defaults that keep to the annotation, and
    refuses others."""
    assert_configurable("balancer", case.cls, given=1)


def check_arguments_are_documented(case: BalancerCase) -> None:
    """The docstring has a line for every keyword argument."""
    assert_documented(case.cls, given=1)


def check_total_is_a_finite_scalar_with_a_graph(case: BalancerCase) -> None:
    """Step after step, it gives one finite scalar, through which a finite gradient arrives at every loss."""
    balancer = case.build()
    for step in range(4):
        parameters, given = _losses(step)
        value = balancer(given, ALL)
        if not isinstance(value, Tensor) or value.ndim or not bool(value.isfinite()):
            raise Broken(f"at step {step} it gives {value!r}; it must be one finite scalar")
        value.backward()
        assert parameters.grad is not None
        if not bool(parameters.grad.isfinite().all()):
            raise Broken(f"at step {step} the gradients at the losses are {parameters.grad.tolist()}")
        if bool((parameters.grad == 0).any()):
            raise Broken(f"at step {step} a loss gets no gradient: {parameters.grad.tolist()}")


def check_heads_without_labels_stay_in_the_graph(case: BalancerCase) -> None:
    """A head that has learnt from nothing stays in the graph, and takes nothing from the others: all is finite, even
    where no head has learnt."""
    for labelled in ({**ALL, "b": 0}, {"a": 0, "b": 4, "c": 0}, dict.fromkeys(HEADS, 0)):
        balancer = case.build()
        balancer(_losses(0)[1], ALL)
        parameters, given = _losses(1, labelled)
        value = balancer(given, labelled)
        value.backward()
        if parameters.grad is None or not bool(value.isfinite()) or not bool(parameters.grad.isfinite().all()):
            unlabelled = ", ".join(head for head, count in labelled.items() if not count)
            raise Broken(f"without labels for {unlabelled} it gives {value.detach().item()}, with the gradients "
                         f"{parameters.grad.tolist() if parameters.grad is not None else None}")  # fmt: skip


def check_state_is_restored(case: BalancerCase) -> None:
    """What it has learnt and counted is in its state: restored, it goes on as if nothing had happened."""
    one, other = case.build(), case.build()
    for step in range(3):
        _step(one, step)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    found = []
    for balancer in (one, other):
        with seeded():
            found.append([_step(balancer, step) for step in (3, 4)])
    if said := difference(*found):
        raise Broken(f"after its state was loaded it weighs otherwise ({said}); keep what it counts in buffers")


def check_weights_of_gradients_are_finite(case: BalancerCase) -> None:
    """Where it weighs gradients, it gives a finite weight for each head, for gradients that agree, conflict or nearly
    vanish."""
    if not case.cls.at_features:
        raise NotApplicable("it weighs losses, not gradients")
    for gradients in (torch.eye(3), torch.ones(3, 4), torch.tensor([[1.0, 0], [-1, 0.1], [0, 1e-4]]), torch.eye(1)):
        heads = list(HEADS)[: len(gradients)]
        with seeded():
            weights = case.build().weigh(gradients @ gradients.T, heads)
        if tuple(weights.shape) != (len(heads),) or not bool(weights.isfinite().all()):
            raise Broken(f"for the gradients {gradients.tolist()} its weights are {weights.tolist()}")


def check_unknown_heads_are_refused(case: BalancerCase) -> None:
    """A weight for a head or loss that is not there is the user's mistake."""
    try:
        case.cls(HEADS, **{**case.args, "weights": {"no such head": 2.0}})
    except UserError:
        return
    except TypeError:
        raise NotApplicable("it takes no weights") from None
    raise Broken("a weight for 'no such head' goes unnoticed: hand weights to super().__init__")


def _losses(step: int, labelled: Mapping[str, int] = ALL) -> tuple[Tensor, Losses]:
    """Losses that fall at different rates, of three heads; zeros of a head without labels."""
    values = [(1.0 + i) * 0.8 ** (step * (i + 1)) * (labelled[head] > 0) for i, head in enumerate(HEADS)]
    parameters = torch.tensor(values, requires_grad=True)
    a, b, c = parameters
    return parameters, {"a": {"x": a}, "b": {"y": b / 2, "z": b / 2}, "c": {"w": c}}


def _step(balancer: Balancer, step: int) -> tuple[float, list[float]]:
    """The total of a step, and its gradients by the losses."""
    parameters, given = _losses(step)
    value = balancer(given, ALL)
    value.backward()
    assert parameters.grad is not None
    return value.detach().item(), parameters.grad.tolist()


CHECKS = (
    check_is_built,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_total_is_a_finite_scalar_with_a_graph,
    check_heads_without_labels_stay_in_the_graph,
    check_state_is_restored,
    check_weights_of_gradients_are_finite,
    check_unknown_heads_are_refused,
)
