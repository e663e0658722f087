"""The repository stays small, and free of what belongs to one machine alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

# Where packages come from is each machine's own setting; the public registry is what their tools use by themselves.
REGISTRIES = re.compile(r"\b(?:pypi\.(?:org|python)|pythonhosted\.org|download\.pytorch\.org)", re.I)
MACHINE_PATHS = re.compile(r"(?<![\w.~/-])/(?:work|root|tmp|home/\w+|Users/\w+)/")
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def tracked(repository: Path) -> list[Path]:
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repository, check=True, capture_output=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := repository / name).is_file()]


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


def test_no_file_is_larger_than_one_mebibyte(tracked: list[Path]) -> None:
    assert [str(path) for path in tracked if path.stat().st_size > MAX_BYTES] == []


@pytest.mark.parametrize("what", [REGISTRIES, MACHINE_PATHS], ids=["package registry", "path of one machine"])
def test_no_tracked_file_names_a(what: re.Pattern[str], tracked: list[Path]) -> None:
    found = [f"{path}: {hit.group()}" for path in tracked for hit in [what.search(text_of(path))] if hit]
    assert found == []


# Written with | for /, so that this file does not find itself.
@pytest.mark.parametrize(
    ("text", "is_found"),
    [("cat |home|ann|x", True), ('"|root|x"', True), ("|path|to|x", False), ("a|work|b", False), ("docs|tmp|x", False)],
)
def test_what_counts_as_a_path_of_one_machine(text: str, is_found: bool) -> None:
    assert bool(MACHINE_PATHS.search(text.replace("|", "/"))) == is_found
