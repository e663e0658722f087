"""Problems in a file: raised at once, or counted and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from visionkit.errors import DataError

OnError = Literal["fail", "skip"]


@dataclass
class Report:
    """Collects the problems that were found while a file was read.

    Attributes:
        path: the file.
        on_error: ``"fail"`` raises at the first entry that is wrong, ``"skip"`` leaves it out and counts it.
        counts: what was corrected or left out -> the IDs of the entries.
    """

    path: str
    on_error: OnError = "fail"
    counts: dict[str, list[Any]] = field(default_factory=dict)

    def note(self, what: str, ids: Iterable[Any]) -> None:
        """Record that ``what`` holds for these entries, which are used all the same."""
        if ids := list(ids):
            self.counts.setdefault(what, []).extend(ids)

    def reject(self, reason: str, entry_id: Any, error: DataError | str) -> None:
        """Leave out an entry that is wrong.

        Args:
            reason: a summary for entries that are left out.
            entry_id: of the entry.
            error: the message, which names the file and the entry.

        Raises:
            DataError: ``on_error`` is ``"fail"``.
        """
        if self.on_error == "fail":
            raise error if isinstance(error, DataError) else DataError(error)
        self.note(f"left out: {reason}", [entry_id])

    def reject_rows(self, bad: np.ndarray, ids: Sequence[Any], reason: str, message: Callable[[int], str]) -> None:
        """As :meth:`reject`, for the rows where ``bad`` is true; ``message`` is called with the first of them."""
        rows = np.flatnonzero(bad).tolist()
        if rows and self.on_error == "fail":
            raise DataError(f"{self.path}: {message(rows[0])}")
        self.note(f"left out: {reason}", [ids[row] for row in rows])

    @property
    def lines(self) -> list[str]:
        """One line per kind of problem, with the number of entries and some of their IDs."""
        return [f"{self.path}: {len(ids)} {what} (ID {some(ids, 3)})" for what, ids in self.counts.items()]


def some(values: Sequence[Any], limit: int = 12) -> str:
    """The first few values, and how many there are."""
    text = ", ".join(str(value) for value in values[:limit])
    return text + (f", ...; {len(values)} in total" if len(values) > limit else "")
