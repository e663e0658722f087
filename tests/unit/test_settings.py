"""Settings that do nothing, numbers that make no sense, and all problems of a pipeline in one go."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import annotated_types
import pytest

from visionkit.config import argument_problems, check_arguments, inspect_pipeline, parse_pipeline, setting_problems
from visionkit.config.arguments import handed_over, hints_of
from visionkit.errors import PipelineError
from visionkit.plugins import PluginManager

PIPELINE = """
backbone: {name: timm, model: resnet18}
neck: {name: fpn}
heads:
  semantic: {name: fcn}
  boxes: {name: rcnn}
  picture: {name: pix2pix}
sources:
  a: {name: shapes, train: {images: 8}, val: {images: 2}}
train:
  steps: 10
"""


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return PluginManager()


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("train.schedule={milestones: [1]}", "train.schedule.milestones"),
        ("train.schedule={name: cosine, gamma: 0.1}", "train.schedule.gamma"),
        ("train.schedule={name: multistep}", "milestones"),
        ("train.schedule={name: multistep, milestones: [5, 10]}", "step 10 is not reached"),
        ("train.schedule={name: constant, hold: 0.5}", "train.schedule.hold"),
        ("train.optimizer={name: sgd, betas: [0.9, 0.999]}", "train.optimizer.betas"),
        ("train.optimizer={name: adamw, momentum: 0.9}", "train.optimizer.momentum"),
        ("train.optimizer={name: sgd, momentum: 0, nesterov: true}", "train.optimizer.nesterov"),
        ("train.optimizer={name: adamw, betas: [0.9, 1.0]}", "train.optimizer.betas"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr: expected a finite number, not .inf"),
        ("train.optimizer.weight_decay=.nan", "finite"),
        ("train.warmup.steps=11", "train.warmup.steps"),
        ("train.warmup={factor: 0.5}", "train.warmup.factor"),
        ("train.parts={backbone: {freeze: true, lr_scale: 0.1}}", "train.parts.backbone.lr_scale"),
        ("evaluate.refine={semantic: {overlap: 0.2}}", "evaluate.refine.semantic.overlap"),
        ("sources.b={name: shapes, weight: 2, val: {images: 2}}", "'weight' of source 'b'"),
        ("heads.boxes.sigma=0.5", "'sigma' of head 'boxes' (rcnn) has no effect"),
        ("heads.boxes.nms=2", "'nms'"),
        ("heads.boxes.score=-3", "'score'"),
        ("heads.boxes.detections=0", "'detections'"),
        ("heads.boxes.rpn_iou=[0.7, 0.3]", "ascending"),
        ("heads.boxes.anchor_sizes=[]", "'anchor_sizes'"),
        ("heads.boxes.canonical_size=.nan", "'canonical_size'"),
        ("heads.semantic.dropout=0.2", "'dropout' of head 'semantic'"),
        ("heads.semantic.auxiliary_weight=0.2", "'auxiliary_weight'"),
        ("heads.semantic.loss={name: focal, gamma: -1}", "gamma"),
        ("heads.semantic.loss={name: cross_entropy, class_weights: [0, 1]}", "class_weights"),
        ("heads.picture.penalty=5", "'penalty' of head 'picture'"),
        ("train.balancer={name: fixed, weights: {boxes: -1}}", "weights.boxes"),
        ("train.transforms=[{name: hflip, probability: 1.5}]", "'probability'"),
        ("backbone.modulated=true", "'modulated'"),
        ("neck.channels=0", "'channels'"),
    ],
)
def test_a_setting_that_does_nothing_or_makes_no_sense_is_named(setting: str, key: str, plugins: PluginManager) -> None:
    with pytest.raises(PipelineError) as error:
        check_arguments(parse_pipeline(PIPELINE, overrides=[setting]), plugins)
    assert key in str(error.value)
    assert str(error.value).startswith(("--set", "pipeline"))


@pytest.mark.parametrize(
    "setting",
    [
        "train.schedule={name: multistep, milestones: [5, 9]}",
        "train.optimizer={name: adamw, nesterov: false}",
        "train.warmup.steps=10",
        "train.warmup={steps: 0, factor: 0.1}",
        "heads.boxes={name: rcnn, soft_nms: gaussian, sigma: 0.5}",
        "heads.semantic={name: fcn, hidden: 8, dropout: 0.2}",
        "backbone={name: timm, model: resnet18, modulated: false}",
    ],
)
def test_settings_that_something_reads_are_accepted(setting: str, plugins: PluginManager) -> None:
    check_arguments(parse_pipeline(PIPELINE, overrides=[setting]), plugins)


def test_a_resolved_pipeline_holds_no_setting_that_nothing_reads(plugins: PluginManager) -> None:
    pipeline = parse_pipeline(PIPELINE, overrides=["train.optimizer={name: adamw}", "train.phases={x: {lr: 0.1}}"])
    again = parse_pipeline(pipeline.to_yaml())
    assert again == pipeline
    assert not setting_problems(again)
    assert "momentum" not in pipeline.to_yaml()


def test_every_problem_is_found_in_one_go(tmp_path: Path, plugins: PluginManager) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "backbone: {name: timm, model: resnet18, modle: 3}\n"
        "heads:\n"
        "  boxes: {name: rcnn, nms: 2, score: -1}\n"
        "  lost: {nam: fcn}\n"
        "  none: {name: no_such_head}\n"
        "sources:\n"
        "  a: {name: shapes, heads: [lost, absent], train: {images: 0}, val: {size: 0}}\n"
        "train: {stepps: 3, batch_size: 0, transforms: [hflip, {name: resize, short: 0}, 3]}\n"
        "elsewhere: 1\n"
    )
    pipeline, problems = inspect_pipeline(str(file), ["train.optimizer.lr=-1", "trian.steps=3"])
    assert pipeline is not None
    lines = [str(p) for p in (*problems, *setting_problems(pipeline), *argument_problems(pipeline, plugins))]
    wanted = ["modle", "'nms'", "'score'", "lost", "no_such_head", "absent", "'images'", "'size'", "stepps",
              "batch_size", "'short'", "train.transforms.2", "elsewhere", "train.optimizer.lr", "trian"]  # fmt: skip
    for word in wanted:
        assert sum(word in line for line in lines) >= 1, word
    assert len(lines) == len(set(lines)) == len(wanted)
    assert all("\n" not in line for line in lines)
    with pytest.raises(PipelineError, match="more problems, which 'visionkit validate' lists"):
        parse_pipeline(file.read_text(), str(file))


def bounds_of(annotation: Any) -> list[bool]:
    """Of each number in an annotation, whether it has a range."""
    if annotation in (int, float):
        return [False]
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        limits = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
        if inner in (int, float):
            return [any(isinstance(one, limits) for one in metadata)]
        return bounds_of(inner)
    if typing.get_origin(annotation) is typing.Literal:
        return []
    return [bound for inner in typing.get_args(annotation) for bound in bounds_of(inner)]


# Numbers of any sign: means of colors, logarithms, scores of any scale, and pixel values that are checked later.
ANY = {"mean", "start", "min_score", "palette", "ignore_colors", "values"}


@pytest.mark.parametrize("kind", ["backbone", "neck", "head", "source", "transform", "evaluator", "balancer"])
def test_every_number_of_a_component_has_a_range(kind: str, plugins: PluginManager) -> None:
    without = []
    for listed in plugins.components(kind):
        name = listed.component.name
        made = plugins.load(kind, name)
        hints, core = hints_of(made, include_extras=True), handed_over(kind, made)
        keys = [key for key in inspect.signature(made).parameters if key not in core | ANY]
        without += [f"{name}.{key}" for key in keys if not all(bounds_of(hints.get(key, object)))]
    assert without == []
