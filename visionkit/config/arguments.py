"""A component's constructor as the schema of its section: checking arguments against it, and building.

The schema is what the constructor takes beyond what the core hands it, by name, with the annotations as types. What a
``**name`` collects is part of it too, unless that name starts with an underscore.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NotRequired, Required

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from visionkit.config.check import Finding, conform
from visionkit.config.pipeline import ComponentConfig, HeadConfig, Pipeline, SourceConfig
from visionkit.config.settings import setting_problems
from visionkit.errors import PipelineError, PluginError, UserError, raise_first
from visionkit.numbers import unread
from visionkit.plugins import PluginManager, explain

# What the core hands to a constructor of each kind: how many positional arguments, and which named ones.
_POSITIONAL = {"neck": 1, "head": 2, "evaluator": 2, "balancer": 1}
_NAMED = {"backbone": {"levels"}, "neck": {"levels"}, "evaluator": {"label_map"}}
# Keys of a section that mean something to the core and so never reach a constructor.
_RESERVED = {
    kind: {field.name for field in dataclasses.fields(config)} - {"args", "at"}
    for kind, config in {"head": HeadConfig, "source": SourceConfig}.items()
}


def build_component(
    plugins: PluginManager, kind: str, config: ComponentConfig, pipeline: Pipeline, *positional: Any, **extra: Any
) -> Any:
    """Load a component's class, check its arguments, and construct it.

    Args:
        positional, extra: what the core adds to the arguments of the section.

    Raises:
        PipelineError: no such component, arguments that its constructor does not take, or one that it refuses.
    """
    made, arguments = _checked(plugins, kind, config, pipeline, frozenset(extra))
    try:
        return made(*positional, **extra, **arguments)
    except PipelineError:
        raise
    except (UserError, ValueError, OSError) as error:
        raise pipeline.fail(config.at, f"{title(kind, config)}: {error}") from error
    except (TypeError, LookupError, ArithmeticError, RuntimeError, SystemExit) as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this frame is of no interest
        raise pipeline.fail(config.at, f"{title(kind, config)}: {explain(error)}") from error


def check_names(pipeline: Pipeline, plugins: PluginManager) -> None:
    """Look every component of the pipeline up, importing none. Raises ``PipelineError``."""
    for kind, config in components(pipeline):
        try:
            plugins.find(kind, config.name)
        except PluginError as error:
            raise pipeline.fail((*config.at, "name"), str(error)) from error


def check_arguments(pipeline: Pipeline, plugins: PluginManager) -> None:
    """Check all keys of a pipeline that is to be trained, constructing no component.

    Raises:
        PipelineError: the first problem, and how many more there are.
    """
    raise_first([*setting_problems(pipeline), *argument_problems(pipeline, plugins)])


def argument_problems(pipeline: Pipeline, plugins: PluginManager) -> list[PipelineError]:
    """What is wrong with the arguments of each component: unknown keys, wrong values, and keys that nothing reads."""
    found: dict[str, PipelineError] = {}
    for kind, config in components(pipeline):
        try:
            _checked(plugins, kind, config, pipeline)
        except PipelineError as error:
            found.update({str(problem): problem for problem in error.every})  # both splits of a source say the same
    return list(found.values())


def components(pipeline: Pipeline) -> Iterator[tuple[str, ComponentConfig]]:
    """Every component of a pipeline with its kind; each split of a source is one."""
    if pipeline.backbone:
        yield "backbone", pipeline.backbone
    if pipeline.neck:
        yield "neck", pipeline.neck
    for head in pipeline.heads.values():
        yield "head", head
    transforms = [pipeline.train.transforms, pipeline.evaluate.transforms]
    for source in pipeline.sources.values():
        for split in (source.split("train"), source.split("val")):
            if split:
                yield "source", split
        transforms += [source.transforms or [], source.eval_transforms or []]
    for several in transforms:
        for transform in several:
            yield "transform", transform
    yield "balancer", pipeline.train.balancer
    for metrics in pipeline.evaluate.metrics.values():
        for metric in metrics:
            yield "evaluator", metric


def signature_schema(kind: str, made: Any, given: frozenset[str] = frozenset()) -> Any:
    """The arguments that a section of this component may hold, as a ``TypedDict``.

    Args:
        given: names that the core passes itself.

    Raises:
        PluginError: an annotation cannot be resolved, or an argument is called as a key of the core.
    """
    hints = hints_of(made, include_extras=True)
    fields: dict[str, Any] = {}
    extra: typing.Literal["allow", "forbid"] = "forbid"
    ours = given | handed_over(kind, made)
    for parameter in inspect.signature(made).parameters.values():
        if parameter.kind == parameter.VAR_KEYWORD and not parameter.name.startswith("_"):
            extra = "allow"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or parameter.name in ours:
            continue
        if parameter.name in _RESERVED.get(kind, {"name"}):
            raise PluginError(f"{made.__module__}.{made.__qualname__} takes an argument '{parameter.name}', which no "
                              f"pipeline can give: in the section of a {kind} that key is the core's")  # fmt: skip
        annotation = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields[parameter.name] = Required[annotation]
        else:
            shown = Field(json_schema_extra={"default": parameter.default}) if _is_plain(parameter.default) else Field()
            fields[parameter.name] = NotRequired[typing.Annotated[annotation, shown]]
    schema = TypedDict("Arguments", fields)  # type: ignore[misc]
    schema.__pydantic_config__ = ConfigDict(extra=extra, arbitrary_types_allowed=True, allow_inf_nan=False)  # type: ignore[attr-defined]
    return schema


def handed_over(kind: str, made: Any) -> set[str]:
    """The names of the arguments that the core hands to a constructor itself."""
    parameters = inspect.signature(made).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return {*positional[: _POSITIONAL.get(kind, 0)], *_NAMED.get(kind, ())}


def hints_of(made: Any, *, include_extras: bool = False) -> dict[str, Any]:
    """The annotations of a constructor. Raises ``PluginError`` where one cannot be resolved."""
    constructor = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    try:
        return typing.get_type_hints(constructor, include_extras=include_extras)
    except Exception as error:
        name = f"{made.__module__}.{made.__qualname__}"
        raise PluginError(f"the annotations of {name} cannot be resolved: {error}") from error


def title(kind: str, config: ComponentConfig) -> str:
    """What messages call a component: ``head 'seg' (semantic_fpn)``, ``transform 'resize'``."""
    if config.at[:1] in (("heads",), ("sources",)) and kind in ("head", "source"):
        return f"{kind} '{config.at[1]}' ({config.name})"
    return f"{kind} '{config.name}'"


def _checked(
    plugins: PluginManager, kind: str, config: ComponentConfig, pipeline: Pipeline, given: frozenset[str] = frozenset()
) -> tuple[Any, dict[str, Any]]:
    """The class, and the arguments of the section as its constructor wants them."""
    try:
        made = plugins.load(kind, config.name)
        schema = signature_schema(kind, made, given)
    except PluginError as error:
        raise pipeline.fail((*config.at, "name"), str(error)) from error
    arguments: dict[str, Any] = {}
    findings: list[Finding] = []
    try:
        arguments = conform(TypeAdapter(schema), schema, config.args, title(kind, config))
    except Finding as finding:
        findings = list(finding.every)
    reads = {"reads": config.reads} if isinstance(config, HeadConfig) else {}
    for key, condition in _idle(made, {**config.args, **arguments}, reads).items():
        findings.append(Finding((key,), f"'{key}' of {title(kind, config)} has no effect: it is read only if "
                                        f"{condition}"))  # fmt: skip
    problems = []
    for each in findings:
        at = (*config.at, *each.at)
        if kind == "source" and each.at and (*config.at, each.at[0]) not in pipeline.marks:
            at = (*config.at[:-1], *each.at)  # not the split's own key, but one that both splits share
        problems.append(pipeline.fail(at, each.message))
    raise_first(problems)
    return made, arguments


def _idle(made: Any, given: Mapping[str, Any], reads: Mapping[str, Any]) -> dict[str, str]:
    """The given keys that nothing reads; what switches something off (false, null) needs no reader."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(made).parameters.items()}
    constructor = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    return unread(constructor, [k for k, v in given.items() if v is not None and v is not False],
                  {**defaults, **given, **reads})  # fmt: skip


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)
