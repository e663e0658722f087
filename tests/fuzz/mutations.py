"""Damage that is not specific to one surface: JSON trees, text, and bytes. Everything takes a random generator."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

NAN, INF = float("nan"), float("inf")


class Raw(str):
    """Text that :func:`dump` writes into the JSON as it is, such as ``1e400``."""


NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 0.5, -0.0, 1e-320, 1e-9, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32, 2**53 + 1),
    *(2**63 - 1, 2**63, 2**64, 10**30, -(2**31) - 1, -(2**63) - 1, 2e8, 1e308, -1e308, NAN, INF, -INF),
    *(Raw("1e400"), Raw("-1e999"), Raw("1" * 5000), Raw("0." + "1" * 500), Raw("-0"), Raw("1E+2")),
)
STRINGS: tuple[Any, ...] = (
    *("", " ", "0", "1", "-1", "12", " 12 ", "12.5", "1e3", "1e400", "nan", "inf", "-inf", "true", "null", "None", "½"),
    *(
        "0x10",
        "1_000",
        "١٢",
        "b'abc'",
        "a" * 3000,
        "é",
        "日本語",
        "🦢",
        "\0",
        "a\0b",
        "a\nb",
        "a\r\nb",
        "\x1b[31m",
        "\t",
    ),
    *(Raw('"\\ud800"'), "\u2028", "\ufeff", "${HOME}", "{0}", "%s", "<b>", "[red]", "../../x", "/etc/passwd", "a/b"),
)
OTHERS: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [{}], {"a": {}}, [None], [[[]]], [1], [1, 2], [1, 2, 3, 4], ["1"], {"id": 1}),
    *(Raw("[" * 200 + "]" * 200), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 2000 + "1" + "}" * 2000)),
)
VALUES: tuple[Any, ...] = NUMBERS + STRINGS + OTHERS
FILE_NAMES: tuple[Any, ...] = (
    *("", ".", "..", "../000001.jpg", "images/../../x.jpg", "/000001.jpg", "/dev/zero", "/dev/stdin", "./000001.jpg"),
    *("\0", "a\0.jpg", "a" * 300 + ".jpg", "x/" * 3000, "000001.jpg/", "000001.jpg/x", "C:\\x.jpg", "..\\000001.jpg"),
    *("000001.JPG", "000002.jpg", "000001.png", "000001", "nothing.jpg", "é.jpg", "a\nb.jpg", Raw('"\\udcff.jpg"')),
    *(None, 1, True, [], ["000001.jpg"], {"name": "000001.jpg"}, "~/x.jpg", "http://localhost/x.jpg", "file:///x.jpg"),
)


def dump(data: Any) -> bytes:
    """JSON text, in which :class:`Raw` values stand as they are."""
    raws: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            raws.append(value)
            return f"@raw{len(raws) - 1}@"
        if isinstance(value, dict):
            return {str(key): mark(child) for key, child in value.items()}
        return [mark(child) for child in value] if isinstance(value, list) else value

    text = json.dumps(mark(data), default=str)
    return re.sub(r'"@raw(\d+)@"', lambda match: raws[int(match[1])], text).encode()


def mutate_json(
    rng: Random, path: Path, special: Sequence[Callable[[Random, Any], None]] = (), *, text: float = 0.12
) -> None:
    """Damage a JSON file: one to three changes of its values, and with probability ``text`` one of its text.

    Args:
        special: changes that know what the file means; each takes the generator and the whole tree. Two of three
            changes are of these.
    """
    data = json.loads(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if special and rng.random() < 0.66:
            try:
                rng.choice(special)(rng, data)
                continue
            except (KeyError, TypeError, IndexError, ValueError, AttributeError):
                pass  # an earlier change removed what this one wants to change
        data = change_tree(rng, data)
    content = dump(data)
    path.write_bytes(change_text(rng, content) if rng.random() < text else content)


def change_tree(rng: Random, data: Any) -> Any:
    """The tree with one change at a random place; every level is as likely as the next."""
    if not isinstance(data, dict | list) or not data or rng.random() < 0.02:
        return rng.choice(VALUES)
    at = data
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        child = at[key]
        if not isinstance(child, dict | list) or not child or rng.random() < 0.2:
            break
        at = child
    rng.choice(_CHANGES)(rng, at, key)
    return data


def _replace(rng: Random, at: Any, key: Any) -> None:
    at[key] = rng.choice(VALUES)


def _retype(rng: Random, at: Any, key: Any) -> None:
    """The same value as another type."""
    value = at[key]
    forms: list[Any] = [[value], {"value": value}, str(value), [str(value)], [value, value], bool(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        forms += [f" {value} ", value + 0.5, -value, value + 1, value * 1e6, f"{value}.0", f"{value:.3e}"]
        forms += [float(value), float(value)]
    if isinstance(value, list):
        forms += [dict(enumerate(value)), [value], " ".join(map(str, value)), [str(v) for v in value]]
    at[key] = rng.choice(forms)


def _delete(rng: Random, at: Any, key: Any) -> None:
    del at[key]


def _duplicate(rng: Random, at: Any, key: Any) -> None:
    if isinstance(at, list):
        at.insert(rng.randrange(len(at) + 1), copy.deepcopy(at[key]))
    else:
        at[rng.choice((f"{key} ", str(key).upper(), f"_{key}", "extra"))] = copy.deepcopy(at[key])


def _swap(rng: Random, at: Any, key: Any) -> None:
    other = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
    at[key], at[other] = at[other], at[key]


def _cut(rng: Random, at: Any, key: Any) -> None:
    """Shorten, extend, empty or shuffle a list; remove most keys of an object."""
    value = at[key]
    if isinstance(value, list):
        form = rng.randrange(4)
        if form == 0:
            del value[rng.randrange(len(value) + 1) :]
        elif form == 1:
            value += copy.deepcopy(value[: rng.randrange(1, 4)])
        elif form == 2:
            rng.shuffle(value)
        else:
            value.append(rng.choice(VALUES))
    elif isinstance(value, dict):
        for name in list(value)[1:]:
            del value[name]
    else:
        at[key] = rng.choice(VALUES)


_CHANGES = (_replace, _replace, _replace, _retype, _retype, _delete, _duplicate, _swap, _cut)


def change_text(rng: Random, data: bytes) -> bytes:
    """Text with one damage to its encoding or syntax."""
    at = rng.randrange(len(data) + 1)
    keys = list(re.finditer(rb'"(\w+)"\s*:\s*', data))
    key = rng.choice(keys) if keys else None
    forms: list[Callable[[], bytes]] = [
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("utf-8", "replace").encode("utf-16"),
        lambda: data.decode("utf-8", "replace").encode("utf-32-le"),
        lambda: data[:at],
        lambda: data + rng.choice((b"x", b"{}", b"\0", b"\n\n", b",", b"]", b"}", b"\xff")),
        lambda: data[:at] + rng.choice((b"\0", b"\xff", b"\xc3", b'"', b"\\", b"{", b"]", b",", b"//x\n")) + data[at:],
        lambda: data[:at] + bytes(rng.randrange(256) for _ in range(8)) + data[at + 8 :],
        lambda: data.replace(b'"', b"'"),
        lambda: data.replace(b",", b",,", 1),
        lambda: re.sub(rb"([\]}])", rb",\1", data, count=1),
        lambda: b"",
        lambda: b" \n",
        lambda: b"\x1f\x8b\x08\x00" + data,
        lambda: data + data,
        lambda: data.replace(b"{", b"{ \r\n\t", 50),
        # A key that is given twice, with another value first or last.
        lambda: data[: key.start()] + key[0] + dump(rng.choice(VALUES)) + b"," + data[key.start() :] if key else data,
        lambda: data.replace(b'"id"', b'"ID"', rng.randrange(1, 4)),
    ]
    return rng.choice(forms)()


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes with one damage: cut, flipped, overwritten, removed, repeated, or extended."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(64))
    at, length = rng.randrange(len(data)), rng.choice((1, 2, 4, 16, 200))
    noise = bytes(rng.randrange(256) for _ in range(length))
    forms: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + noise + data[at + length :],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + data[max(0, at - length) : at] + data[at:],
        lambda: data[:at] + rng.choice((b"\0", b"\xff")) * length + data[at + length :],
        lambda: data + noise,
        lambda: data[: min(at, 64)] + noise + data[min(at, 64) + length :],  # near the head, where the sizes are
        lambda: b"",
        lambda: noise * 10,
    ]
    return rng.choice(forms)()
