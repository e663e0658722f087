"""What a component says of itself: the prose of its docstring, and the arguments that a pipeline can give it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from visionkit.config.arguments import handed_over, hints_of


@dataclass(frozen=True)
class Argument:
    """One key of a component's section; ``default`` as one writes it in a pipeline, empty where there is none."""

    name: str
    type: str
    default: str
    meaning: str


def describe(kind: str, made: Any) -> tuple[str, list[Argument]]:
    """The prose of a component's docstring, and its arguments without those that the core hands over."""
    bases = made.__mro__ if isinstance(made, type) else (made,)
    prose, meanings = _read_docstring(*(inspect.cleandoc(base.__doc__ or "") for base in bases))
    if kind == "head":
        prose += f"\n\n{_of_head(made)}"
    given, hints, arguments = handed_over(kind, made), hints_of(made), []
    for p in inspect.signature(made).parameters.values():
        if p.name in given or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        default = "" if p.default is p.empty else _as_yaml(p.default)
        arguments.append(Argument(p.name, _in_words(hints.get(p.name, "")), default, meanings.get(p.name, "")))
    return prose.strip(), arguments


def _of_head(made: Any) -> str:
    """What a head learns from, and the names by which its losses and phases are found again."""
    losses = {"": getattr(made, "loss_names", ()), **getattr(made, "phase_loss_names", {})}
    named = [f"{', '.join(names)}{phase and f' in the phase {phase}'}" for phase, names in losses.items() if names]
    return f"Task: {getattr(made, 'task', 'not said')}. Losses: {'; '.join(named) or 'none'}."


def _read_docstring(*texts: str) -> tuple[str, dict[str, str]]:
    """The prose before the first section of a docstring, and what ``Args:`` says of each argument."""
    meanings: dict[str, str] = {}
    for text in texts:
        section = re.search(r"^Args:[ \n](.*?)(?=^\S|\Z)", text, re.M | re.S)
        said = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.M)
        for names, meaning in said:
            for name in names.split(", "):
                meanings.setdefault(name, " ".join(meaning.split()))
    prose = re.split(r"^(?:Args|Attributes|Class attributes|Returns|Raises):", texts[0], maxsplit=1, flags=re.M)[0]
    return _plain(prose.strip()), {name: _plain(meaning) for name, meaning in meanings.items()}


def _plain(text: str) -> str:
    """Without the roles of reStructuredText: ``:class:`~package.module.Name``` is ``Name``."""
    return re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", re.sub(r":\w+:`([^~`]+)`", r"`\1`", text))


def _in_words(annotation: Any) -> str:
    """An argument's type without the modules of its parts."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_in_words(one) for one in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    return re.sub(r"\b(?:typing|collections\.abc)\.", "", inspect.formatannotation(annotation)).strip("'")


def _as_yaml(value: Any) -> str:
    """A default as one writes it in a pipeline."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_yaml(v) for v in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
