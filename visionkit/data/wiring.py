"""Which source feeds which head, and in whose labels."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from visionkit.config import ComponentConfig, Pipeline, SourceConfig, build_component
from visionkit.data.base import Source, Transform
from visionkit.data.loader import Feed
from visionkit.types import LabelSet

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


def build_sources(pipeline: Pipeline, plugins: PluginManager, split: Literal["train", "val"]) -> dict[str, Source]:
    """The sources of a pipeline that have this split (``train`` or ``val``)."""
    return {
        name: build_source(pipeline, plugins, name, split)
        for name, config in pipeline.sources.items()
        if config.split(split) is not None
    }


def build_source(pipeline: Pipeline, plugins: PluginManager, name: str, split: Literal["train", "val"]) -> Source:
    """One split of a source, which must have it."""
    config = pipeline.sources[name]
    component = config.split(split)
    assert component is not None
    source = build_component(plugins, "source", component, pipeline)
    if not isinstance(source, Source):
        raise pipeline.fail(config.at, f"'{config.name}' is a {type(source).__name__}, not a Source")
    return source


def build_transforms(pipeline: Pipeline, plugins: PluginManager, configs: Sequence[ComponentConfig]) -> list[Transform]:
    """Transforms in the order of their list."""
    return [build_component(plugins, "transform", config, pipeline) for config in configs]


def tasks_of_heads(pipeline: Pipeline, plugins: PluginManager) -> dict[str, str]:
    """The task of every head."""
    from visionkit.model.build import head_class

    return {name: head_class(pipeline, plugins, name).task for name in pipeline.heads}


def heads_fed(pipeline: Pipeline, tasks: Mapping[str, str], name: str, source: Source) -> list[str]:
    """The heads that a source feeds: those it lists, else all whose task it is labelled for."""
    config = pipeline.sources[name]
    if config.heads is None:
        return [head for head, task in tasks.items() if task in source.tasks]
    for head in config.heads:
        if head not in tasks:
            raise pipeline.fail(
                ("sources", name, "heads"),
                f"source '{name}' feeds '{head}', which is no head (heads: {', '.join(tasks)})",
            )
        if tasks[head] not in source.tasks:
            raise pipeline.fail(
                ("sources", name, "heads"),
                f"source '{name}' feeds head '{head}', which learns from '{tasks[head]}', but it is labelled for "
                f"{', '.join(sorted(source.tasks)) or 'nothing'} only",
            )
    return list(config.heads)


def resolve_labels(
    pipeline: Pipeline,
    plugins: PluginManager,
    sources: Mapping[str, Source],
    held_out: Mapping[str, Source] | None = None,
) -> dict[str, LabelSet]:
    """The label set of every head: the names it lists, else those of the head it shares them with, else those of its
    sources, which must then agree.

    Args:
        sources: for training.
        held_out: for evaluation; their label sets count where there is no source of the same name for training.
    """
    from visionkit.model.build import labels_feeder, listed_labels

    tasks = tasks_of_heads(pipeline, plugins)
    fed_by: dict[str, dict[str, Source]] = {head: {} for head in tasks}
    held_out = held_out or {}
    for name, source in {**held_out, **sources}.items():
        _check_label_map(pipeline, name, [group[name] for group in (sources, held_out) if name in group])
        for head in heads_fed(pipeline, tasks, name, source):
            fed_by[head][name] = source

    labels: dict[str, LabelSet] = {}
    waiting = list(tasks)
    while waiting:
        head = waiting.pop(0)
        feeder = labels_feeder(pipeline, plugins, head) if not pipeline.heads[head].labels else None
        if feeder is not None and feeder in waiting:
            waiting.append(head)
            if not any(labels_feeder(pipeline, plugins, h) not in waiting for h in waiting):
                raise pipeline.fail(("heads",), f"heads share labels in a circle: {', '.join(waiting)}")
            continue
        base = listed_labels(pipeline, head) or (LabelSet(labels[feeder].names) if feeder else None)
        labels[head] = _labels_of(pipeline, head, tasks[head], fed_by[head], base)
    return labels


def _labels_of(
    pipeline: Pipeline, head: str, task: str, sources: Mapping[str, Source], base: LabelSet | None
) -> LabelSet:
    """Join what the sources know of a head's classes under the names that the head uses."""
    if not sources:
        if base is None:
            raise pipeline.fail(
                ("heads", head),
                f"no source feeds head '{head}': it learns from '{task}', for which none is labelled; labels of its "
                f"own (labels: [...]) let it stand untrained",
            )
        return base
    mapped = {
        name: _mapped_names(pipeline.sources[name], source.labels[task], head) for name, source in sources.items()
    }
    if base is None:
        base = LabelSet(_agreed_names(pipeline, head, mapped))
    if base.names and not any(source.labels[task].names for source in sources.values()):
        raise pipeline.fail(("heads", head, "labels"), f"head '{head}' learns from '{task}', which has no classes in "
                                                       f"{', '.join(sources)}: leave its labels out")  # fmt: skip
    names = base.names
    known: dict[str, tuple[LabelSet, int]] = {}
    for name, source in sources.items():
        for i, mine in enumerate(mapped[name]):
            if mine is not None and mine not in names:
                raise pipeline.fail(
                    ("sources", name),
                    f"class '{mine}' of source '{name}' is not among the labels of head '{head}' ({', '.join(names)}); "
                    f"map or drop it with labels: {{{source.labels[task].names[i]}: CLASS or null}}, or keep the "
                    f"source from that head with heads: [...]",
                )
            if mine is not None:
                known.setdefault(mine, (source.labels[task], i))
    first = [source.labels[task] for source in sources.values()]
    colors = tuple(known[n][0].colors[known[n][1]] for n in names if n in known and known[n][0].colors)
    points = [labels for labels in first if labels.keypoints]
    if len({labels.keypoints for labels in points}) > 1:
        raise pipeline.fail(("heads", head), f"the sources of head '{head}' have different keypoints")
    return dataclasses.replace(
        base,
        ids=tuple(known[n][0].ids[known[n][1]] if n in known else -1 for n in names) if _unique(known, names) else (),
        things=tuple(known[n][0].things[known[n][1]] if n in known else base.things[i] for i, n in enumerate(names)),
        colors=colors if len(colors) == len(names) else (),
        keypoints=points[0].keypoints if points else (),
        skeleton=points[0].skeleton if points else (),
        swaps=points[0].swaps if points else (),
        sigmas=points[0].sigmas if points else (),
    )


def _check_label_map(pipeline: Pipeline, name: str, splits: Sequence[Source]) -> None:
    """Every class that is mapped must be one of the source, and every mapping for one head be named after a head."""
    classes = list(dict.fromkeys(c for source in splits for labels in source.labels.values() for c in labels.names))
    for key, value in pipeline.sources[name].labels.items():
        own = isinstance(value, dict)
        if own and key not in pipeline.heads:
            raise pipeline.fail(
                ("sources", name, "labels", key), f"a label map for '{key}', which is no head "
                f"(heads: {', '.join(pipeline.heads)})"
            )  # fmt: skip
        for mapped in value if isinstance(value, dict) else (key,):
            if mapped not in classes:
                near = difflib.get_close_matches(mapped, classes, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f" (it has: {', '.join(classes)})"
                at = ("sources", name, "labels", key, mapped) if own else ("sources", name, "labels", key)
                raise pipeline.fail(at, f"source '{name}' has no class '{mapped}'{hint}")


def _unique(known: Mapping[str, tuple[LabelSet, int]], names: Sequence[str]) -> bool:
    ids = [known[n][0].ids[known[n][1]] for n in names if n in known]
    return len(ids) == len(names) == len(set(ids))


def _mapped_names(config: SourceConfig, labels: LabelSet, head: str) -> list[str | None]:
    """The head's name for each class of a source; ``None`` where the class is dropped."""
    mapped = config.labels_for(head)
    return [mapped.get(name, name) for name in labels.names]


def _agreed_names(pipeline: Pipeline, head: str, mapped: Mapping[str, list[str | None]]) -> tuple[str, ...]:
    sets = {name: tuple(dict.fromkeys(n for n in names if n is not None)) for name, names in mapped.items()}
    first, *rest = sets
    for other in rest:
        if set(sets[other]) != set(sets[first]):
            differ = sorted(set(sets[first]) ^ set(sets[other]))
            raise pipeline.fail(
                ("heads", head),
                f"sources '{first}' and '{other}' give head '{head}' different classes ({', '.join(differ[:5])}); "
                f"say which it has with labels: [...], and map theirs onto it in the sources, or keep a source from it "
                f"with heads: [...]",
            )
    return sets[first]


def label_table(config: SourceConfig, theirs: LabelSet, mine: LabelSet, head: str) -> Tensor | None:
    """Source label -> head label (-1: dropped), or ``None`` where they are the same."""
    table = [mine.names.index(n) if n in mine.names else -1 for n in _mapped_names(config, theirs, head)]
    return None if table == list(range(len(mine))) else torch.tensor(table, dtype=torch.int64)


def build_feeds(
    pipeline: Pipeline,
    plugins: PluginManager,
    sources: Mapping[str, Source],
    labels: Mapping[str, LabelSet],
    *,
    training: bool,
) -> list[Feed]:
    """The sources with their heads, label maps and transforms, ready for a loader; for training, those of the heads
    that learn."""
    from visionkit.model.build import head_class
    from visionkit.model.graph import learns

    tasks = tasks_of_heads(pipeline, plugins)
    asked = {name for name in tasks if not training or learns(head_class(pipeline, plugins, name))}
    feeds = []
    for name, source in sources.items():
        config = pipeline.sources[name]
        own = config.transforms if training else config.eval_transforms
        default = pipeline.train.transforms if training else pipeline.evaluate.transforms
        heads = {
            head: (tasks[head], label_table(config, source.labels[tasks[head]], labels[head], head))
            for head in heads_fed(pipeline, tasks, name, source)
            if head in asked
        }
        if not heads:
            raise pipeline.fail(
                ("sources", name),
                f"no head learns what source '{name}' is labelled for ({', '.join(sorted(source.tasks)) or 'nothing'})",
            )
        if not training:
            for head in heads:
                _check_classes(pipeline, name, source, head, tasks[head], labels[head])
        transforms = build_transforms(pipeline, plugins, default if own is None else own)
        feeds.append(Feed(name, source, heads, weight=config.weight, transforms=transforms))
    return feeds


def _check_classes(pipeline: Pipeline, name: str, source: Source, head: str, task: str, labels: LabelSet) -> None:
    """A source that a head is evaluated on must have no class that the head doesn't know: its objects would be missing
    from the metrics, which would look better than they are."""
    given = source.labels[task]
    used = source.used_classes(task)
    mapped = _mapped_names(pipeline.sources[name], given, head)
    unknown = [
        own for own, new in zip(given.names, mapped)
        if new is not None and new not in labels.names and (used is None or own in used)
    ]  # fmt: skip
    if unknown:
        near = difflib.get_close_matches(unknown[0].lower(), [n.lower() for n in labels.names], n=1)
        hint = next((f" (did you mean '{n}'?)" for n in labels.names if near and n.lower() == near[0]), "")
        raise pipeline.fail(
            ("sources", name),
            f"the data that head '{head}' is evaluated on has the class '{unknown[0]}'{hint}, which the head doesn't "
            f"know ({', '.join(labels.names)}), so that its objects would be missing from the metrics; map it or leave "
            f"it out with labels: {{{unknown[0]}: CLASS or null}}"
            + (f"; {len(unknown)} classes are unknown: {', '.join(unknown[:8])}" if len(unknown) > 1 else ""),
        )
    if labels.keypoints and given.keypoints and given.keypoints != labels.keypoints:
        raise pipeline.fail(
            ("sources", name),
            f"the data that head '{head}' is evaluated on has the keypoints {', '.join(given.keypoints)}, in this "
            f"order; the head has {', '.join(labels.keypoints)}",
        )


def untrained_heads(pipeline: Pipeline, plugins: PluginManager, feeds: Sequence[Feed]) -> list[str]:
    """The heads that learn, but for which no source has labels."""
    from visionkit.model.build import head_class
    from visionkit.model.graph import learns

    learning = [head for head in pipeline.heads if learns(head_class(pipeline, plugins, head))]
    return [head for head in learning if not any(head in feed.heads for feed in feeds)]
