"""What is recorded while the emulated device is in use."""

from __future__ import annotations

import os
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field

import torch
import torchvision

_LIBRARIES = tuple(os.path.dirname(os.path.abspath(str(m.__file__))) + os.sep for m in (torch, torchvision))
_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(frozen=True)
class Synchronization:
    """A point at which the host waits for the device.

    Attributes:
        kind: ``item`` (a value is read), ``mask`` (a boolean index), ``size`` (an operator whose result's size depends
            on values), ``d2h`` (a copy to the host), ``h2d`` (a blocking copy from the host), ``h2d-pageable`` (a
            non-blocking copy from memory that is not pinned, which blocks nevertheless), ``d2h-unguarded`` (a
            non-blocking copy to the host, whose result may be read before it is there), or ``op`` for the others.
        operator: the operator, such as ``aten::nonzero``.
        where: ``file:line function`` of the innermost frame outside of PyTorch and of this package.
    """

    kind: str
    operator: str
    where: str


@dataclass
class Log:
    """What happened since the log was opened.

    Attributes:
        synchronizations: in their order.
        kernels: the number of operators that are not views; each launches about one kernel.
    """

    synchronizations: list[Synchronization] = field(default_factory=list)
    kernels: int = 0

    def places(self, top: int | None = None) -> list[str]:
        """The places with the most synchronizations: how many, which operator (and kind), and where."""
        places = Counter((s.kind, s.operator, s.where) for s in self.synchronizations)
        return [f"{n} x {operator} ({kind}) at {where}" for (kind, operator, where), n in places.most_common(top)]


def innermost_place() -> str:
    """``file:line function`` of the innermost frame outside of PyTorch and of this package."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_outside(frame.f_code.co_filename):
            return _place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown"


def place_of(error: BaseException) -> str:
    """Where an error was raised, as :func:`innermost_place` names it."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [_place(f.filename, f.lineno or 0, f.name) for f in frames if _is_outside(f.filename)]
    return outside[-1] if outside else "unknown"


def _is_outside(name: str) -> bool:
    return not name.startswith((*_LIBRARIES, _HERE, "<")) and os.path.basename(name) != "contextlib.py"


def _place(name: str, line: int, function: str) -> str:
    return f"{os.sep.join(name.split(os.sep)[-3:])}:{line} {function}"
