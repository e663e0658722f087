"""YAML as plain data with the line of every key. The safe part of YAML only: no tags, no code, text keys.

Scalars are read by the core schema of YAML 1.2: ``true`` and ``false`` are the only booleans (``no`` is a word), and
``1e-3`` is a number. ``${NAME}`` and ``${NAME:-default}`` in a value stand for an environment variable. Its value is
always part of one scalar: nothing in it is YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import yaml

from visionkit.errors import PipelineError

Marks = dict[tuple[str | int, ...], str]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_REFERENCE = re.compile(r"\$\{(?:\w+:-[^}]*|[^}\"']*)\}")

# Far more than a pipeline needs; a few aliases of aliases ("billion laughs") reach any number.
_MOST_CHARACTERS, _MOST_VALUES, _LONGEST_KEY = 1_000_000, 200_000, 200


class VariableText(str):
    """Quoted text that holds an environment variable and would be a number (or truth, or null) without the quotes.

    Attributes:
        value: what it is without the quotes.
        as_value: whether that is what it stands for: set where text is not accepted and ``value`` is.
    """

    value: Any
    as_value: bool = False

    def plain(self) -> Any:
        """What it stands for, as plain data."""
        return self.value if self.as_value else str(self)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), ["t", "f"])
    _class.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
        list("-+.0123456789"),
    )


def parse(text: str, origin: str, at: tuple[str | int, ...] = (), *, lines: bool = True) -> tuple[Any, Marks]:
    """Plain data, and a mark for every key and list item below ``at``: ``origin:line``, or just ``origin``.

    Quoted text that an environment variable makes look like a number is a :class:`VariableText`.

    Raises:
        PipelineError: no YAML, a key given twice, a tag, an unset environment variable, a value that contains itself,
            a text or number of values beyond all bounds.
    """
    if len(text) > _MOST_CHARACTERS:
        raise PipelineError(f"{origin}: {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read")
    variables = _Variables(text)
    reader = _Reader(origin, lines, variables)
    try:
        loader = _Loader(variables.hidden(text))
        try:
            node = loader.get_single_node()
            data = reader.plain(node, at, loader) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = variables.shown(str(error.problem or error.context)).replace(ascii(variables.fence)[1:-1], "$")
        raise PipelineError(f"{reader.mark(mark)}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise PipelineError(f"{origin}: values are nested too deeply") from None
    return data, reader.marks


def dump(data: Any) -> str:
    """YAML that :func:`parse` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Variables:
    """Environment variables of a YAML text, hidden from the YAML parser: to it, ``{lr: ${LR}}`` has a brace too many.

    Each stands in the text as its number between two characters that occur nowhere else.
    """

    def __init__(self, text: str) -> None:
        self.fence = next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)
        self.references: list[str] = []

    def hidden(self, text: str) -> str:
        def hide(match: re.Match[str]) -> str:
            if "\n" in match[0]:  # lines must stay where they are; it can only stand in quotes or a block anyway
                return match[0]
            self.references.append(match[0])
            return f"{self.fence}{len(self.references) - 1}{self.fence}"

        return _REFERENCE.sub(hide, text)

    def shown(self, text: str, unescape: Callable[[str], str] = str) -> str:
        """The text with its variables in place; ``unescape`` is applied to each of them."""
        return re.sub(
            f"{self.fence}([0-9]+){self.fence}", lambda match: unescape(self.references[int(match[1])]), text
        )  # fmt: skip


class _Reader:
    def __init__(self, origin: str, lines: bool, variables: _Variables) -> None:
        self.origin, self.lines, self.variables = origin, lines, variables
        self.marks: Marks = {}
        self.inside: list[yaml.Node] = []
        self.values = 0

    def mark(self, mark: Any) -> str:
        return f"{self.origin}:{mark.line + 1}" if self.lines and mark is not None else self.origin

    def plain(self, node: yaml.Node, at: tuple[str | int, ...], loader: _Loader) -> Any:
        self.marks.setdefault(at, self.mark(node.start_mark))
        self.values += 1
        if self.values > _MOST_VALUES:
            raise PipelineError(f"{self.mark(node.start_mark)}: more than {_MOST_VALUES:,} values, counting each "
                                "repetition of an alias")  # fmt: skip
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, loader)
        if any(node is outer for outer in self.inside):
            raise PipelineError(f"{self.mark(node.start_mark)}: a value contains itself")
        self.inside.append(node)
        data: Any
        if isinstance(node, yaml.SequenceNode):
            data = [self.plain(item, (*at, i), loader) for i, item in enumerate(node.value)]
        else:
            data = {}
            for key_node, value in node.value:
                line = self.mark(key_node.start_mark)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise PipelineError(f"{line}: a key must be text")
                key = self.variables.shown(key_node.value)
                if len(key) > _LONGEST_KEY:
                    raise PipelineError(f"{line}: a key of more than {_LONGEST_KEY} characters: '{key[:50]}...'")
                if _REFERENCE.search(key):
                    raise PipelineError(f"{line}: a key cannot hold an environment variable: '{key}'")
                if key in data:
                    raise PipelineError(f"{line}: key '{key}' is given twice (first at {self.marks[(*at, key)]})")
                self.marks[(*at, key)] = line
                data[key] = self.plain(value, (*at, key), loader)
        self.inside.pop()
        if node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            raise PipelineError(f"{self.mark(node.start_mark)}: tag '{node.tag}' is not allowed")
        return data

    def scalar(self, node: yaml.ScalarNode, loader: _Loader) -> Any:
        text = self.variables.shown(node.value, lambda reference: self.unescaped(reference, node))
        if "${" not in text:
            return self.typed(text, node.tag, node)
        text = _REFERENCE.sub(lambda match: self.variable(match[0], node), text)
        # What stands there now may be a number.
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        if node.style is None:
            return self.typed(text, tag, node)
        data = self.typed(text, node.tag, node)
        if isinstance(data, str) and tag != node.tag:
            data = VariableText(data)
            data.value = self.typed(text, tag, node)
        return data

    def typed(self, text: str, tag: str, node: yaml.Node) -> Any:
        match tag.removeprefix("tag:yaml.org,2002:"):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text == "true"
            case "int" if re.fullmatch(r"[-+]?[0-9]+", text):
                if len(text) > 4000:  # Python refuses to convert what is not much longer
                    raise PipelineError(f"{self.mark(node.start_mark)}: an integer of {len(text):,} digits")
                return int(text)
            case "float":
                try:
                    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
                except ValueError:
                    pass
        raise PipelineError(f"{self.mark(node.start_mark)}: tag '{tag}' is not allowed on '{text}'")

    def variable(self, reference: str, node: yaml.Node) -> str:
        match = _VARIABLE.fullmatch(reference)
        if match is None:
            raise PipelineError(f"{self.mark(node.start_mark)}: '{reference}' is not an environment variable: expected "
                                "${NAME} or ${NAME:-DEFAULT}, a name of letters, digits and '_'")  # fmt: skip
        name, default = match.groups()
        value = os.environ.get(name, default)
        if value is None:
            raise PipelineError(f"{self.mark(node.start_mark)}: environment variable {name} is not set "
                                f"(${{{name}:-DEFAULT}} gives a default)")  # fmt: skip
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise PipelineError(f"{self.mark(node.start_mark)}: environment variable {name} is not valid UTF-8")
        return value

    def unescaped(self, reference: str, node: yaml.ScalarNode) -> str:
        """A variable as it stands within its quotes: escapes in its default mean what they mean around it."""
        if node.style == "'":
            return reference.replace("''", "'")
        if node.style != '"' or "\\" not in reference:
            return reference
        try:
            return str(yaml.safe_load(f'"{reference}"'))
        except yaml.YAMLError:
            raise PipelineError(f"{self.mark(node.start_mark)}: not valid YAML: the escapes in {reference}") from None
