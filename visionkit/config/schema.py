"""JSON Schema of a pipeline, from the same annotations that check one: editors complete and explain by it."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from visionkit.config.arguments import signature_schema
from visionkit.config.pipeline import SECTIONS, EvaluateConfig, HeadConfig, SourceConfig, TrainConfig
from visionkit.errors import PluginError
from visionkit.plugins import PluginManager

_KINDS = ("backbone", "neck", "head", "source", "transform", "evaluator", "balancer")


def json_schema(plugins: PluginManager) -> dict[str, Any]:
    """The schema of pipeline files, with the arguments of every component that can be loaded; loads them all."""
    defs: dict[str, Any] = {}
    train, evaluate = _section(TrainConfig, defs), _section(EvaluateConfig, defs)
    for section in (train["properties"], evaluate["properties"]):
        section["transforms"] = {"type": "array", "items": _ref("transform")}
    train["properties"]["balancer"] = _ref("balancer")
    metrics = {"type": "array", "items": _ref("evaluator")}
    evaluate["properties"]["metrics"] = {"type": "object", "additionalProperties": metrics}
    reserved = {kind: _reserved(config, defs) for kind, config in (("head", HeadConfig), ("source", SourceConfig))}
    for kind in _KINDS:
        defs[kind] = _any_of(plugins, kind, reserved.get(kind, {}), defs)
    sections = {
        "backbone": {"anyOf": [_ref("backbone"), {"type": "null"}]},
        "neck": {"anyOf": [_ref("neck"), {"type": "null"}]},
        "heads": {"type": "object", "additionalProperties": _ref("head"), "minProperties": 1},
        "sources": {"type": "object", "additionalProperties": _ref("source")},
        "train": train,
        "evaluate": evaluate,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "visionkit pipeline",
        "type": "object",
        "properties": {key: sections[key] for key in SECTIONS},
        "required": ["heads"],
        "additionalProperties": False,
        "$defs": {name: value for name, value in defs.items() if not name.endswith("Config") or name in _used(defs)},
    }


def _any_of(plugins: PluginManager, kind: str, reserved: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """All ways to write a component of one kind: its name alone, or a mapping of name and arguments."""
    listed = [c.component for c in plugins.components(kind)]
    direct = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "a class, as module:Class"}
    ways: list[dict[str, Any]] = [{"enum": [c.name for c in listed]}] if listed else []
    ways.append(direct)
    for component in listed:
        name = {"const": component.name, "description": component.summary}
        try:
            arguments = _arguments(kind, plugins.load(kind, component.name), defs)
        except PluginError as error:  # a broken one may still be written down; using it says what is wrong
            arguments = {"type": "object", "description": str(error)}
        if kind == "source":  # what is required may stand in either split, or outside both
            arguments.pop("required", None)
        arguments["properties"] = {"name": name, **reserved, **arguments.get("properties", {})}
        arguments["required"] = ["name", *arguments.get("required", [])]
        ways.append(arguments)
    ways.append({"type": "object", "properties": {"name": direct, **reserved}, "required": ["name"]})
    return {"anyOf": ways}


def _arguments(kind: str, made: Any, defs: dict[str, Any]) -> dict[str, Any]:
    schema = _generate(signature_schema(kind, made), defs)
    schema.pop("title", None)
    for argument in schema.get("properties", {}).values():
        argument.pop("title", None)
    return schema


def _section(config: Any, defs: dict[str, Any]) -> dict[str, Any]:
    schema = _generate(config, defs)
    schema["description"] = config.__doc__.splitlines()[0]
    return schema


def _reserved(config: Any, defs: dict[str, Any]) -> dict[str, Any]:
    own = {k: v for k, v in _generate(config, defs)["properties"].items() if k not in ("name", "args", "at")}
    for key in own:
        if key.endswith("transforms"):
            own[key] = {"type": "array", "items": _ref("transform")}
    return own


def _generate(annotation: Any, defs: dict[str, Any]) -> dict[str, Any]:
    schema = TypeAdapter(annotation).json_schema(ref_template="#/$defs/{model}", schema_generator=_Generator)
    defs.update(schema.pop("$defs", {}))
    return schema


def _used(defs: dict[str, Any]) -> set[str]:
    return {"OptimizerConfig", "PartConfig", "ScheduleConfig", "WarmupConfig", "RefineConfig", "CRFConfig"} & set(defs)


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


class _Generator(GenerateJsonSchema):
    """Where pydantic knows no JSON for a type (a class of torch, say), anything may stand."""

    def handle_invalid_for_json_schema(self, schema: core_schema.CoreSchema, error_info: str) -> JsonSchemaValue:
        return {}
