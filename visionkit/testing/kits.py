"""One function a kind: everything that its contract promises, checked.

All of them take ``args``, the keyword arguments of what is checked, which take precedence over the ``check_args`` of
its class; ``expected_failures``, a mapping of the name of a check to the reason why it is not passed; ``only``, the
names of the checks to run; and ``progress``, which is called with the name of each check before it runs. All return a
:class:`~visionkit.testing.Report`, and raise :class:`~visionkit.errors.UserError` where something that the checks need
is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from visionkit.data import Source
from visionkit.errors import UserError
from visionkit.evaluate import Evaluator
from visionkit.model import Backbone, Head, Neck
from visionkit.plugins import PluginManager
from visionkit.testing import backbones, balancers, evaluators, heads, sources, transforms
from visionkit.testing.case import HeadCase
from visionkit.testing.data import ToyData
from visionkit.testing.report import Check, Report, run_checks
from visionkit.testing.samples import required
from visionkit.train.balance import Balancer
from visionkit.types import LabelSet

Arguments = Mapping[str, Any]
Reasons = Mapping[str, str]
Names = Collection[str]
Progress = Callable[[str], None]


def check_head(
    head: type[Head],
    *,
    args: Arguments | None = None,
    source: Source | None = None,
    labels: LabelSet | None = None,
    plugins: PluginManager | None = None,
    others: Mapping[str, Arguments] | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a head, on a small backbone with every level, with the heads that it reads and real samples.

    Args:
        head: its class.
        args: its keyword arguments.
        source: where samples come from; else the first registered source that offers its task and needs no arguments,
            or names them in ``check_args``.
        labels: its label set; else that of the source.
        plugins: where evaluators and the heads that it reads are looked up; else all that is installed.
        others: for its ports, heads to prefer: registered name -> keyword arguments.
        expected_failures: check -> why this head does not pass it, beside those that its class names.
        only: names of the checks to run.
        progress: called with the name of each check before it runs.
    """
    case = HeadCase.make(head, args, source, labels, plugins, others)
    expected = {**head.expected_failures, **(expected_failures or {})}
    return run_checks("head", head.__name__, heads.CHECKS, case, expected=expected, only=only, progress=progress)


def check_backbone(
    backbone: type[Backbone],
    *,
    args: Arguments | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a backbone, with random weights and images."""
    data = ToyData()
    case = backbones.FeatureCase("backbone", backbone, _complete(backbone, args, data))
    return run_checks(
        "backbone",
        backbone.__name__,
        backbones.BACKBONE_CHECKS,
        case,
        expected=expected_failures,
        only=only,
        progress=progress,
    )


def check_neck(
    neck: type[Neck],
    *,
    args: Arguments | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a neck, on random features of levels ``c1`` ... ``c5``."""
    data = ToyData()
    case = backbones.FeatureCase("neck", neck, _complete(neck, args, data, given=1))
    return run_checks(
        "neck", neck.__name__, backbones.NECK_CHECKS, case, expected=expected_failures, only=only, progress=progress
    )


def check_source(
    source: type[Source],
    *,
    args: Arguments | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a data source, on its first images."""
    data = ToyData()
    case = sources.SourceCase(source, _complete(source, args, data))
    return run_checks(
        "source", source.__name__, sources.CHECKS, case, expected=expected_failures, only=only, progress=progress
    )


def check_evaluator(
    evaluator: type[Evaluator],
    *,
    args: Arguments | None = None,
    source: Source | None = None,
    labels: LabelSet | None = None,
    plugins: PluginManager | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check an evaluator, with predictions that are made from the truth.

    Args:
        evaluator: its class.
        args: its keyword arguments.
        source: where images and targets come from; else the first registered one from whose targets predictions can be
            made.
        labels: of the head that is judged; else those of the source.
        plugins: where sources are looked up; else all that is installed.
        expected_failures: check -> why this evaluator does not pass it.
        only: names of the checks to run.
        progress: called with the name of each check before it runs.
    """
    data = ToyData()
    complete = _complete(evaluator, args, data, given=2)
    case = evaluators.EvaluatorCase.make(evaluator, complete, source, labels, plugins or PluginManager())
    return run_checks(
        "evaluator",
        evaluator.__name__,
        evaluators.CHECKS,
        case,
        expected=expected_failures,
        only=only,
        progress=progress,
    )


def check_transform(
    transform: Callable[..., Any],
    *,
    args: Arguments | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a transform, on an image whose texture tells where each pixel came from."""
    data, name = ToyData(), getattr(transform, "__name__", "transform")
    case = transforms.TransformCase(transform, _complete(transform, args, data))
    return run_checks(
        "transform", name, transforms.CHECKS, case, expected=expected_failures, only=only, progress=progress
    )


def check_balancer(
    balancer: type[Balancer],
    *,
    args: Arguments | None = None,
    expected_failures: Reasons | None = None,
    only: Names | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a balancer, on losses of three heads."""
    data = ToyData()
    case = balancers.BalancerCase(balancer, _complete(balancer, args, data, given=1))
    return run_checks(
        "balancer", balancer.__name__, balancers.CHECKS, case, expected=expected_failures, only=only, progress=progress
    )


KITS: Mapping[str, Callable[..., Report]] = {
    "head": check_head,
    "backbone": check_backbone,
    "neck": check_neck,
    "source": check_source,
    "evaluator": check_evaluator,
    "transform": check_transform,
    "balancer": check_balancer,
}
"""The kit of each kind."""

CHECKS: Mapping[str, Sequence[Check]] = {
    "head": heads.CHECKS,
    "backbone": backbones.BACKBONE_CHECKS,
    "neck": backbones.NECK_CHECKS,
    "source": sources.CHECKS,
    "evaluator": evaluators.CHECKS,
    "transform": transforms.CHECKS,
    "balancer": balancers.CHECKS,
}
"""The checks of each kind, in their order."""


def _complete(made: Any, args: Arguments | None, data: ToyData, given: int = 0) -> Arguments:
    """The arguments, with those that the class names itself, if none is missing."""
    args = data.args_of(made, args)
    if missing := [name for name in required(made, given) if name not in args]:
        raise UserError(f"{made.__name__} needs {', '.join(missing)}: give it with args= (or --set)")
    return args
