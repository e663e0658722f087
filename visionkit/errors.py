"""Errors that are the user's to mend: one clear message, exit status 2, no stack trace."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST = 2000  # characters of a message; file names and values may have any length


class UserError(Exception):
    """Something the user gave is wrong. The message says what was seen, where, and what is allowed.

    It is one line, whatever names and values it quotes: line breaks and other control characters are escaped, and the
    middle of an overlong message is left out.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """``text`` with control characters escaped, and without its middle where it is too long."""
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: ascii(match[0])[1:-1], text)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST // 2]} ... {plain[5 - LONGEST // 2 :]}"


class PipelineError(UserError):
    """A pipeline file is wrong; the message starts with ``file:line``.

    Attributes:
        every: this problem or, where there are several, each of them.
    """

    def __init__(self, message: str, several: Sequence[PipelineError] = ()) -> None:
        super().__init__(message)
        self.every: tuple[PipelineError, ...] = tuple(several) or (self,)


def raise_first(problems: Sequence[PipelineError]) -> None:
    """Raise the first of these problems, if there is one; its message says how many more there are."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        more = f"{problems[0]} (and {len(problems) - 1} more problems, which 'visionkit validate' lists)"
        raise PipelineError(more.replace("1 more problems", "1 more problem"), problems)


class DataError(UserError):
    """An image or annotation is wrong; the message names the file and the id."""


class PluginError(UserError):
    """A plugin is missing, broken or declared twice."""


class RunError(UserError):
    """A run folder or checkpoint is missing, damaged or belongs to another pipeline."""
