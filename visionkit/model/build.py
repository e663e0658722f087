"""From a pipeline description to the model it describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visionkit.config import HeadConfig, Pipeline, build_component
from visionkit.errors import PluginError, UserError
from visionkit.layers.fast_conv import use_fast_convs
from visionkit.model.base import Backbone, Head, Neck
from visionkit.model.fold import join_frozen_norms
from visionkit.model.graph import MultiTaskModel
from visionkit.types import FeatureSpec, LabelSet
from visionkit.types.features import LevelError

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


def build_model(pipeline: Pipeline, plugins: PluginManager, labels: Mapping[str, LabelSet]) -> MultiTaskModel:
    """Backbone, neck and heads of a pipeline, with just the feature levels that some head reads.

    Args:
        pipeline: the description.
        plugins: where components are looked up.
        labels: the label set of every head.

    Raises:
        PipelineError: a component that is unknown or refuses its arguments, ports that don't fit.
    """
    backbone_spec, neck_spec = _specs(pipeline, plugins)
    spec = backbone_spec | neck_spec
    heads = {name: build_head(pipeline, plugins, name, spec, labels[name]) for name in pipeline.heads}
    read = {level for head in heads.values() for level in head.levels}

    neck: Neck | None = None
    if pipeline.neck is not None and (wanted := [level for level in neck_spec if level in read]):
        neck = build_component(plugins, "neck", pipeline.neck, pipeline, backbone_spec, levels=wanted)
        read |= set(neck.reads)
    backbone: Backbone | None = None
    if pipeline.backbone is not None and (wanted := [level for level in backbone_spec if level in read]):
        backbone = build_component(plugins, "backbone", pipeline.backbone, pipeline, levels=wanted)
    try:
        model = MultiTaskModel(backbone, neck, heads, {name: c.reads for name, c in pipeline.heads.items()})
    except UserError as error:
        raise pipeline.fail(("heads",), str(error)) from None
    use_fast_convs(model)
    if backbone is not None:
        join_frozen_norms(backbone)
    return model


def build_spec(pipeline: Pipeline, plugins: PluginManager) -> FeatureSpec:
    """All levels that backbone and neck could give, at no cost."""
    backbone_spec, neck_spec = _specs(pipeline, plugins)
    return backbone_spec | neck_spec


def build_head(pipeline: Pipeline, plugins: PluginManager, name: str, spec: FeatureSpec, labels: LabelSet) -> Head:
    """A head on the levels of ``spec``. Raises ``PipelineError`` where it refuses its arguments or lacks a level."""
    config = pipeline.heads[name]
    if hasattr(nn.ModuleDict(), name):
        raise pipeline.fail(
            config.at, f"heads.{name}: a head cannot be called '{name}', an attribute of every torch module"
        )
    head: Head = _typed(build_component(plugins, "head", config, pipeline, spec, labels), Head, config, pipeline)
    _check_levels(head, spec, config, pipeline)
    return head


def without_first_weights(pipeline: Pipeline, plugins: PluginManager) -> Pipeline:
    """The pipeline without what its backbone and heads start from, for a model whose weights come from elsewhere."""

    def bare(config: Any, names: tuple[str, ...]) -> Any:
        return dataclasses.replace(config, args={k: v for k, v in config.args.items() if k not in names})

    heads = {
        name: bare(config, head_class(pipeline, plugins, name).starts_from) for name, config in pipeline.heads.items()
    }
    backbone = pipeline.backbone
    if backbone is not None:
        try:
            made = plugins.load("backbone", backbone.name)
        except PluginError as error:
            raise pipeline.fail((*backbone.at, "name"), str(error)) from None
        backbone = bare(backbone, getattr(made, "starts_from", Backbone.starts_from))
    return dataclasses.replace(pipeline, heads=heads, backbone=backbone)


def _specs(pipeline: Pipeline, plugins: PluginManager) -> tuple[FeatureSpec, FeatureSpec]:
    """All levels that backbone and neck could give, learnt on the meta device at no cost."""
    if pipeline.backbone is None:
        if pipeline.neck is not None:
            raise pipeline.fail(("neck",), "a neck needs a backbone, and the pipeline has none")
        return FeatureSpec(), FeatureSpec()
    with torch.device("meta"):
        backbone = build_component(plugins, "backbone", pipeline.backbone, pipeline)
        _typed(backbone, Backbone, pipeline.backbone, pipeline)
        if pipeline.neck is None:
            return backbone.spec, FeatureSpec()
        neck = build_component(plugins, "neck", pipeline.neck, pipeline, backbone.spec)
        _typed(neck, Neck, pipeline.neck, pipeline)
    return backbone.spec, neck.spec


def _typed(built, kind, config, pipeline):  # type: ignore[no-untyped-def]
    if not isinstance(built, kind):
        raise pipeline.fail(config.at, f"'{config.name}' is a {type(built).__name__}, not a {kind.__name__}")
    return built


def _check_levels(head: Head, spec: FeatureSpec, config: HeadConfig, pipeline: Pipeline) -> None:
    try:
        spec.only(head.levels)
    except LevelError as error:
        raise pipeline.fail(config.at, f"head '{config.at[-1]}' ({config.name}): {error}") from None


def placeholder_labels(pipeline: Pipeline, plugins: PluginManager, classes: int = 80) -> dict[str, LabelSet]:
    """Label sets for a pipeline whose data are not at hand: those it lists, else ``classes`` numbered ones
    with COCO's 17 keypoints."""
    labels: dict[str, LabelSet] = {}
    for name in pipeline.heads:
        listed = listed_labels(pipeline, name) or LabelSet(tuple(f"class {i}" for i in range(classes)))
        labels[name] = dataclasses.replace(listed, keypoints=tuple(f"keypoint {i}" for i in range(17)))
    return share_labels(pipeline, plugins, labels)


def listed_labels(pipeline: Pipeline, head: str) -> LabelSet | None:
    """The labels that the pipeline gives a head by list or by name, or ``None``. Raises ``PipelineError`` for a name
    that is none."""
    from visionkit.data.label_sets import label_set

    config = pipeline.heads[head]
    try:
        return label_set(config.labels) if config.labels else None
    except UserError as error:
        raise pipeline.fail((*config.at, "labels"), str(error)) from None


def share_labels(pipeline: Pipeline, plugins: PluginManager, labels: Mapping[str, LabelSet]) -> dict[str, LabelSet]:
    """Give heads that share the label set of a head they read that head's names, where they list none themselves."""
    shared = dict(labels)
    for name, config in pipeline.heads.items():
        feeder = labels_feeder(pipeline, plugins, name)
        if feeder is None or config.labels or feeder not in shared:
            continue
        theirs = shared[feeder]
        mine = shared.get(name, theirs)
        shared[name] = dataclasses.replace(
            mine, names=theirs.names, ids=theirs.ids, things=theirs.things, colors=theirs.colors
        )
    return shared


def labels_feeder(pipeline: Pipeline, plugins: PluginManager, name: str) -> str | None:
    """The head whose label set head ``name`` shares, or ``None``."""
    head = head_class(pipeline, plugins, name)
    if head.labels_from is None:
        return None
    if head.labels_from in pipeline.heads[name].reads:
        return pipeline.heads[name].reads[head.labels_from]
    wanted = head.needs[head.labels_from]
    others = [other for other in pipeline.heads if other != name]
    fitting = [other for other in others if issubclass(head_class(pipeline, plugins, other).output, wanted)]
    return fitting[0] if len(fitting) == 1 else None


def head_class(pipeline: Pipeline, plugins: PluginManager, name: str) -> type[Head]:
    """The class of a head. Raises ``PipelineError`` where there is none of that name."""
    config = pipeline.heads[name]
    try:
        return plugins.load("head", config.name)
    except PluginError as error:
        raise pipeline.fail((*config.at, "name"), str(error)) from None
