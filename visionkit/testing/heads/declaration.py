"""A head says what it is before it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from visionkit.errors import PluginError
from visionkit.testing.case import HeadCase, losses, number, predictions
from visionkit.testing.heads.predictions import assert_labels
from visionkit.testing.report import Broken, NotApplicable
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.types import Output, Prediction


def check_is_built(case: HeadCase) -> None:
    """It can be built from a spec, a label set and its keyword arguments."""
    head = case.head()
    if getattr(head, "labels", None) != case.labels:
        raise Broken(
            "the head has no attribute 'labels' with what it was built for: call super().__init__(spec, labels)"
        )


def check_declares_what_it_is(case: HeadCase) -> None:
    """`makes`, `output`, `needs`, `loss_names`, `phase_loss_names`, `labels_from` and `levels` are set and of the right
    types."""
    cls, head = case.cls, case.head()
    if not _is_a(getattr(cls, "makes", None), Prediction):
        raise Broken("'makes' must be the class of its predictions, derived from Prediction")
    if not _is_a(cls.output, Output) or not dataclasses.is_dataclass(cls.output):
        raise Broken(f"'output' is {cls.output!r}; it must be a dataclass derived from Output")
    for port, wanted in cls.needs.items():
        if not _is_a(wanted, Output):
            raise Broken(f"port '{port}' needs {wanted!r}; it must be a class derived from Output")
    for what, names in {"loss_names": getattr(head, "loss_names", None), **head.phase_loss_names}.items():
        if not isinstance(names, tuple) or len(set(names)) < len(names):
            raise Broken(f"{what} is {names!r}; it must be a tuple of different names")
        if not names and any(True for _ in head.parameters()):
            raise Broken(f"{what} is (), so nothing trains its parameters; only a head without any may have no losses")
    if cls.labels_from is not None and cls.labels_from not in cls.needs:
        raise Broken(
            f"'labels_from' is '{cls.labels_from}', which is no port (ports: {', '.join(cls.needs) or 'none'})"
        )
    if not isinstance(head.levels, tuple) or (unknown := [level for level in head.levels if level not in case.spec]):
        said = (
            f"'levels' is {head.levels!r}"
            if not isinstance(head.levels, tuple)
            else f"there is no level {unknown[0]!r}"
        )
        raise Broken(f"{said}; levels must be a tuple of names of the spec, set in the constructor")


def check_evaluators_read_its_predictions(case: HeadCase) -> None:
    """Every name in `evaluators` is registered, and reads what the head makes."""
    for name in case.cls.evaluators:
        try:
            evaluator = case.plugins.load("evaluator", name)
        except PluginError as error:
            raise Broken(str(error)) from error
        if not issubclass(case.cls.makes, evaluator.reads):
            raise Broken(f"evaluator '{name}' reads a {evaluator.reads.__name__}, but the head makes a "
                         f"{case.cls.makes.__name__}")  # fmt: skip


def check_arguments_are_its_configuration(case: HeadCase) -> None:
    """After spec and labels, the constructor takes keywords only, annotated, with defaults that keep to the annotation,
    and refuses all others."""
    assert_configurable("head", case.cls, given=2)


def check_arguments_are_documented(case: HeadCase) -> None:
    """The docstring has a line for every keyword argument."""
    assert_documented(case.cls, given=2)


def check_works_with_one_class_and_with_many(case: HeadCase) -> None:
    """It is built, learns and predicts with a label set of one class, and with one of two hundred."""
    if not case.labels:
        raise NotApplicable("what it predicts has no classes")
    seen = case.labels.names[0]
    for names in ((seen,), (*case.labels.names, *(f"class {i}" for i in range(200 - len(case.labels))))):
        labels = dataclasses.replace(case.labels, names=names, ids=(), things=(), colors=())
        batch = case.batch(labels=labels)
        model = case.model(labels=labels)
        for name, value in losses(model, batch).items():
            if not bool(value.isfinite()):
                raise Broken(f"with {len(names)} classes loss '{name}' is {number(value)}")
        for prediction in predictions(model.eval(), batch):
            assert_labels(prediction, labels)


def _is_a(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


CHECKS = (
    check_is_built,
    check_declares_what_it_is,
    check_evaluators_read_its_predictions,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_works_with_one_class_and_with_many,
)
