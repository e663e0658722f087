"""A constructor's signature as the configuration of a component, for every kind."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from pydantic import TypeAdapter

from visionkit.config.arguments import signature_schema
from visionkit.config.check import Finding, conform
from visionkit.testing.report import Broken


def configuration(made: Any, given: int) -> list[inspect.Parameter]:
    """The parameters after the ``given`` first ones, which the core hands over itself."""
    parameters = list(inspect.signature(made).parameters.values())
    return [p for p in parameters[given:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def assert_configurable(kind: str, made: Any, given: int, ours: tuple[str, ...] = ()) -> None:
    """Arguments after the first ones are keywords with annotations that their defaults keep to, and others are refused.

    Args:
        given: how many positional arguments the core hands over.
        ours: names of keywords that the core hands over.
    """
    for parameter in configuration(made, given):
        if parameter.kind != parameter.KEYWORD_ONLY:
            raise Broken(f"argument '{parameter.name}' can be given by its place; all after the first {given} must be "
                         "keywords: put a * before them")  # fmt: skip
        if parameter.annotation is parameter.empty and parameter.name not in ours:
            raise Broken(
                f"argument '{parameter.name}' has no annotation, so no pipeline file can be checked against it"
            )
    schema = signature_schema(kind, made)
    try:
        conform(TypeAdapter(schema), schema, {"no_such_argument_": 0}, "the component")
    except Finding as finding:
        if "no_such_argument_" not in finding.message and "missing key" not in finding.message:
            raise
    else:
        raise Broken("its constructor takes any keyword (**kwargs), so a misspelt key of a pipeline goes unnoticed")
    for parameter in configuration(made, given):
        if parameter.default in (parameter.empty, None) or parameter.name in ours:
            continue
        _assert_default_conforms(schema, parameter)


def _assert_default_conforms(schema: Any, parameter: inspect.Parameter) -> None:
    annotation = schema.__annotations__[parameter.name]
    try:
        text = json.dumps(parameter.default)
    except TypeError:
        raise Broken(f"the default of '{parameter.name}' is a {type(parameter.default).__name__}, which no pipeline "
                     "file can hold; take plain numbers, text, lists and mappings") from None  # fmt: skip
    adapter = TypeAdapter(getattr(annotation, "__args__", (annotation,))[0])
    try:
        adapter.validate_json(text, strict=True)
    except ValueError:
        raise Broken(f"the default of '{parameter.name}', {text}, is not what its annotation allows") from None


def assert_documented(made: Any, given: int, ours: tuple[str, ...] = ()) -> None:
    """Every argument has its line under ``Args:`` in the docstring of the class or of a base."""
    bases = made.__mro__ if isinstance(made, type) else (made,)
    known = set().union(*(documented(inspect.cleandoc(base.__doc__ or "")) for base in bases))
    missing = [p.name for p in configuration(made, given) if p.name not in known and p.name not in ours]
    if missing:
        raise Broken(f"the docstring says nothing of {', '.join(missing)}: add a line under 'Args:' for each")


def documented(text: str) -> set[str]:
    """Names under ``Args:`` in a docstring."""
    section = re.search(r"^Args:[ \n](.*?)(?=^\S|\Z)", text, re.M | re.S)
    lines = re.findall(r"^ {4}(\w+(?:, \w+)*):", section.group(1) if section else "", re.M)
    return {name for line in lines for name in line.split(", ")}
