"""The documentation says what the code does: keys, defaults, hooks, commands, metrics, and code that runs."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from visionkit.config import pipeline as models

# -- the pipeline reference

SECTIONS: dict[str, type] = {
    "heads.NAME": models.HeadConfig,
    "sources.NAME": models.SourceConfig,
    "train": models.TrainConfig,
    "train.optimizer": models.OptimizerConfig,
    "train.parts.PREFIX": models.PartConfig,
    "train.schedule": models.ScheduleConfig,
    "train.warmup": models.WarmupConfig,
    "evaluate": models.EvaluateConfig,
}


def documented_keys(text: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Type and default of every key, by section, from the tables of the page."""
    sections: dict[str, dict[str, tuple[str, str]]] = {}
    keys: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        if heading := re.match(r"##+ `([\w.]+)`$", line):
            keys = sections[heading.group(1)] = {}
        elif re.match(r"\| `\w+` \|", line):
            name, kind, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
            keys[name.strip("`")] = kind, default.strip("`")
    return sections


def in_words(schema: dict[str, Any]) -> str:
    """The type that a JSON schema describes, as the page writes it."""
    if "$ref" in schema:
        return "component" if schema["$ref"].endswith("/ComponentConfig") else "section"
    if "anyOf" in schema:
        return ", or ".join(in_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    of = schema.get("items") or schema.get("additionalProperties")
    inner = f" of {in_words(of)}" if isinstance(of, dict) and in_words(of) else ""
    plural = "s" if inner in (" of component", " of section") else ""
    words = {"string": "text", "boolean": "true or false", "object": "mapping", "array": "list", None: ""}
    kind = words.get(schema.get("type"), schema.get("type")) + inner + plural
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = " and ".join(f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
    return f"{kind} {bounds}".strip()


def default_of(field: dataclasses.Field[Any]) -> str:
    """A default as the page writes it: as YAML, nothing for a key that must be given or is a section of its own."""
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        value = "" if field.default is dataclasses.MISSING else field.default
    if isinstance(value, models.ComponentConfig):
        return value.name
    if dataclasses.is_dataclass(value):
        return ""
    return "null" if value is None else json.dumps(models.plain(value)).strip('"')


def expected_keys(model: type) -> dict[str, tuple[str, str]]:
    """Type and default of every key of a section, in words."""
    schema = TypeAdapter(model).json_schema()["properties"]
    fields = [field for field in dataclasses.fields(model) if field.name not in ("args", "at")]
    return {field.name: (in_words(schema[field.name]), default_of(field)) for field in fields}


@pytest.fixture(scope="module")
def pipeline_page(repository: Path) -> dict[str, dict[str, tuple[str, str]]]:
    return documented_keys((repository / "docs/reference/pipeline.md").read_text())


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_pipeline_is_documented_with_its_type_and_default(
    section: str, pipeline_page: dict[str, dict[str, tuple[str, str]]]
) -> None:
    links = re.compile(r"\[(\w+)\]\([^)]*\)")
    documented = {key: (links.sub(r"\1", kind), default) for key, (kind, default) in pipeline_page[section].items()}
    assert documented == expected_keys(SECTIONS[section])


def test_every_section_is_documented(pipeline_page: dict[str, dict[str, tuple[str, str]]]) -> None:
    assert {name.split(".")[0] for name in pipeline_page} == set(models.SECTIONS)
