"""``--set path.to.key=value``: a change to what the YAML file says, before it is checked."""

from __future__ import annotations

from typing import Any

from visionkit.config.reader import Marks, parse
from visionkit.errors import PipelineError
from visionkit.plugins import did_you_mean

Path = tuple[str | int, ...]


def apply_override(raw: dict[str, Any], marks: Marks, override: str) -> None:
    """Put the value into ``raw``, in place; messages about it then name the option instead of a line.

    A mapping on the way that is not there yet is made, a component that is just a name becomes a mapping, and a list
    takes an index. Heads and sources must exist to be changed: only whole ones are added.

    Raises:
        PipelineError: there is no way along that path.
    """
    path, equals, text = override.partition("=")
    mark = f"--set {override}"
    if not equals or not all(path.split(".")):
        raise PipelineError(f"{mark}: expected path.to.key=value")
    at: Path = ()
    parent: Any = raw
    steps = path.split(".")
    while True:
        key, steps = next_key(parent, steps, at, mark)
        if not steps:
            break
        if isinstance(parent, dict) and parent.get(key) is None:
            if at in (("heads",), ("sources",)):
                section = str(at[0])
                raise PipelineError(f"{mark}: no {section[:-1]} '{key}'{did_you_mean(str(key), parent)} "
                                    f"({section}: {', '.join(parent)})")  # fmt: skip
            parent[key] = {}
        elif isinstance(parent[key], str):
            parent[key] = {"name": parent[key]}
        at, parent = (*at, key), parent[key]
        marks.setdefault(at, mark)
    at = (*at, key)
    for known in [known for known in marks if known[: len(at)] == at]:
        del marks[known]
    value, theirs = parse(text, mark, at, lines=False)
    parent[key] = value
    marks.update(theirs)
    marks[at] = mark


def next_key(parent: Any, steps: list[str], at: Path, mark: str) -> tuple[Any, list[str]]:
    """The next key of a path, and the steps after it; a key that is there may itself hold dots (``heads.masks``)."""
    here = ".".join(map(str, at))
    if isinstance(parent, list):
        if not steps[0].isdecimal() or int(steps[0]) >= len(parent):
            raise PipelineError(f"{mark}: {here} is a list of {len(parent)}; expected an index below "
                                f"that, not '{steps[0]}'")  # fmt: skip
        return int(steps[0]), steps[1:]
    if not isinstance(parent, dict):
        raise PipelineError(f"{mark}: {here} is a value and holds no key '{steps[0]}'")
    for n in range(len(steps), 1, -1):
        if ".".join(steps[:n]) in parent:
            return ".".join(steps[:n]), steps[n:]
    return steps[0], steps[1:]
