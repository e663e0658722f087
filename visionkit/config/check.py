"""Plain data against annotations: the first thing that is wrong, where, and what is allowed there."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from visionkit.config.reader import VariableText
from visionkit.plugins import did_you_mean

Path = tuple[str | int, ...]


@dataclass
class Finding(Exception):
    """``message`` about what stands at ``at``, keys and indices from the top of what was checked.

    Attributes:
        others: what else is wrong elsewhere.
    """

    at: Path
    message: str
    others: tuple[Finding, ...] = ()

    @property
    def every(self) -> tuple[Finding, ...]:
        """This one and the others."""
        return (self, *self.others)


def conform(adapter: TypeAdapter, annotation: Any, data: Any, name: str = "") -> Any:
    """``data`` as ``annotation`` wants it: lists become tuples, integers floats; nothing else is converted, but a
    :class:`VariableText` where text is not accepted.

    Args:
        adapter: of ``annotation``, a dataclass or ``TypedDict``.
        name: what messages call the whole; where empty, a key's path from the top serves.

    Raises:
        Finding: it does not conform; one for each place that is wrong.
    """
    data = with_values(data)
    try:
        # JSON is what YAML gives, and pydantic's strict mode for JSON is just what a reader of YAML expects: no text
        # becomes a number, no number a truth, but a list may be a tuple.
        return adapter.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        if use_values(error, data):
            return conform(adapter, annotation, data, name)
        first, *others = findings(error, annotation, data, name)
        first.others = tuple(others)
        raise first from None


def use_values(error: ValidationError, data: Any) -> bool:
    """Let each :class:`VariableText` that is an error stand for its value; whether there was one."""
    values = [value_at(data, existing(data, e["loc"])) for e in error.errors(include_url=False)]
    texts = [value for value in values if isinstance(value, VariableText)]
    for text in texts:
        text.as_value = True
    return bool(texts)


def with_values(data: Any) -> Any:
    """The same data, each :class:`VariableText` as what it stands for."""
    if isinstance(data, dict):
        return {key: with_values(value) for key, value in data.items()}
    if isinstance(data, list):
        return [with_values(value) for value in data]
    return data.plain() if isinstance(data, VariableText) and data.as_value else data


def findings(error: ValidationError, annotation: Any, data: Any, name: str) -> list[Finding]:
    """pydantic's errors in words. Errors of one place (the branches of a union) are one finding."""
    errors = error.errors(include_url=False)
    if errors[0]["type"] == "json_invalid":  # the only limit of JSON that is not one of YAML
        return [Finding((), f"{name or 'the pipeline'}: values are nested too deeply")]
    # Misspelt keys first: they explain the missing ones.
    unknown = [e for e in errors if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    places: dict[Path, list[Any]] = {}
    for e in errors:
        if e not in unknown:
            places.setdefault(existing(data, e["loc"]), []).append(e)
    found = [_unknown_key(e["loc"], annotation, name) for e in unknown]
    return found + [_wrong_value(at, here, data, name) for at, here in places.items()]


def _unknown_key(loc: Path, annotation: Any, name: str) -> Finding:
    *parent, key = loc
    allowed = keys_at(annotation, parent)
    hint = did_you_mean(str(key), allowed) or ";"
    place = name if name and not parent else ".".join([name.split(" (")[0], *map(str, parent)]).lstrip(".")
    return Finding((*parent, key), f"unknown key '{key}' in {place or 'the pipeline'}{hint} "
                                   f"allowed: {', '.join(allowed) or 'none'}")  # fmt: skip


def _wrong_value(at: Path, here: Sequence[Any], data: Any, name: str) -> Finding:
    first, missing = here[0], here[0]["loc"][len(at) :]
    shown = f"'{'.'.join(map(str, at))}' of {name}" if name and at else name or ".".join(map(str, at))
    if first["type"] == "missing" and missing and isinstance(missing[-1], str):
        return Finding(at, f"missing key '{missing[-1]}' in {shown or 'the pipeline'}")
    expected = " or ".join(dict.fromkeys(in_words(e) for e in here))
    value = value_at(data, at)
    hint = ""
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = did_you_mean(value, first["ctx"]["expected"].replace("' or '", "', '").strip("'").split("', '"))
    return Finding(at, f"{shown}: expected {expected}, not {show(value)}{hint}")


def in_words(error: Any) -> str:
    """What pydantic wanted, in the words of YAML."""
    if error["type"] == "missing":
        return f"at least {error['loc'][-1] + 1} items" if isinstance(error["loc"][-1], int) else "more items"
    if error["type"] == "too_long":
        return f"at most {error['ctx']['max_length']} items"
    text = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    for pydantics, ours in {
        "a valid array": "a list",
        "a valid tuple": "a list",
        "an object": "a mapping",
        "a valid dictionary": "a mapping",
        "a valid string": "text",
        "a valid boolean": "true or false",
        "a valid integer": "an integer",
        "a valid number": "a number",
        "None": "null",
        "greater than or equal to": "at least",
        "less than or equal to": "at most",
        "greater than": "more than",
    }.items():
        text = text.replace(pydantics, ours)
    return text


def show(value: Any) -> str:
    """A value as it stands in YAML, cut where it is long."""
    text = f"the text '{value}'" if isinstance(value, str) else json.dumps(value)
    text = text.replace("Infinity", ".inf").replace("NaN", ".nan") if isinstance(value, float) else text
    return text if len(text) <= 60 else text[:57] + "..."


def existing(data: Any, loc: Sequence[str | int]) -> Path:
    """The steps of ``loc`` that exist in ``data``: pydantic names the branches of a union among them."""
    at: Path = ()
    for step in loc:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            continue
        at = (*at, step)
    return at


def value_at(data: Any, at: Path) -> Any:
    """What stands at ``at``."""
    for step in at:
        data = data[step]
    return data


def keys_at(annotation: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that a dataclass or ``TypedDict`` allows, ``loc`` steps below ``annotation``."""
    annotation = _bare(annotation)
    if dataclasses.is_dataclass(annotation) or is_typeddict(annotation):
        keys = typing.get_type_hints(annotation)
        if not loc:
            return list(keys)
        return keys_at(keys[loc[0]], loc[1:]) if loc[0] in keys else []
    arguments = typing.get_args(annotation)
    return keys_at(arguments[-1], loc[1:]) if loc and arguments else []


def _bare(annotation: Any) -> Any:
    """Without ``Annotated``, ``Required`` and ``None``."""
    if hasattr(annotation, "__metadata__"):
        return _bare(annotation.__origin__)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _bare(next(a for a in typing.get_args(annotation) if a is not type(None)))
    return annotation
