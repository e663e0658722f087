"""The description of a pipeline: what a YAML file says, validated, with every default filled in.

The annotations below are the schema: unknown keys and wrong types are errors that name file and line. Components keep
their arguments as they were written; those are checked against the constructor's signature when its class is at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import ConfigDict

from visionkit.config.reader import VariableText, dump
from visionkit.errors import PipelineError
from visionkit.numbers import Count, FractionBelowOne, NonNegative, OnlyWith, Positive, PositiveFloat, unread

Path = tuple[str | int, ...]
"""Where something stands in the YAML tree: keys and list indices from the top."""

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class ComponentConfig:
    """A component by name, with the keyword arguments of its constructor. ``at`` is where it stands in the file."""

    __pydantic_config__ = STRICT

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    at: Path = ()


@dataclass(frozen=True)
class HeadConfig(ComponentConfig):
    """A head.

    Attributes:
        reads: port -> head.
        labels: class names, or the name of a known label set (``coco``, ``coco_persons``, ``coco_panoptic``,
            ``coco_stuff``); ``None``: those of the head that it shares them with, else of its sources.
    """

    reads: dict[str, str] = field(default_factory=dict)
    labels: list[str] | str | None = None


@dataclass(frozen=True)
class SourceConfig(ComponentConfig):
    """A data set.

    Attributes:
        train, val: arguments of each split, over those in ``args``; ``None``: there is no such split.
        heads: which heads learn from it; ``None``: every one whose task it is labelled for.
        labels: its class names -> the heads' class names; ``None`` drops a class. A mapping under the name of a head is
            for that head alone, and comes before the others.
        weight: share of training samples, relative to the other sources.
        transforms, eval_transforms: ``None``: those of the sections ``train`` and ``evaluate``.
    """

    train: dict[str, Any] | None = None
    val: dict[str, Any] | None = None
    heads: list[str] | None = None
    labels: dict[str, str | dict[str, str | None] | None] = field(default_factory=dict)
    weight: PositiveFloat = 1.0
    transforms: list[ComponentConfig] | None = None
    eval_transforms: list[ComponentConfig] | None = None

    def labels_for(self, head: str) -> dict[str, str | None]:
        """Its class names -> the class names of one head."""
        own = self.labels.get(head)
        common = {name: new for name, new in self.labels.items() if not isinstance(new, dict)}
        return {**common, **own} if isinstance(own, dict) else common

    def split(self, name: Literal["train", "val"]) -> ComponentConfig | None:
        """The component that one split is built from, or ``None`` where there is no such split."""
        own = self.train if name == "train" else self.val
        return None if own is None else ComponentConfig(self.name, {**self.args, **own}, (*self.at, name))


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move; ``momentum`` and ``nesterov`` are SGD's, ``betas`` are AdamW's."""

    __pydantic_config__ = STRICT

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    momentum: Annotated[FractionBelowOne, OnlyWith(name="sgd")] = 0.9
    weight_decay: NonNegative = 1e-4
    betas: Annotated[tuple[FractionBelowOne, FractionBelowOne], OnlyWith(name="adamw")] = (0.9, 0.999)
    nesterov: Annotated[bool, OnlyWith(name="sgd"), OnlyWith("momentum")] = False


@dataclass(frozen=True)
class PartConfig:
    """What differs for the parameters under one prefix; ``weight_decay``: ``None`` for the optimiser's."""

    __pydantic_config__ = STRICT

    lr_scale: Annotated[NonNegative, OnlyWith(freeze=False)] = 1.0
    weight_decay: Annotated[NonNegative | None, OnlyWith(freeze=False)] = None
    freeze: bool = False


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate as a function of the step.

    Attributes:
        milestones: steps after which ``multistep`` multiplies by ``gamma``.
        power: exponent of ``poly``.
        hold: share of the steps before ``cosine`` and ``poly`` begin to fall.
        final: what ``cosine`` and ``poly`` end at, as a share of the learning rate.
    """

    __pydantic_config__ = STRICT

    name: Literal["constant", "multistep", "cosine", "poly"] = "constant"
    milestones: Annotated[tuple[Positive, ...], OnlyWith(name="multistep")] = ()
    gamma: Annotated[PositiveFloat, OnlyWith(name="multistep")] = 0.1
    power: Annotated[PositiveFloat, OnlyWith(name="poly")] = 0.9
    hold: Annotated[FractionBelowOne, OnlyWith(name=("cosine", "poly"))] = 0.0
    final: Annotated[NonNegative, OnlyWith(name=("cosine", "poly"))] = 0.0


@dataclass(frozen=True)
class WarmupConfig:
    """The first ``steps`` steps rise from ``factor`` times the learning rate to all of it."""

    __pydantic_config__ = STRICT

    steps: Count = 0
    factor: Annotated[NonNegative, OnlyWith("steps")] = 0.001


@dataclass(frozen=True)
class TrainConfig:
    """How the pipeline is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step and process, before ``accumulate``.
        parts: by prefix of parameter names (``backbone``, ``neck``, ``heads.NAME``), what differs there.
        precision: as lightning-fabric names it; see ``docs/reference/pipeline.md``.
        clip: largest norm of all gradients together.
        phases: by name of a phase beside ``main`` (an adversarial head's), its optimiser; without a
            ``name``, what differs from that of ``main``.
        accumulate: batches whose gradients make one step, equal to that of one batch so many times as large.
        ema: decay of the moving average of weights, per step.
        init: weights to start from: a run folder or a safetensors file.
        checkpoint_every: steps between checkpoints; ``None``: a tenth of the run.
        on_error: what to do about an image that cannot be read.
    """

    __pydantic_config__ = STRICT

    steps: Positive = 1000
    batch_size: Positive = 8
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parts: dict[str, PartConfig] = field(default_factory=dict)
    phases: dict[str, OptimizerConfig] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"] = "32-true"
    clip: PositiveFloat | None = None
    accumulate: Positive = 1
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    balancer: ComponentConfig = field(default_factory=lambda: ComponentConfig("fixed", at=("train", "balancer")))
    seed: Count = 0
    workers: Count = 2
    transforms: list[ComponentConfig] = field(default_factory=list)
    checkpoint_every: Positive | None = None
    log_every: Positive = 20
    channels_last: bool = True
    size_divisor: Positive = 32
    on_error: Literal["fail", "skip"] = "fail"
    tensorboard: bool = False
    init: str | None = None


@dataclass(frozen=True)
class CRFConfig:
    """A fully connected CRF over the probabilities of a head; see ``visionkit.layers.dense_crf``.

    Attributes:
        iterations: of the mean field.
        appearance_weight: of the kernel of place and colour.
        appearance_xy: its standard deviation in pixels of the original image.
        appearance_rgb: its standard deviation in levels of 255.
        smoothness_weight: of the kernel of place alone.
        smoothness_xy: its standard deviation in pixels.
        compatibility: energy of each pair of labels; ``None``: 1 where they differ.
    """

    __pydantic_config__ = STRICT

    iterations: Positive = 10
    appearance_weight: NonNegative = 4.0
    appearance_xy: PositiveFloat = 67.0
    appearance_rgb: PositiveFloat = 3.0
    smoothness_weight: NonNegative = 3.0
    smoothness_xy: PositiveFloat = 1.0
    compatibility: list[list[float]] | None = None


@dataclass(frozen=True)
class RefineConfig:
    """How the class probabilities of a head that scores every pixel are found: the mean over all scales and mirrors.

    Attributes:
        scales: of the image as it would be without; each is looked at.
        flip: look at each mirrored too.
        window: cut the image into squares of so many pixels, which are blended; ``None``: look at the whole.
        overlap: share of a window that the next one covers too, at least.
        margin: pixels around the image that are filled by mirroring it.
        crf: refine the mean by a dense CRF.
    """

    __pydantic_config__ = STRICT

    scales: Annotated[tuple[PositiveFloat, ...], MinLen(1)] = (1.0,)
    flip: bool = False
    window: Positive | None = None
    overlap: Annotated[FractionBelowOne, OnlyWith("window")] = 0.5
    margin: Count = 0
    crf: CRFConfig | None = None


@dataclass(frozen=True)
class EvaluateConfig:
    """How the pipeline is evaluated.

    Attributes:
        every: training steps between evaluations; ``None``: at the end only.
        metrics: by head, its evaluators in place of the head's own choice.
        refine: by head, how its class probabilities are found where one look is not enough; in prediction too.
        max_images: of each source; ``None``: all.
        pictures: how many images of each source are drawn.
    """

    __pydantic_config__ = STRICT

    batch_size: Positive = 1
    every: Positive | None = None
    transforms: list[ComponentConfig] = field(default_factory=list)
    metrics: dict[str, list[ComponentConfig]] = field(default_factory=dict)
    refine: dict[str, RefineConfig] = field(default_factory=dict)
    max_images: Positive | None = None
    pictures: Count = 8


@dataclass(frozen=True)
class Pipeline:
    """A whole pipeline. ``path`` and ``name`` say where it was found; two pipelines are equal if all the rest is."""

    __pydantic_config__ = STRICT

    heads: dict[str, HeadConfig]
    backbone: ComponentConfig | None = None
    neck: ComponentConfig | None = None
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    path: str = field(default="", compare=False)
    name: str = field(default="", compare=False)
    marks: Mapping[Path, str] = field(default_factory=dict, compare=False, repr=False)

    def fail(self, at: Path, message: str) -> PipelineError:
        """The error to raise about the key at ``at``: ``file:line: message``, or ``--set KEY=VALUE: message``."""
        return PipelineError(f"{where(self.marks, at)}: {message}")

    def with_train(self, **changes: Any) -> Pipeline:
        """The same pipeline with some keys of ``train`` replaced."""
        return replace(self, train=replace(self.train, **changes))

    def to_yaml(self) -> str:
        """All of it with defaults filled in, as YAML that loads to an equal pipeline."""
        return dump({key: plain(getattr(self, key)) for key in SECTIONS if getattr(self, key) is not None})


SECTIONS = ("backbone", "neck", "heads", "sources", "train", "evaluate")


def where(marks: Mapping[Path, str], at: Path) -> str:
    """The mark of ``at``, or of its nearest ancestor that has one."""
    while at and at not in marks:
        at = at[:-1]
    return marks.get(at, "pipeline")


def plain(value: Any) -> Any:
    """Dataclasses as the mappings they were read from: a component's arguments stand beside its name."""
    if isinstance(value, ComponentConfig):
        own = {k: plain(v) for k, v in vars(value).items() if k not in ("name", "args", "at")}
        unset = [k for k, v in own.items() if v is None or (k in ("reads", "labels") and v == {})]
        unset += ["weight"] if "weight" in own and own["train"] is None else []
        return {"name": value.name, **plain(value.args), **{k: v for k, v in own.items() if k not in unset}}
    if hasattr(value, "__dataclass_fields__"):
        # A default that nothing reads is left out: whoever reads the file would take it for a setting.
        idle = {k for k in unread(type(value), vars(value), vars(value)) if vars(value)[k] == getattr(type(value), k)}
        return {k: plain(v) for k, v in vars(value).items() if k not in idle}
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.plain() if isinstance(value, VariableText) else value
