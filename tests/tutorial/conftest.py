"""The code of a page, as its reader has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from visionkit import cli

Run = Callable[..., tuple[int, str]]


class Page:
    """A page of the documentation and the code blocks in it."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()

    def blocks(self, language: str) -> list[str]:
        """The code blocks in one language, in order."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.M | re.S)

    def file(self, name: str) -> str:
        """The one block that begins with a comment of this name."""
        (block,) = [b for lang in ("python", "yaml") for b in self.blocks(lang) if b.startswith(f"# {name}\n")]
        return block

    def commands(self) -> list[str]:
        """The command lines of visionkit."""
        return [line for block in self.blocks("sh") for line in block.splitlines() if line.startswith("visionkit ")]


@pytest.fixture(scope="session")
def page(repository: Path) -> Callable[[str], Page]:
    """A page by its path below ``docs``."""
    return lambda name: Page(repository / "docs" / name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Status and all output of ``visionkit ARGUMENTS``, in this process."""

    def run(arguments: Sequence[str]) -> tuple[int, str]:
        status = 0
        try:
            cli.main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, "".join(capsys.readouterr())

    return run
