"""What every evaluator promises."""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from visionkit.data import Sample, Source
from visionkit.errors import PluginError, UserError
from visionkit.evaluate import Evaluator
from visionkit.plugins import PluginManager
from visionkit.testing.compare import difference
from visionkit.testing.data import ToyData
from visionkit.testing.report import Broken, NotApplicable
from visionkit.testing.samples import choose_samples, label_table, relabelled, sources
from visionkit.testing.signature import assert_configurable, assert_documented
from visionkit.types import LabelSet, Prediction, Target

Judged = tuple[Prediction, Target, Sample]
"""A prediction, the truth, and where both belong."""


@dataclass
class EvaluatorCase:
    """What the checks of an evaluator work on.

    Attributes:
        cls, args: the evaluator and its keyword arguments.
        source, task: whose samples are judged, and by which of their targets.
        labels: of the head whose predictions these are.
    """

    cls: type[Evaluator]
    args: Mapping[str, Any]
    source: Source
    task: str
    labels: LabelSet
    data: ToyData = field(default_factory=ToyData)  # for as long as the source reads from it

    @classmethod
    def make(
        cls,
        evaluator: type[Evaluator],
        args: Mapping[str, Any] | None,
        source: Source | None,
        labels: LabelSet | None,
        plugins: PluginManager,
    ) -> EvaluatorCase:
        """A case with a source and a task from whose targets predictions can be made.

        Raises:
            UserError: there is no such source.
        """
        data = ToyData()
        for one in (source,) if source is not None else sources(plugins, data):
            tasks = list(dict.fromkeys([*_tasks_of_heads(evaluator, plugins), *one.tasks]))
            for task in tasks:
                if task in one.tasks and _can_be_made(evaluator, one, task):
                    return cls(evaluator, args or {}, one, task, labels or one.labels[task], data)
        reads = evaluator.reads.__name__
        raise UserError(f"no source at hand has targets from which a {reads} can be made: give one with source=, and "
                        f"{reads} a classmethod from_target(target, info, labels)")  # fmt: skip

    @cached_property
    def judged(self) -> list[Judged]:
        """Perfect predictions of six images."""
        table = label_table(self.source.labels[self.task], self.labels)
        found = []
        for sample in choose_samples(self.source, self.task, min(6, len(self.source))):
            target = relabelled(sample.targets[self.task], table)
            found.append((self.cls.reads.from_target(target, sample.info, self.labels), target, sample))
        return found

    @cached_property
    def mistaken(self) -> list[Judged]:
        """The same, where two images are of one size with the prediction of one of them for the other: a mistake that
        can be overlooked, or be counted twice."""
        middle = (len(self.judged) - 1) // 2  # amid them: neither the first nor the last that is added
        for i in sorted(range(len(self.judged)), key=lambda i: abs(i - middle)):
            mine, target, sample = self.judged[i]
            for other, _, theirs in self.judged:
                if theirs.info.original_size == sample.info.original_size and difference(mine, other):
                    return [*self.judged[:i], (other, target, sample), *self.judged[i + 1 :]]
        return self.judged

    def build(self) -> Evaluator:
        return self.cls(self.source, self.labels, **self.args)

    def result(self, judged: list[Judged], batch_size: int = 2) -> dict[str, float]:
        """What a new evaluator says of these, added in batches."""
        return self.filled(judged, batch_size).result()

    def filled(self, judged: list[Judged], batch_size: int = 2) -> Evaluator:
        """A new evaluator to which these were added."""
        evaluator = self.build()
        for start in range(0, len(judged), batch_size):
            part = judged[start : start + batch_size]
            evaluator.add([p for p, _, _ in part], [t for _, t, _ in part], [s.info for _, _, s in part])
        return evaluator


def check_is_built(case: EvaluatorCase) -> None:
    """It can be built from a source, a label set and its keyword arguments, and says in `reads` what it judges."""
    if not issubclass(case.build().reads, Prediction):
        raise Broken(f"'reads' is {case.cls.reads!r}; it must be a class derived from Prediction")


def check_arguments_are_its_configuration(case: EvaluatorCase) -> None:
    """After source and labels, the constructor takes keywords only, annotated, and refuses others."""
    assert_configurable("evaluator", case.cls, given=2, ours=("label_map",))


def check_arguments_are_documented(case: EvaluatorCase) -> None:
    """The docstring has a line for every keyword argument."""
    assert_documented(case.cls, given=2, ours=("label_map",))


def check_results_are_named_numbers(case: EvaluatorCase) -> None:
    """`result` gives numbers by names, the same names whatever was added; NaN is a metric that nothing was measured
    for."""
    results = [case.result(case.judged), case.result(case.judged[:1])]
    for result in results:
        for name, value in result.items():
            if not isinstance(name, str) or not isinstance(value, int | float):
                raise Broken(
                    f"result has {name!r}: {value!r}; it must be numbers by names (NaN where nothing is measured)"
                )
    if not results[0] or results[0].keys() != results[1].keys():
        raise Broken(
            f"the names of metrics are {', '.join(results[0]) or 'none'}, and {', '.join(results[1])} for one image"
        )


def check_truth_is_judged_perfect(case: EvaluatorCase) -> None:
    """Predictions made from the truth get the best value of the first metric: 1, 100 or infinity for a score, 0 for an
    error."""
    name, value = next(iter(case.result(case.judged).items()))
    if value not in (0.0, 100.0) and not math.isinf(value) and not abs(value - 1.0) <= 1e-6:
        raise Broken(f"predictions made from the truth get {name} {value:.4g}, which is no perfect value")


def check_wrong_predictions_are_judged_otherwise(case: EvaluatorCase) -> None:
    """Predictions made from the truth of other images do not get the best value."""
    sizes = {sample.info.original_size for _, _, sample in case.judged}
    if len(sizes) > 1 or len(case.judged) < 2:
        raise NotApplicable("no two images are of one size")
    shifted = [(other, target, sample) for (_, target, sample), (other, _, _)
               in zip(case.judged, case.judged[1:] + case.judged[:1])]  # fmt: skip
    name, best = next(iter(case.result(case.judged).items()))
    if case.result(shifted)[name] == best:
        raise Broken(f"predictions of other images get {name} {best:.4g} too")


def check_order_does_not_matter(case: EvaluatorCase) -> None:
    """In another order and in other batches, the same predictions get the same result."""
    if said := difference(case.result(case.mistaken), case.result(case.mistaken[::-1], batch_size=3), rtol=0.0):
        raise Broken(f"in another order the result is another ({said})")


def check_halves_merge_into_the_whole(case: EvaluatorCase) -> None:
    """Two evaluators that have seen half of the images each give, merged, the result of one that has seen all; their
    state can be pickled."""
    half = len(case.mistaken) // 2
    first, second = case.filled(case.mistaken[:half]), case.filled(case.mistaken[half:])
    first.merge([pickle.loads(pickle.dumps(second.state()))])
    if said := difference(case.result(case.mistaken), first.result()):
        raise Broken(f"two halves that are merged do not give the result of the whole ({said})")


def check_an_image_counts_once(case: EvaluatorCase) -> None:
    """An image that two processes have seen counts once."""
    for judged in (case.judged, case.mistaken):
        first, second = case.filled(judged[:4]), case.filled(judged[2:])
        first.merge([pickle.loads(pickle.dumps(second.state()))])
        if said := difference(case.result(judged), first.result()):
            raise Broken(f"images that were seen twice change the result ({said}); keep what was added by info.id")


def check_nothing_added_is_no_error(case: EvaluatorCase) -> None:
    """Before anything was added, `result` and `merge` work, with the usual names."""
    empty = case.build()
    result = empty.result()
    if result.keys() != case.result(case.mistaken).keys():
        raise Broken(f"before anything was added, result has {', '.join(result) or 'no names'}")
    empty.merge([case.filled(case.mistaken).state()])
    if said := difference(case.result(case.mistaken), empty.result()):
        raise Broken(f"merged into an empty evaluator, the result is another ({said})")


def check_nothing_measured_is_no_number(case: EvaluatorCase) -> None:
    """Before anything was added, every metric is NaN; only counts, which are integers, are 0."""
    for name, value in case.build().result().items():
        if not isinstance(value, int) and not math.isnan(value):
            raise Broken(f"before anything was added, {name} is {value:g}, as if it had been measured; return NaN")


def check_asking_changes_nothing(case: EvaluatorCase) -> None:
    """`result` can be asked for twice, and amid the images."""
    evaluator = case.filled(case.mistaken[:2])
    evaluator.result()
    for prediction, target, sample in case.mistaken[2:]:
        evaluator.add([prediction], [target], [sample.info])
    results = [evaluator.result(), evaluator.result()]
    for result in results:
        if said := difference(case.result(case.mistaken), result):
            raise Broken(f"asked before or asked twice, the result is another ({said})")


def _tasks_of_heads(evaluator: type[Evaluator], plugins: PluginManager) -> Iterator[str]:
    """The tasks of the heads that name this evaluator as theirs."""
    loaded = {kind: dict(_loaded(kind, plugins)) for kind in ("evaluator", "head")}
    names = {name for name, made in loaded["evaluator"].items() if made is evaluator}
    yield from (head.task for head in loaded["head"].values() if names & set(head.evaluators))


def _loaded(kind: str, plugins: PluginManager) -> Iterator[tuple[str, Any]]:
    for listed in plugins.components(kind):
        with contextlib.suppress(PluginError):
            yield listed.component.name, plugins.load(kind, listed.component.name)


def _can_be_made(evaluator: type[Evaluator], source: Source, task: str) -> bool:
    sample = source.load(0, [task])
    try:
        evaluator.reads.from_target(sample.targets[task], sample.info, source.labels[task])
    except Exception:
        return False
    return True


CHECKS = (
    check_is_built,
    check_arguments_are_its_configuration,
    check_arguments_are_documented,
    check_results_are_named_numbers,
    check_truth_is_judged_perfect,
    check_wrong_predictions_are_judged_otherwise,
    check_order_does_not_matter,
    check_halves_merge_into_the_whole,
    check_an_image_counts_once,
    check_nothing_added_is_no_error,
    check_nothing_measured_is_no_number,
    check_asking_changes_nothing,
)
