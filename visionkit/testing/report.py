"""What checks have found, and the loop that runs them."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from visionkit.errors import UserError
from visionkit.plugins import did_you_mean, explain

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["passed", "failed", "skipped", "expected"]
Check = Callable[[Any], str | None]
"""Given a case, it raises :class:`Broken` or :class:`NotApplicable`, or returns what it has measured, if anything."""

STYLES: Mapping[Status, str] = {"passed": "green", "failed": "bold red", "skipped": "dim", "expected": "yellow"}


class Broken(Exception):
    """A promise is not kept; the message says in one sentence what was done and what is wanted."""


class NotApplicable(Exception):
    """A promise says nothing of this component; the message says why."""


@dataclass(frozen=True)
class CheckResult:
    """One check.

    Attributes:
        name: of the check.
        status: ``"expected"``: it failed, as the component says that it does.
        reason: why it did not pass, or what was measured by a check that passed.
    """

    name: str
    status: Status
    reason: str = ""


@dataclass
class Report:
    """All checks of one component.

    Attributes:
        kind: of the component.
        component: its class.
        results: in the order of the checks.
    """

    kind: str
    component: str
    results: list[CheckResult] = field(default_factory=list)

    @property
    def passed(self) -> list[CheckResult]:
        return self._of("passed")

    @property
    def failed(self) -> list[CheckResult]:
        """Those that failed, and those that passed although a failure was expected."""
        return self._of("failed")

    @property
    def skipped(self) -> list[CheckResult]:
        return self._of("skipped")

    @property
    def expected(self) -> list[CheckResult]:
        """Those that failed as expected."""
        return self._of("expected")

    def _of(self, status: Status) -> list[CheckResult]:
        return [result for result in self.results if result.status == status]

    def summary(self) -> str:
        """All counts in one line."""
        return (f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped, "
                f"{len(self.expected)} failed as expected, of {len(self.results)}")  # fmt: skip

    def assert_passed(self) -> None:
        """Raise ``AssertionError`` with a line for each check that failed."""
        if self.failed:
            lines = [f"  {result.name}: {result.reason}" for result in self.failed]
            raise AssertionError("\n".join([f"{self.kind} {self.component}: {self.summary()}", *lines]))

    def table(self) -> Table:
        """A row a check, to print with rich."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"{self.kind} {self.component}", title_justify="left", box=None)
        table.add_column("check", no_wrap=True)
        table.add_column("")
        table.add_column("reason")
        for result in self.results:
            status = "failed as expected" if result.status == "expected" else result.status
            table.add_row(result.name, Text(status, STYLES[result.status]), Text(result.reason))
        return table

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a JSON file."""
        counts: dict[str, Any] = {status: len(self._of(status)) for status in STYLES}
        return {"kind": self.kind, "component": self.component, **counts, "checks": [asdict(r) for r in self.results]}


def slow(check: Check) -> Check:
    """Mark a check that takes seconds: ``visionkit check`` leaves it out without ``--full``."""
    check.slow = True  # type: ignore[attr-defined]
    return check


def is_slow(check: Check) -> bool:
    """Whether a check is marked as :func:`slow`."""
    return getattr(check, "slow", False)


def name_of(check: Check) -> str:
    """``check_x`` is the check ``x``."""
    return check.__name__.removeprefix("check_")


def promise_of(check: Check) -> str:
    """What a check's docstring promises, in one paragraph."""
    return " ".join(inspect.getdoc(check).split()) if check.__doc__ else ""  # type: ignore[union-attr]


def run_checks(
    kind: str,
    component: str,
    checks: Sequence[Check],
    case: Any,
    *,
    expected: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Run checks one after the other, each with the same random numbers; those of the caller stay as they were.

    Args:
        checks: the first of them builds the component; where it fails, the others are skipped.
        case: what they are given.
        expected: name of a check -> why this component does not pass it.
        only: names of the checks to run; ``None``: all.
        progress: called with the name of each check before it runs.

    Raises:
        UserError: ``expected`` or ``only`` name no check, or a reason is empty.
    """
    expected = expected or {}
    names = [name_of(check) for check in checks]
    for name in (*expected, *(only or ())):
        if name not in names:
            raise UserError(f"{component}: there is no check '{name}'{did_you_mean(name, names)}")
    for name, reason in expected.items():
        if not reason.strip():
            raise UserError(f"{component}: expected_failures must say why '{name}' is not passed")
    report = Report(kind, component)
    for check in checks:
        if only is None or name_of(check) in only or check is checks[0]:
            if progress:
                progress(name_of(check))
            with seeded():
                result = run_check(check, case, expected.get(name_of(check)))
            if only is None or result.name in only or result.status == "failed":
                report.results.append(result)
            if check is checks[0] and result.status == "failed":
                rest = [name for name in names[1:] if only is None or name in only]
                report.results += [CheckResult(name, "skipped", "it could not be built") for name in rest]
                break
    return report


def run_check(check: Check, case: Any, expected: str | None = None) -> CheckResult:
    """One check; whatever it raises is its result."""
    name = name_of(check)
    try:
        measured = check(case)
    except NotApplicable as error:
        return CheckResult(name, "skipped", str(error))
    except (Broken, UserError) as error:
        status, reason = "failed", str(error)
    except (Exception, SystemExit) as error:
        status, reason = "failed", explain(error)
    else:
        status, reason = "passed", measured or ""
    if expected is None:
        return CheckResult(name, "failed" if status == "failed" else "passed", reason)
    if status == "failed":
        return CheckResult(name, "expected", expected)
    return CheckResult(name, "failed", f"it passes, although it is expected to fail ({expected}); expect it no longer")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """The same random numbers inside, whatever was drawn before; afterwards the generators are as they were."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - plugins may draw from the global generator
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
