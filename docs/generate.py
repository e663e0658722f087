"""Pages that would go stale if they were written by hand: made anew from the code by every build."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from visionkit.cli import COMMANDS, build_app
from visionkit.config import shipped_pipelines, summary_of
from visionkit.plugins import KINDS, PluginManager
from visionkit.testing import CHECKS, name_of, promise_of

# What the core hands to a constructor itself: no key of a pipeline.
GIVEN = {
    "backbone": {"levels"},
    "neck": {"spec", "levels"},
    "head": {"spec", "labels"},
    "evaluator": {"source", "labels", "label_map"},
    "balancer": {"heads"},
}


def everything(folder: Path) -> None:
    """Write every generated page to ``folder``; a page that stays as it is keeps its date."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "components.md": components(),
        "commands.md": commands(),
        "conformance.md": checks(),
        "pipelines.md": pipelines(),
    }
    for name, lines in pages.items():
        text, file = "\n".join(lines) + "\n", folder / name
        if not file.is_file() or file.read_text() != text:
            file.write_text(text)


def components() -> Iterator[str]:
    """Every component that comes with visionkit: what it is, and the arguments of its constructor."""
    plugins = PluginManager()
    for kind in KINDS:
        listed = [one.component for one in plugins.components(kind) if one.distribution == "visionkit"]
        if listed:
            yield from (f"## {kind.capitalize()}s", "")
        for component in listed:
            made = plugins.load(kind, component.name)
            bases = made.__mro__ if isinstance(made, type) else (made,)
            prose, meanings = read_docstring(*(inspect.cleandoc(base.__doc__ or "") for base in bases))
            yield from (f"### `{component.name}`", "", prose or component.summary, "")
            arguments = [p for p in inspect.signature(made).parameters.values() if p.name not in GIVEN.get(kind, ())]
            arguments = [p for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if arguments:
                yield from ("| argument | type | default | meaning |", "|---|---|---|---|")
            for p in arguments:
                default = "" if p.default is p.empty else code(yaml_of(p.default))
                yield f"| `{p.name}` | {code(type_of(made, p))} | {default} | {cell(meanings.get(p.name, ''))} |"
            yield ""


def commands() -> Iterator[str]:
    """What every command says of itself."""
    for name in COMMANDS:
        shown = CliRunner().invoke(build_app([name]), [name, "--help"], prog_name="visionkit", env={"COLUMNS": "110"})
        if shown.exit_code:
            raise RuntimeError(f"visionkit {name} --help: {shown.output}")
        yield from (f"## `{name}`", "", "```text", shown.output.strip(), "```", "")


def pipelines() -> Iterator[str]:
    """The shipped pipelines, and what the top of each file says of it."""
    yield from ("| name | what it is |", "|---|---|")
    for name, file in shipped_pipelines().items():
        yield f"| `{name}` | {cell(summary_of(file))} |"


def checks() -> Iterator[str]:
    """What every check of every kind promises, in the words of its docstring."""
    for kind, listed in CHECKS.items():
        yield from (f"## {kind.capitalize()}s", "", "| check | what is promised |", "|---|---|")
        for check in listed:
            yield f"| `{name_of(check)}` | {cell(promise_of(check))} |"
        yield ""


def read_docstring(*texts: str) -> tuple[str, dict[str, str]]:
    """The prose before the first section of a docstring, and what ``Args:`` says of each argument."""
    meanings: dict[str, str] = {}
    for text in texts:
        section = re.search(r"^Args:[ \n](.*?)(?=^\S|\Z)", text, re.M | re.S)
        said = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section.group(1) if section else "", re.M)
        for names, meaning in said:
            for name in names.split(", "):
                meanings.setdefault(name, " ".join(meaning.split()))
    prose = re.split(r"^(?:Args|Attributes|Class attributes|Returns|Raises):", texts[0], maxsplit=1, flags=re.M)[0]
    return plain(prose.strip()), {name: plain(meaning) for name, meaning in meanings.items()}


def plain(text: str) -> str:
    """Without the roles of reStructuredText: ``:class:`~package.module.Name``` is ``Name``."""
    return re.sub(r":\w+:`~(?:\w+\.)*(\w+)`", r"`\1`", re.sub(r":\w+:`([^~`]+)`", r"`\1`", text))


def type_of(made: Any, parameter: inspect.Parameter) -> str:
    """An argument's type, aliases resolved."""
    hints = typing.get_type_hints(made.__init__ if isinstance(made, type) else made)
    shown = inspect.formatannotation(hints.get(parameter.name, ""))
    return re.sub(r"\b(?:typing|collections\.abc)\.", "", shown).strip("'")


def yaml_of(value: Any) -> str:
    """A default as one writes it in a pipeline."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(yaml_of(v) for v in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def code(text: Any) -> str:
    """As code in a table cell."""
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


def cell(text: str) -> str:
    """As text in a table cell."""
    return text.replace("|", r"\|")
