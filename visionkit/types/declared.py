"""Checks of the class attributes by which a component says what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is right, and in words what it must be."""

TEXT: Rule = (lambda value: isinstance(value, str) and value != "", "text")
FLAG: Rule = (lambda value: isinstance(value, bool), "True or False")
MAPPING: Rule = (lambda value: isinstance(value, Mapping) and all(isinstance(key, str) for key in value), "a mapping")
NAMES: Rule = (
    lambda value: isinstance(value, tuple) and all(isinstance(name, str) and name for name in value),
    "a tuple of names",
)


def subclass_of(base: type) -> Rule:
    """A class that derives from ``base``."""
    return lambda value: isinstance(value, type) and issubclass(value, base), f"a class derived from {base.__name__}"


def optional(rule: Rule) -> Rule:
    """``None``, or what the rule says."""
    return lambda value: value is None or rule[0](value), f"{rule[1]} or None"


def mapping_to(rule: Rule) -> Rule:
    """A mapping from names to what the rule says."""
    return lambda value: MAPPING[0](value) and all(map(rule[0], value.values())), f"a mapping from names to {rule[1]}"


def declaration_problem(made: type, rules: Mapping[str, Rule], required: tuple[str, ...] = ()) -> str:
    """The first class attribute that is wrong, in words; empty if none is.

    Args:
        made: the class.
        rules: by attribute. Attributes that the class does not have are passed over, and so are properties.
        required: attributes that it must have.
    """
    for name, (fits, wanted) in rules.items():
        value = getattr(made, name, None)
        if not hasattr(made, name):
            if name in required:
                return f"it has no class attribute '{name}'; it must be {wanted}"
        elif not isinstance(value, property) and not fits(value):
            return f"'{name}' is {value!r}; it must be {wanted}"
    return ""
