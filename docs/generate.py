"""Pages that would go stale if they were written by hand: made anew from the code by every build."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from visionkit.cli import COMMANDS, build_app
from visionkit.config import shipped_pipelines, summary_of
from visionkit.config.describe import describe
from visionkit.plugins import KINDS, PluginManager
from visionkit.testing import CHECKS, name_of, promise_of


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
            prose, arguments = describe(kind, made)
            yield from (f"### `{component.name}`", "", prose or component.summary, "")
            if arguments:
                yield from ("| argument | type | default | meaning |", "|---|---|---|---|")
            for one in arguments:
                yield f"| `{one.name}` | {code(one.type)} | {code(one.default)} | {cell(one.meaning)} |"
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


def code(text: Any) -> str:
    """As code in a table cell."""
    return f"`{str(text).replace('|', chr(92) + '|')}`" if str(text) else ""


def cell(text: str) -> str:
    """As text in a table cell."""
    return text.replace("|", r"\|")
