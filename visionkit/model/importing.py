"""Weights that were trained elsewhere: from a foreign state dict to a model of ours."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import TypeAdapter
from torch import Tensor

from visionkit.config import Pipeline, parse_pipeline
from visionkit.config.arguments import signature_schema
from visionkit.config.check import Finding, conform
from visionkit.config.overrides import apply_override
from visionkit.config.reader import dump
from visionkit.errors import UserError
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import load_state
from visionkit.model.weights import module_state, names_of, read_outermost, read_tensors
from visionkit.plugins import explain
from visionkit.types import LabelSet

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


class Importer(ABC):
    """Knows one family of foreign models.

    The constructor takes keyword arguments only: what cannot be determined from tensors, such as an output stride. They
    are given as ``visionkit import-weights --set KEY=VALUE``.

    Class attributes:
        key: name of a tensor that every such model has, or several of which it has one. It locates the model
            in a file: what stands before it (``state_dict.module.``) is dropped from all names. Without a key, the
            names are taken as they are.
        pipeline: YAML of the same model here, with the transforms of its evaluation and without sources.
        labels: by head, the classes that the weights know.

    Where the foreign model comes in several sizes, :meth:`describe` determines it from the weights, and
    ``pipeline`` and ``labels`` are not needed.
    """

    key: ClassVar[str | tuple[str, ...]] = ()
    pipeline: ClassVar[str]
    labels: ClassVar[Mapping[str, LabelSet]]

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        """``pipeline`` and ``labels`` of the model that these tensors belong to.

        Raises:
            UserError: they are of another model, or a setting is missing that cannot be determined from tensors.
        """
        return self.pipeline, self.labels

    @abstractmethod
    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the names that they have here: ``backbone.*``, ``neck.*``, ``heads.NAME.*``.

        What is missing or misshapen is found when they are loaded; :func:`rename` finds what is surplus.

        Raises:
            UserError: a tensor that the foreign model does not have.
        """


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """``state`` with the beginnings of its names replaced; the longest one that fits counts.

    Args:
        state: names and tensors.
        prefixes: old beginnings to new ones. A ``#`` stands for a number, and is that number in the new one.

    Raises:
        UserError: names with none of these beginnings (the first few are listed), or two that become one.
    """
    plain = {old: new for old, new in prefixes.items() if "#" not in old}
    patterns = [(_pattern(old), new) for old, new in prefixes.items() if "#" in old]
    renamed: dict[str, Tensor] = {}
    strangers = []
    for name, tensor in state.items():
        fitting = [(len(old), new) for old, new in plain.items() if name.startswith(old)]
        for pattern, new in patterns:
            if match := pattern.match(name):
                fitting.append((match.end(), new.replace("#", "{}").format(*match.groups())))
        if not fitting:
            strangers.append(name)
            continue
        length, new = max(fitting, key=lambda found: found[0])
        new += name[length:]
        if new in renamed:
            raise UserError(f"tensor '{name}' is there twice, under an old and a new name")
        renamed[new] = tensor
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise UserError(f"tensors of another model: {', '.join(strangers[:3])}{more}")
    return renamed


def _pattern(prefix: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(map(re.escape, prefix.split("#"))))


def numbers_in(names: Collection[str], prefix: str) -> list[int]:
    """The numbers that stand for the first ``#`` of ``prefix`` in names that begin with it, in order."""
    pattern = _pattern(prefix)
    return sorted({int(match[1]) for name in names if (match := pattern.match(name))})


def count_in(names: Collection[str], prefix: str) -> int:
    """How many numbers stand for the first ``#`` of ``prefix``."""
    return len(numbers_in(names, prefix))


def shape_of(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a tensor that a size is read from.

    Raises:
        UserError: there is none of that name, or it is a single number.
    """
    if name not in state:
        raise UserError(f"{name} is missing; {names_of(state)}")
    if not state[name].ndim:
        raise UserError(f"{name} is a single number")
    return tuple(state[name].shape)


def class_labels(count: int, *known: LabelSet, first: int = 0, keypoints: int = 0) -> LabelSet:
    """The labels of a model of so many classes: the first of the known sets that fits, else numbered classes.

    Args:
        count: of classes.
        known: sets of those that the published weights have.
        first: number of the first class in the foreign model, which becomes its category id.
        keypoints: of each object.
    """
    for labels in known:
        if len(labels) == count and (not keypoints or len(labels.keypoints) == keypoints):
            return labels
    numbers = range(first, first + count)
    made = LabelSet(tuple(f"class {i}" for i in numbers), ids=tuple(numbers))
    return replace(made, keypoints=tuple(f"keypoint {i}" for i in range(keypoints)))


def section(**keys: Any) -> str:
    """YAML of a pipeline or a part of it; keys that are ``None`` are left out."""
    return dump({key: value for key, value in keys.items() if value is not None})


def given(value: Any, key: str, choices: str) -> Any:
    """``value``, an option of an importer. Raises ``UserError`` that asks for it where it is ``None``."""
    if value is None:
        raise UserError(f"{key} cannot be determined from the weights: add --set {key}={choices}")
    return value


def anchor_keys(
    per_cell: int,
    levels: int,
    sizes: Sequence[Sequence[float]] | None,
    ratios: Sequence[float] | None,
    usual: tuple[Sequence[Sequence[float]], Sequence[float]],
) -> dict[str, Any]:
    """The keys of a head for its anchors. The weights only contain how many there are at each cell.

    Args:
        per_cell: anchors at each cell.
        levels: that have anchors.
        sizes, ratios: what was given, or ``None`` for the usual ones.
        usual: sizes and ratios of the published models.

    Raises:
        UserError: as many sizes and ratios are not given.
    """
    wide, shapes = usual[0] if sizes is None else sizes, usual[1] if ratios is None else ratios
    if len(wide) != levels or any(len(of_level) * len(shapes) != per_cell for of_level in wide):
        raise UserError(
            f"the weights have {per_cell} anchors at each cell of {levels} levels: add --set anchor_sizes=[[...], ...] "
            "with the sizes of each level, and --set anchor_ratios=[...] (height / width)"
        )
    return {"anchor_sizes": [list(of_level) for of_level in wide], "anchor_ratios": list(shapes)}


def read_state(path: Path, wanted: Collection[str] = (), prefix: str = "") -> dict[str, Tensor]:
    """The state dict in a weights file.

    Args:
        path: of the file, see :func:`~visionkit.model.weights.read_tensors`.
        wanted: names of tensors that it should hold, see :func:`~visionkit.model.weights.module_state`. Without them,
            it is the outermost dictionary of tensors in the file.
        prefix: only tensors whose names begin with this are read.

    Raises:
        UserError: no such file, one that holds no state dict, or none with the wanted names.
    """
    every = read_tensors(path) if wanted or prefix else read_outermost(path)
    tensors = {name: tensor for name, tensor in every.items() if name.startswith(prefix)}
    if not tensors:
        raise UserError(f"{path}: no tensor's name begins with '{prefix}'; {names_of(every)}")
    if not wanted:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    try:
        return module_state(tensors, wanted)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def build_importer(plugins: PluginManager, name: str, settings: Sequence[str] = ()) -> Importer:
    """An importer by name.

    Args:
        plugins: where it is looked up.
        name: such as ``torchvision/maskrcnn_resnet50_fpn``.
        settings: ``KEY=VALUE``, its keyword arguments.

    Raises:
        UserError: no such importer, or it has no such key, or not with such a value.
    """
    made = plugins.load("importer", name)
    arguments: dict[str, Any] = {}
    for setting in settings:
        apply_override(arguments, {}, setting)
    schema = signature_schema("importer", made)
    try:
        return made(**conform(TypeAdapter(schema), schema, arguments, f"importer '{name}'"))  # type: ignore[no-any-return]
    except Finding as finding:
        raise UserError(f"--set: {finding.message}") from None


@dataclass(frozen=True)
class Imported:
    """A model with weights from elsewhere, in evaluation mode, its description, and the classes by head."""

    pipeline: Pipeline
    labels: Mapping[str, LabelSet]
    model: MultiTaskModel


def import_model(importer: Importer, path: Path, plugins: PluginManager, prefix: str = "") -> Imported:
    """The model of an importer with the weights of a file, of its tensors whose names begin with ``prefix``.

    Raises:
        UserError: tensors are missing, surplus or of the wrong shape; the first few are named.
    """
    state = read_state(path, (importer.key,) if isinstance(importer.key, str) else importer.key, prefix)
    try:
        text, labels = importer.describe(state)
        converted = importer.convert(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (LookupError, ValueError, ArithmeticError, RuntimeError) as error:  # tensors of shapes that no model has
        raise UserError(f"{path}: not weights of {type(importer).__name__}: {explain(error)}") from error
    pipeline = parse_pipeline(text, type(importer).__name__)
    model = build_model(pipeline, plugins, labels)
    counters = {k: v for k, v in model.state_dict().items() if k.endswith(".num_batches_tracked")}
    load_state(model, {**counters, **converted}, str(path))  # files of PyTorch before 0.4.1 have no counters
    return Imported(pipeline, labels, model.eval())
