"""The documentation says what the code does: keys, defaults, hooks, commands, metrics, and code that runs."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command

from visionkit import Backbone, Evaluator, Head, Neck, Sample, Source, Transform, hookspecs
from visionkit.cli import COMMANDS, build_app
from visionkit.config import check_arguments, parse_pipeline
from visionkit.config import pipeline as models
from visionkit.model.importing import Importer
from visionkit.plugins import PluginManager
from visionkit.train import Balancer, Run
from visionkit.types import Batch, ImageInfo, InstanceMasks, Mean, Output, Prediction, Target

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
    "evaluate.refine.HEAD": models.RefineConfig,
    "evaluate.refine.HEAD.crf": models.CRFConfig,
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


# -- pages and the code in them


def pages(root: Path) -> list[Path]:
    """Every page that is written by hand."""
    return [*root.glob("*.md"), *(p for p in (root / "docs").rglob("*.md") if not p.parent.name.startswith("_"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page that are in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    broken = [
        f"{page.relative_to(repository)}: {link}"
        for page in pages(repository)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


# -- hooks, contracts and commands


def sections(page: Path) -> dict[str, str]:
    """The text under each heading that is code, up to the next heading."""
    parts = re.split(r"^##+ (.*)$", page.read_text(), flags=re.M)
    return {name.strip("`"): text for name, text in zip(parts[1::2], parts[2::2])}


def rows(section: str) -> set[str]:
    """The first cells of a section's tables, which are code."""
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.M))


def test_every_hook_is_documented_with_its_arguments(repository: Path) -> None:
    documented = {name: text for name, text in sections(repository / "docs/reference/hooks.md").items() if "(" in name}
    hooks = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "visionkit_spec")}
    arguments = {name: list(inspect.signature(hook).parameters) for name, hook in hooks.items()}
    assert set(documented) == {f"{name}({', '.join(names)})" for name, names in arguments.items()}
    for heading, text in documented.items():
        assert rows(text) == set(arguments[heading.partition("(")[0]])


def test_every_kind_and_every_attribute_of_a_run_is_documented(repository: Path) -> None:
    text = (repository / "docs/reference/hooks.md").read_text()
    named = [*get_args(hookspecs.Kind), *(f"run.{field.name}" for field in dataclasses.fields(Run))]
    assert [name for name in named if f"`{name}`" not in text] == []


CONTRACTS = {
    contract.__name__: contract
    for contract in (Backbone, Neck, Head, Source, Sample, Transform, Evaluator, Balancer, Importer,
                     Target, InstanceMasks, Prediction, Output, Mean, Batch, ImageInfo)
}  # fmt: skip


def members(contract: type) -> set[str]:
    """What the class itself gives to its users: methods with their arguments, and attributes."""
    code = ast.parse(textwrap.dedent(inspect.getsource(contract)))
    own = {
        target.attr
        for node in ast.walk(code)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
    found = set()
    for name in {*vars(contract), *vars(contract).get("__annotations__", {}), *own}:
        value = inspect.getattr_static(contract, name, None)
        if name.startswith("_"):
            continue
        if isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            names = list(inspect.signature(getattr(contract, name)).parameters)
            found.add(f"{name}({', '.join(n for n in names if n != 'self')})")
        else:
            found.add(name)
    return found


def test_every_contract_has_a_section(repository: Path) -> None:
    assert set(sections(repository / "docs/reference/contracts.md")) == set(CONTRACTS)
    from visionkit import plugins

    loaded = {where.partition(":")[2] for where in plugins.CONTRACTS.values()}
    assert loaded <= set(CONTRACTS)


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_member_of_a_contract_is_documented(name: str, repository: Path) -> None:
    assert rows(sections(repository / "docs/reference/contracts.md")[name]) == members(CONTRACTS[name])


def test_every_option_of_every_command_is_documented(repository: Path) -> None:
    spec = importlib.util.spec_from_file_location("docs_generate", repository / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    documented = "\n".join(generate.commands())
    texts = dict(re.findall(r"^## `([\w-]+)`\n(.*?)(?=^## |\Z)", documented, re.M | re.S))
    group: Any = get_command(build_app())
    assert set(texts) == set(COMMANDS)
    for name, command in group.commands.items():
        for parameter in command.params:
            option = parameter.param_type_name == "option"
            shown = parameter.opts if option else [(parameter.metavar or parameter.name).strip("[].")]
            assert [word for word in shown if word not in texts[name]] == [], name
            assert getattr(parameter, "help", None) or parameter.name == "help", f"{name} {parameter.name} has no help"
    cli = (repository / "docs/reference/cli.md").read_text()
    assert "```{include} _generated/commands.md" in cli


def test_every_component_and_command_is_named_in_the_readme(repository: Path) -> None:
    text = (repository / "README.md").read_text()
    names = [c.component.name for c in PluginManager().components() if c.distribution == "visionkit"]
    names = [n for n in names if "/" not in n and n != "fixed"]  # importers are named by what they import
    assert [name for name in [*names, *COMMANDS] if f"`{name}`" not in text] == []


def commands_in(page: Path) -> list[list[str]]:
    """The command lines of visionkit in a page, as words."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("visionkit ")]


def test_command_lines_are_understood(repository: Path) -> None:
    group: Any = get_command(build_app())
    wrong = []
    for page in pages(repository):
        for name, *arguments in commands_in(page):
            try:
                group.commands[name].make_context(name, arguments)
            except Exception as error:
                wrong.append(f"{page.relative_to(repository)}: {name} {' '.join(arguments)}: {error}")
    assert wrong == []


def test_pipelines_are_valid(repository: Path) -> None:
    plugins, seen = PluginManager(), 0
    for page in pages(repository):
        for block in blocks(page, "yaml"):
            if block.startswith("backbone:") and "\nheads:" in block:  # a whole one
                check_arguments(parse_pipeline(block, str(page.relative_to(repository))), plugins)
                seen += 1
    assert seen >= 3


def is_part_of(part: Any, whole: Any) -> bool:
    """Whether ``whole`` says all that ``part`` says."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and is_part_of(value, whole[key]) for key, value in part.items())
    return part == whole


def test_the_readme_shows_the_demo_as_it_is(repository: Path) -> None:
    (shown,) = (yaml.safe_load(b) for b in blocks(repository / "README.md", "yaml") if b.startswith("backbone:"))
    shipped = yaml.safe_load((repository / "pipelines/demo.yaml").read_text())
    assert {key: value for key, value in shown.items() if not is_part_of(value, shipped.get(key))} == {}
