"""The message of an error is one line, whatever it quotes."""

from __future__ import annotations

import pytest

from visionkit.errors import DataError, UserError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.json: image 3 has no 'file_name'", "a.json: image 3 has no 'file_name'"),
        ("no class 'a\nb'", r"no class 'a\nb'"),
        ("no class 'a\r\0\x1b[31m\u2028'", r"no class 'a\r\x00\x1b[31m\u2028'"),
        ("no class 'größe 日本 🦢'", "no class 'größe 日本 🦢'"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_control_characters_are_escaped(text: str, line: str) -> None:
    assert str(DataError(text)) == line
    assert f"source: {UserError(text)}" == f"source: {line}"


def test_the_middle_of_an_overlong_message_is_left_out() -> None:
    message = str(UserError("no such file " + "x/" * 5000 + ": images must lie in their folder"))
    assert message.startswith("no such file x/x/")
    assert message.endswith("x/x/: images must lie in their folder")
    assert len(message) == 2000
