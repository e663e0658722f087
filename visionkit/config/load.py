"""From the name or path of a pipeline to its validated description."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import visionkit
from visionkit.config.check import Finding, conform
from visionkit.config.overrides import apply_override
from visionkit.config.pipeline import SECTIONS, ComponentConfig, HeadConfig, Pipeline, SourceConfig, where
from visionkit.config.reader import parse
from visionkit.errors import PipelineError, raise_first
from visionkit.plugins import did_you_mean

_ADAPTER: TypeAdapter[Pipeline] = TypeAdapter(Pipeline)


def load_pipeline(name_or_path: str, overrides: Sequence[str] = ()) -> Pipeline:
    """A pipeline by path or by the name of one that is shipped.

    Args:
        overrides: ``path.to.key=value`` each, the value in YAML, as given with ``--set``.

    Raises:
        PipelineError: there is no such pipeline, or it is wrong: ``file:line: ...`` or ``--set ...: ...``.
    """
    pipeline, problems = inspect_pipeline(name_or_path, overrides)
    raise_first(problems)
    assert pipeline is not None
    return pipeline


def inspect_pipeline(name_or_path: str, overrides: Sequence[str] = ()) -> tuple[Pipeline | None, list[PipelineError]]:
    """A pipeline as :func:`load_pipeline` has it, but with everything that is wrong with it.

    Returns:
        The pipeline without its wrong keys (``None`` where nothing is left), and the problems.

    Raises:
        PipelineError: there is no such pipeline, or it is not YAML.
    """
    path = Path(name_or_path)
    if not _is_file(path):
        shipped = shipped_pipelines()
        if name_or_path not in shipped:
            what = "that is a folder" if os.path.isdir(name_or_path) else "there is no such file"
            raise PipelineError(
                f"no pipeline '{name_or_path}': {what}, and none of that name is shipped"
                f"{did_you_mean(name_or_path, shipped)}; 'visionkit pipelines' lists them"
            )
        path = shipped[name_or_path]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: cannot be read: {error}") from None
    return _parse(text, str(path), overrides)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a null character
        return False


def shipped_pipelines() -> dict[str, Path]:
    """Pipelines that come with visionkit, by name."""
    package = Path(visionkit.__file__).parent
    # In a wheel they lie inside the package; in a checkout, beside it.
    folder = package / "pipelines" if (package / "pipelines").is_dir() else package.parent / "pipelines"
    return {f.relative_to(folder).with_suffix("").as_posix(): f for f in sorted(folder.rglob("*.yaml"))}


def summary_of(file: Path) -> str:
    """What the comment at the top of a pipeline's file says it is: up to its first full stop or colon."""
    lines = file.read_text(encoding="utf-8").splitlines()
    top = itertools.takewhile(lambda line: line.startswith("# "), lines)
    text = re.sub(r"\bal\. ", "al.\u00a0", " ".join(line[2:].strip() for line in top))
    return re.split(r"(?<![ (][A-Z])[.:](?= |$)", text, maxsplit=1)[0].replace("\u00a0", " ")


def parse_pipeline(text: str, path: str = "pipeline", overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline that YAML ``text`` describes; ``path`` is what messages call it. Raises ``PipelineError``."""
    pipeline, problems = _parse(text, path, overrides)
    raise_first(problems)
    assert pipeline is not None
    return pipeline


def _parse(text: str, path: str, overrides: Sequence[str]) -> tuple[Pipeline | None, list[PipelineError]]:
    raw, marks = parse(text, path)
    if not isinstance(raw, dict):
        raise PipelineError(f"{path}: expected a mapping with the keys {', '.join(SECTIONS)}")
    problems: list[PipelineError] = []
    for override in overrides:
        try:
            apply_override(raw, marks, override)
        except PipelineError as error:
            problems.append(error)
    for key in [key for key in raw if key not in SECTIONS]:
        hint = did_you_mean(key, SECTIONS) or ";"
        problems.append(PipelineError(f"{marks[(key,)]}: unknown key '{key}' in the pipeline{hint} "
                                      f"allowed: {', '.join(SECTIONS)}"))  # fmt: skip
        del raw[key]
    heads = list(raw["heads"]) if isinstance(raw.get("heads"), dict) else []
    tree = gather(raw)
    complete_phases(tree)
    while True:
        try:
            pipeline = conform(_ADAPTER, Pipeline, tree)
            break
        except Finding as finding:
            problems += [PipelineError(f"{where(marks, each.at)}: {each.message}") for each in finding.every]
            if not _without(tree, [each.at for each in finding.every]):
                return None, problems
    place(pipeline, (), tree)
    pipeline = dataclasses.replace(pipeline, path=path, name=Path(path).stem, marks=marks)
    return pipeline, [*problems, *name_problems(pipeline, heads)]


def _without(tree: Any, places: Sequence[tuple[str | int, ...]]) -> bool:
    """Remove what stands at these places, so that the rest can be checked; false where that would be everything."""
    if () in places:
        return False
    # What is inside of something else first, and the last items of a list first.
    for *parents, key in sorted(places, key=lambda at: (len(at), at[-1] if isinstance(at[-1], int) else 0))[::-1]:
        parent = tree
        for step in parents:
            parent = parent[step]
        del parent[key]
    return True


def gather(raw: dict[str, Any]) -> dict[str, Any]:
    """The tree with every component's own arguments gathered under ``args``. An empty section is as none."""

    def component(value: Any, kind: type[ComponentConfig] = ComponentConfig) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict):
            return value
        reserved = {f.name for f in dataclasses.fields(kind)} - {"args", "at"}
        own = {k: components(v) if k.endswith("transforms") else v for k, v in value.items() if k in reserved}
        return {**own, "args": {k: v for k, v in value.items() if k not in reserved}}

    def components(value: Any) -> Any:
        return [component(v) for v in value] if isinstance(value, list) else value

    def each(value: Any, convert: Any) -> Any:
        return {k: convert(v) for k, v in value.items()} if isinstance(value, dict) else value

    inside = {
        "backbone": component,
        "neck": component,
        "heads": lambda heads: each(heads, lambda v: component(v, HeadConfig)),
        "sources": lambda sources: each(sources, lambda v: component(v, SourceConfig)),
        "balancer": component,
        "transforms": components,
        "metrics": lambda metrics: each(metrics, components),
    }
    tree = {k: inside[k](v) if k in inside else v for k, v in raw.items() if v is not None}
    for section in ("train", "evaluate"):
        if isinstance(tree.get(section), dict):
            tree[section] = {k: inside[k](v) if k in inside else v for k, v in tree[section].items()}
    return tree


def complete_phases(tree: dict[str, Any]) -> None:
    """Give a phase's optimiser that has no name all that it does not say from the main one; in place."""
    train = tree.get("train")
    if not isinstance(train, dict) or not isinstance(train.get("phases"), dict):
        return
    main = train.get("optimizer")
    if isinstance(main, dict):
        train["phases"] = {
            phase: {**main, **own} if isinstance(own, dict) and "name" not in own else own
            for phase, own in train["phases"].items()
        }


def place(value: Any, at: tuple[str | int, ...], tree: Any) -> None:
    """Tell every component below ``value`` where it stands, and give it its arguments as they were read (``tree``):
    on the way through JSON, a :class:`VariableText` has become mere text."""
    if isinstance(value, ComponentConfig):
        object.__setattr__(value, "at", at)
        for name in ("args", "train", "val"):
            if isinstance(tree, dict) and isinstance(tree.get(name), dict):
                object.__setattr__(value, name, tree[name])
    if dataclasses.is_dataclass(value):
        value = {k: v for k, v in vars(value).items() if k not in ("args", "marks", "at")}
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            below = tree.get(key) if isinstance(tree, dict) else tree[key] if isinstance(tree, list) else None
            place(child, (*at, key), below)


def name_problems(pipeline: Pipeline, heads: Collection[str]) -> list[PipelineError]:
    """Every name that one section takes from another must be there.

    Args:
        heads: all names of heads, also of those that are not in ``pipeline`` because they are wrong.
    """
    problems: list[PipelineError] = []

    def fail(at: tuple[str | int, ...], message: str) -> None:
        problems.append(pipeline.fail(at, message))

    def known(name: str, names: Collection[str], at: tuple[str | int, ...]) -> None:
        if name not in names:
            fail(at, f"no head '{name}'{did_you_mean(name, names)} (heads: {', '.join(names)})")

    if not heads:
        fail(("heads",), "a pipeline needs at least one head")
    if pipeline.neck and not pipeline.backbone:
        fail(("neck",), "a neck needs a backbone")
    for section in ("heads", "sources"):
        for name in getattr(pipeline, section):
            if not re.fullmatch(r"[A-Za-z_][\w-]*", name, re.ASCII):
                fail((section, name), f"'{name}' is no name for one of the {section}: letters, digits, '_' and '-' "
                                      "only")  # fmt: skip
    for name, head in pipeline.heads.items():
        for port, other in head.reads.items():
            known(other, heads, ("heads", name, "reads", port))
    for name, source in pipeline.sources.items():
        if source.train is None and source.val is None:
            fail(source.at, f"source '{name}' has neither 'train' nor 'val': give the arguments of a split there "
                            "('train: {}' where it needs none)")  # fmt: skip
        for i, head_name in enumerate(source.heads or ()):
            known(head_name, heads, ("sources", name, "heads", i))
    for name in pipeline.evaluate.metrics:
        known(name, heads, ("evaluate", "metrics", name))
    for name in pipeline.evaluate.refine:
        known(name, heads, ("evaluate", "refine", name))
    for prefix in pipeline.train.parts:
        first, _, rest = prefix.partition(".")
        if first not in ("backbone", "neck", "heads"):
            fail(("train", "parts", prefix), f"no part '{prefix}': a prefix of parameter names starts with backbone, "
                                             "neck or heads.NAME")  # fmt: skip
        if first == "heads" and rest:
            known(rest.partition(".")[0], heads, ("train", "parts", prefix))
    return problems
