"""YAML as plain data with the line of every key. The safe part of YAML only: no tags, no code, text keys.

Scalars are read by the core schema of YAML 1.2: ``true`` and ``false`` are the only booleans (``no`` is a word), and
``1e-3`` is a number. ``${NAME}`` and ``${NAME:-default}`` in a value stand for an environment variable.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from visionkit.errors import PipelineError

Marks = dict[tuple[str | int, ...], str]

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


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

    Raises:
        PipelineError: no YAML, a key given twice, a tag, an unset environment variable, a value that contains itself.
    """
    reader = _Reader(origin, lines)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            data = reader.plain(node, at, loader) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PipelineError(f"{reader.mark(mark)}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise PipelineError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    return data, reader.marks


def dump(data: Any) -> str:
    """YAML that :func:`parse` reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Reader:
    def __init__(self, origin: str, lines: bool) -> None:
        self.origin, self.lines = origin, lines
        self.marks: Marks = {}
        self.inside: list[yaml.Node] = []

    def mark(self, mark: Any) -> str:
        return f"{self.origin}:{mark.line + 1}" if self.lines and mark is not None else self.origin

    def plain(self, node: yaml.Node, at: tuple[str | int, ...], loader: _Loader) -> Any:
        self.marks.setdefault(at, self.mark(node.start_mark))
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
                key = key_node.value
                if key in data:
                    raise PipelineError(f"{line}: key '{key}' is given twice (first at {self.marks[(*at, key)]})")
                self.marks[(*at, key)] = line
                data[key] = self.plain(value, (*at, key), loader)
        self.inside.pop()
        if node.tag not in ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"):
            raise PipelineError(f"{self.mark(node.start_mark)}: tag '{node.tag}' is not allowed")
        return data

    def scalar(self, node: yaml.ScalarNode, loader: _Loader) -> Any:
        text, tag = node.value, node.tag
        if "${" in text:
            text = _VARIABLE.sub(lambda match: self.variable(match, node), text)
            if node.style is None:  # not quoted: what stands there now may be a number
                tag = loader.resolve(yaml.ScalarNode, text, (True, False))
        match tag.removeprefix("tag:yaml.org,2002:"):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text == "true"
            case "int" if re.fullmatch(r"[-+]?[0-9]+", text):
                return int(text)
            case "float":
                try:
                    return float(text.replace(".inf", "inf").replace(".nan", "nan"))
                except ValueError:
                    pass
        raise PipelineError(f"{self.mark(node.start_mark)}: tag '{tag}' is not allowed on '{text}'")

    def variable(self, match: re.Match[str], node: yaml.Node) -> str:
        name, default = match.groups()
        value = os.environ.get(name, default)
        if value is None:
            raise PipelineError(f"{self.mark(node.start_mark)}: environment variable {name} is not set "
                                f"(${{{name}:-DEFAULT}} gives a default)")  # fmt: skip
        return value
