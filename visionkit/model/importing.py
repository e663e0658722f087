"""Weights that were trained elsewhere: from a foreign state dict to a model of ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from visionkit.config import Pipeline, parse_pipeline
from visionkit.errors import UserError
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import load_state
from visionkit.types import LabelSet

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


class Importer(ABC):
    """Knows one foreign model; built without arguments.

    Class attributes:
        pipeline: YAML of the same model here, with the transforms of its evaluation and without sources.
        labels: by head, the classes that the weights know.

    Where the foreign model comes in several sizes, :meth:`describe` tells from the weights which one it is, and there
    are no such attributes.
    """

    pipeline: ClassVar[str]
    labels: ClassVar[Mapping[str, LabelSet]]

    def describe(self, state: Mapping[str, Tensor]) -> tuple[str, Mapping[str, LabelSet]]:
        """``pipeline`` and ``labels`` of the model that these tensors belong to.

        Raises:
            UserError: they are of another model.
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

    Raises:
        UserError: names with none of these beginnings (the first few are listed), or two that become one.
    """
    renamed: dict[str, Tensor] = {}
    strangers = []
    for name, tensor in state.items():
        fitting = [prefix for prefix in prefixes if name.startswith(prefix)]
        if not fitting:
            strangers.append(name)
            continue
        longest = max(fitting, key=len)
        new = prefixes[longest] + name.removeprefix(longest)
        if new in renamed:
            raise UserError(f"tensor '{name}' is there twice, under an old and a new name")
        renamed[new] = tensor
    if strangers:
        more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        raise UserError(f"tensors of another model: {', '.join(strangers[:3])}{more}")
    return renamed


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote (nothing else in it is ever run).

    A checkpoint that holds its weights under ``model`` or ``state_dict`` is understood.

    Raises:
        UserError: no such file, or none that holds a state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a damaged file makes pickle, zip and safetensors raise whatever they like
        reason = (str(error).splitlines() or [""])[0]
        if len(reason.split()) < 2:  # a key, or the number of a byte
            reason = "it is neither a safetensors file nor one that torch.save wrote"
        raise UserError(f"{path}: cannot be read as weights: {reason}") from None
    if isinstance(state, dict):
        state = next((state[key] for key in ("model", "state_dict") if isinstance(state.get(key), dict)), state)
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds no state dict (names and tensors)")
    return dict(state)


@dataclass(frozen=True)
class Imported:
    """A model with weights from elsewhere, in evaluation mode, its description, and the classes by head."""

    pipeline: Pipeline
    labels: Mapping[str, LabelSet]
    model: MultiTaskModel


def import_model(importer: Importer, path: Path, plugins: PluginManager) -> Imported:
    """The model of an importer with the weights of a file.

    Raises:
        UserError: tensors are missing, surplus or of the wrong shape; the first few are named.
    """
    state = read_state(path)
    try:
        text, labels = importer.describe(state)
        state = importer.convert(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    pipeline = parse_pipeline(text, type(importer).__name__)
    model = build_model(pipeline, plugins, labels)
    load_state(model, state, str(path))
    return Imported(pipeline, labels, model.eval())
