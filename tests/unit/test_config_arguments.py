"""Constructor signatures as the schema of components."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visionkit.config import build_component, check_arguments, json_schema, parse_pipeline
from visionkit.errors import PipelineError
from visionkit.plugins import PluginManager

# Plain functions stand in for modules: what is checked is the signature.
PLUGIN = """
    from __future__ import annotations

    from collections.abc import Sequence
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Any, Literal

    from visionkit import Component, Transform, hookimpl


    def seg(spec, labels, *, channels: int = 128, sizes: tuple[int, ...] = (1, 2), dropout: float = 0.0,
            norm: Literal["batch", "group"] | None = "group", levels: Sequence[str] = ("p2",)):
        if channels < 0:
            raise ValueError("channels must not be negative")
        return locals()


    def net(*, model: str, frozen: bool = False, levels: Sequence[str] | None = None, stem: object = None):
        return locals()


    def files(*, root: Path, annotations: str, limit: int | Sequence[int] | None = None):
        if not root.exists():
            raise FileNotFoundError(f"no folder {root}")
        return locals()


    def anything(**options: Any):
        return options


    def weigh(heads, *, weights: dict[str, float]):
        return locals()


    def late(spec: FeatureSpec, labels):
        pass


    def clash(spec, labels, *, reads: int = 3):
        pass


    @dataclass
    class Grow(Transform):
        by: float
        crop: dict[str, int] | None = None

        def __call__(self, sample):
            return sample


    @hookimpl
    def visionkit_components():
        kinds = {"seg": "head", "late": "head", "clash": "head", "net": "backbone", "anything": "neck",
                 "files": "source", "Grow": "transform", "weigh": "balancer"}
        return [Component(kind, name.lower(), f":{name}", f"a {kind}") for name, kind in kinds.items()]
"""

TEXT = """\
backbone: {name: net, model: tiny}
neck: {name: anything, some: 1}
heads:
  first:
    name: seg
    channels: 3
sources:
  street:
    name: files
    root: .
    limit: 3
    train: {annotations: a.json}
    val:
      annotations: b.json
train:
  balancer: {name: weigh, weights: {first: 2}}
  transforms: [{name: grow, by: 2}]
"""


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> PluginManager:
    file = tmp_path_factory.mktemp("plugins") / "mine.py"
    file.write_text(textwrap.dedent(PLUGIN))
    made = PluginManager(entry_points=False, files=[str(file)])
    assert not made.problems
    return made


@pytest.fixture
def said(plugins: PluginManager) -> Callable[[str, str], str]:
    def said(old: str, new: str) -> str:
        assert old in TEXT
        with pytest.raises(PipelineError) as error:
            check_arguments(parse_pipeline(TEXT.replace(old, new, 1), "my.yaml"), plugins)
        assert "\n" not in str(error.value)
        return str(error.value)

    return said


def test_right_arguments_pass(plugins: PluginManager) -> None:
    check_arguments(parse_pipeline(TEXT), plugins)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channels", "chanels", "my.yaml:6: unknown key 'chanels' in head 'first' (seg); did you mean 'channels'? "
         "allowed: channels, sizes, dropout, norm, levels"),
        ("channels: 3", "channels: many", "my.yaml:6: 'channels' of head 'first' (seg): expected an integer, not the "
         "text 'many'"),
        ("channels: 3", "channels: '3'", "expected an integer, not the text '3'"),
        ("channels: 3", "channels: true", "expected an integer, not true"),
        ("channels: 3", "sizes: [1, x]", "my.yaml:6: 'sizes.1' of head 'first' (seg): expected an integer, not the"),
        ("channels: 3", "sizes: 3", "'sizes' of head 'first' (seg): expected a list, not 3"),
        ("channels: 3", "norm: gruop", "expected 'batch' or 'group', not the text 'gruop'; did you mean 'group'?"),
        ("name: seg", "name: sge", "my.yaml:5: no head 'sge'; did you mean 'seg'?"),
        ("name: seg", "name: grow", "my.yaml:5: no head 'grow'"),
        ("name: seg", "name: late", "my.yaml:5: the annotations of "),
        ("name: seg", "name: late", "name 'FeatureSpec' is not defined"),
        ("name: seg", "name: clash", "takes an argument 'reads', which no pipeline can give"),
        (", model: tiny", "", "my.yaml:1: missing key 'model' in backbone 'net'"),
        ("model: tiny", "model: tiny, levels: [c2]", "my.yaml:1: unknown key 'levels' in backbone 'net'; "
         "allowed: model, frozen, stem"),
        ("model: tiny", "model: tiny, frozen: 1", "'frozen' of backbone 'net': expected true or false, not 1"),
        ("limit: 3", "limti: 3", "my.yaml:11: unknown key 'limti' in source 'street' (files); did you mean 'limit'?"),
        ("limit: 3", "limit: x", "my.yaml:11: 'limit' of source 'street' (files): expected an integer or "),
        ("annotations: b", "anotations: b", "my.yaml:14: unknown key 'anotations' in source 'street' (files)"),
        ("annotations: b.json", "annotations: b.json\n      limit: x", "my.yaml:15: 'limit' of source 'street'"),
        ("annotations: a.json", "", "my.yaml:12: missing key 'annotations' in source 'street' (files)"),
        ("by: 2", "by: 2, crop: {x: y}", "my.yaml:17: 'crop.x' of transform 'grow': expected an integer, not the"),
        ("by: 2", "", "my.yaml:17: missing key 'by' in transform 'grow'"),
        ("weights", "wieghts", "my.yaml:16: unknown key 'wieghts' in balancer 'weigh'"),
    ],
)  # fmt: skip
def test_wrong_arguments(said: Callable[[str, str], str], old: str, new: str, message: str) -> None:
    assert message in said(old, new)


def test_an_override_is_named_in_place_of_a_line(plugins: PluginManager) -> None:
    pipeline = parse_pipeline(TEXT, "my.yaml", ["heads.first.chanels=3"])
    with pytest.raises(PipelineError, match=r"^--set heads.first.chanels=3: unknown key 'chanels' in head 'first'"):
        check_arguments(pipeline, plugins)


def test_building_hands_over_what_the_annotations_say(plugins: PluginManager) -> None:
    pipeline = parse_pipeline(TEXT.replace("channels: 3", "sizes: [3, 4]\n    dropout: 1"))
    made = build_component(plugins, "head", pipeline.heads["first"], pipeline, "the spec", "the labels")
    assert (made["spec"], made["labels"], made["sizes"], made["channels"]) == ("the spec", "the labels", (3, 4), 128)
    assert isinstance(made["dropout"], float)
    backbone: Any = pipeline.backbone
    assert build_component(plugins, "backbone", backbone, pipeline, levels=["c2"])["levels"] == ["c2"]
    split: Any = pipeline.sources["street"].split("val")
    made = build_component(plugins, "source", split, pipeline)
    assert (made["root"], made["annotations"], made["limit"]) == (Path("."), "b.json", 3)
    assert build_component(plugins, "neck", pipeline.neck, pipeline) == {"some": 1}  # type: ignore[arg-type]
    assert build_component(plugins, "transform", pipeline.train.transforms[0], pipeline).by == 2.0


def test_a_component_that_ends_the_process_is_an_error_at_its_section(plugins: PluginManager) -> None:
    pipeline = parse_pipeline(TEXT.replace("name: grow, by: 2", "name: 'sys:exit'"))
    with pytest.raises(PipelineError, match=r"transform 'sys:exit': .*SystemExit"):
        build_component(plugins, "transform", pipeline.train.transforms[0], pipeline)


def test_what_a_constructor_refuses_is_an_error_at_its_section(plugins: PluginManager) -> None:
    pipeline = parse_pipeline(
        TEXT.replace("channels: 3", "channels: -3").replace("root: .", "root: nowhere"), "my.yaml"
    )
    with pytest.raises(PipelineError, match=r"^my.yaml:4: head 'first' \(seg\): channels must not be negative$"):
        build_component(plugins, "head", pipeline.heads["first"], pipeline, None, None)
    split: Any = pipeline.sources["street"].split("train")
    with pytest.raises(PipelineError, match=r"^my.yaml:12: source 'street' \(files\): no folder nowhere$"):
        build_component(plugins, "source", split, pipeline)
    with pytest.raises(PipelineError, match=r"head 'first' \(seg\): TypeError: .*labels"):
        build_component(plugins, "head", parse_pipeline(TEXT).heads["first"], pipeline, None)


def test_json_schema(plugins: PluginManager) -> None:
    schema = json_schema(plugins)
    json.dumps(schema)
    assert list(schema["properties"]) == ["backbone", "neck", "heads", "sources", "train", "evaluate"]
    assert schema["additionalProperties"] is False
    head = by_name(schema, "head")["seg"]
    assert head["additionalProperties"] is False
    assert head["required"] == ["name"]
    assert head["properties"]["channels"] == {"type": "integer", "default": 128}
    assert head["properties"]["sizes"] == {"type": "array", "items": {"type": "integer"}, "default": [1, 2]}
    assert set(head["properties"]) == {"name", "reads", "labels", "channels", "sizes", "dropout", "norm", "levels"}
    assert by_name(schema, "backbone")["net"]["required"] == ["name", "model"]
    assert "levels" not in by_name(schema, "backbone")["net"]["properties"]
    assert by_name(schema, "source")["files"]["required"] == ["name"]
    assert by_name(schema, "neck")["anything"].get("additionalProperties", True) is True
    assert "annotations of" in by_name(schema, "head")["late"]["description"]
    assert schema["properties"]["train"]["properties"]["transforms"]["items"] == {"$ref": "#/$defs/transform"}
    assert schema["properties"]["train"]["properties"]["steps"]["default"] == 1000


def test_every_reference_in_the_json_schema_leads_somewhere(plugins: PluginManager) -> None:
    schema = json_schema(plugins)

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert {r.removeprefix("#/$defs/") for r in references(schema)} == set(schema["$defs"])


def by_name(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    ways = [way for way in schema["$defs"][kind]["anyOf"] if "const" in way.get("properties", {}).get("name", {})]
    return {way["properties"]["name"]["const"]: way for way in ways}
