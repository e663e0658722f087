"""A run folder: what training leaves behind, and all that prediction and evaluation need.

``pipeline.yaml`` (resolved), ``labels.json`` (label set of every head), ``weights.safetensors`` (final weights, the
moving average where one was kept), ``checkpoints/`` (to resume from), ``metrics.jsonl``, ``metrics.json`` and
``predictions/`` (of the weights that the folder holds), ``pictures/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visionkit.config import Pipeline, load_pipeline
from visionkit.errors import RunError, UserError
from visionkit.model.build import build_model, without_first_weights
from visionkit.model.graph import MultiTaskModel
from visionkit.model.weights import is_dense
from visionkit.results.files import write_atomically as write_atomically
from visionkit.results.files import write_errors
from visionkit.types import LabelSet

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


@dataclass(frozen=True)
class RunFolder:
    """Names of what lies in a run folder; makes and reads the small files."""

    path: Path

    @property
    def pipeline_file(self) -> Path:
        return self.path / "pipeline.yaml"

    @property
    def labels_file(self) -> Path:
        return self.path / "labels.json"

    @property
    def weights_file(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.json"

    def require(self) -> RunFolder:
        """This folder, if it holds a run. Raises ``RunError`` otherwise."""
        if not os.path.isdir(self.path):
            raise RunError(f"{self.path}: no such run folder")
        if not self.pipeline_file.is_file():
            raise RunError(f"{self.path} is no run folder: it holds no pipeline.yaml")
        return self

    def pipeline(self, overrides: tuple[str, ...] = ()) -> Pipeline:
        """The pipeline it was made with."""
        return load_pipeline(str(self.require().pipeline_file), overrides)

    def labels(self) -> dict[str, LabelSet]:
        """The label set of every head."""
        check_regular(self.labels_file)
        try:
            data = json.loads(self.labels_file.read_text())
            return {head: LabelSet.from_dict(value) for head, value in data.items()}
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no labels.json; was it trained?") from None
        except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise RunError(f"{self.labels_file} is damaged: {error}") from None

    def weights(self) -> dict[str, Tensor]:
        """The final weights, or those of the last checkpoint of a run that has not finished."""
        if self.weights_file.exists() or not self.checkpoint_file.exists():
            return load_weights(self.weights_file)
        return checkpoint_weights(self.checkpoint_file)

    def check_unused(self) -> None:
        """Raise ``RunError`` if the folder holds anything that a new run would replace."""
        if self.checkpoint_file.exists():
            raise RunError(f"{self.path} already holds a run: go on with --resume, or choose another --out")
        if self.weights_file.exists():
            raise RunError(f"{self.path} already holds a run, without a checkpoint to resume from: choose another "
                           f"--out; --set train.init={self.path} starts from its weights")  # fmt: skip
        if self.metrics_file.exists():
            raise RunError(f"{self.path} already holds the metrics of an evaluation: choose another --out")
        if self.pipeline_file.exists() and not self.labels_file.exists():
            raise RunError(f"{self.pipeline_file} is not part of a run, and would be replaced: choose another --out")

    def remove_results(self) -> None:
        """Delete the final weights and what was evaluated with them, because training goes on.

        The checkpoint holds the same weights until the next one is written, so weights, metrics and checkpoint of a run
        that is interrupted belong together.
        """
        for file in (self.weights_file, self.metrics_file):
            with write_errors(file):
                file.unlink(missing_ok=True)
        shutil.rmtree(self.path / "predictions", ignore_errors=True)

    def write_description(self, pipeline: Pipeline, labels: Mapping[str, LabelSet]) -> None:
        """Write ``pipeline.yaml`` and ``labels.json``."""
        write_atomically(self.pipeline_file, pipeline.to_yaml())
        write_atomically(self.labels_file, json.dumps({k: v.to_dict() for k, v in labels.items()}, indent=1))

    def write_weights(self, state: Mapping[str, Tensor]) -> None:
        """Write ``weights.safetensors``."""
        save_weights(self.weights_file, state)


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, beside)
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise RunError(f"{path}: cannot be written: {reason}; what was there before is intact") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises ``RunError`` where it is missing or damaged."""
    check_regular(path)
    try:
        return load_file(path)
    except FileNotFoundError:
        raise RunError(f"{path}: no such weights file; has the run finished, or saved a checkpoint?") from None
    except Exception as error:  # as many kinds as there are ways to damage a file
        raise RunError(f"{path} is damaged: {error}") from None


def check_regular(path: Path) -> None:
    """Raise ``RunError`` for a folder or a device, which could be read for ever."""
    try:
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is not a file")
    except OSError as error:  # such as a link to itself
        raise RunError(f"{path} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Report any exception while a checkpoint is read or restored as damage to its file.

    Raises:
        RunError: what is in the file is not what a run has saved.
    """
    try:
        yield
    except (UserError, MemoryError, FileNotFoundError):
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise RunError(f"{path} is damaged: {type(error).__name__}: {reason}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. Raises ``RunError`` where it is missing, damaged or something else."""
    check_regular(path)
    try:
        with damaged(path), path.open("rb") as file:  # an open file: torch would go by the ending of a path
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: there is no checkpoint to resume from") from None
    if not isinstance(state, dict) or "model" not in state or "pipeline" not in state:
        raise RunError(f"{path} is a PyTorch file, but not a checkpoint of a run; visionkit import-weights "
                       "reads the weights of other libraries")  # fmt: skip
    return state


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, the moving average if there is one. Raises ``RunError`` where it is damaged."""
    state = read_checkpoint(path)
    return state["model"] if state.get("average") is None else state["average"]  # type: ignore[no-any-return]


def starting_weights(path: Path) -> dict[str, Tensor]:
    """The weights that a path names: of a run folder, as for prediction, of a checkpoint, or of a safetensors file.

    Raises:
        RunError: there is no such file or run, or it is something else.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, accepts a name that is too long
        folder = RunFolder(path)
        if not folder.weights_file.exists() and not folder.checkpoint_file.exists():
            raise RunError(f"{path} holds neither final weights nor a checkpoint of a run")
        return folder.weights()
    if not os.path.exists(path):
        raise RunError(f"{path}: no such run folder or weights file")
    check_regular(path)
    return checkpoint_weights(path) if zipfile.is_zipfile(path) else load_weights(path)


def weights_digest(model: torch.nn.Module) -> str:
    """A fingerprint of all weights and statistics, by which a journal knows its model."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whole. Raises ``RunError`` naming the first tensors that are missing, surplus or misshapen."""
    check_state(model.state_dict(), state, where)
    model.load_state_dict(dict(state))


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Raise ``RunError`` unless a state dict has the names and shapes of ``own``, and plain tensors of real numbers."""
    if not isinstance(state, Mapping):
        raise RunError(f"{where} is damaged: its weights are a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(value, Tensor) or not is_dense(value) or value.is_complex():
            kind = type(value).__name__ if not isinstance(value, Tensor) else f"{value.dtype}, {value.layout} tensor"
            raise RunError(f"{where} is damaged: {name} is a {kind}, not a plain tensor of real numbers")
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is not in this model" for k in state if k not in own]
    wrong += [
        f"{k} has shape {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise RunError(f"{where} belongs to another model: {'; '.join(wrong[:3])}{more}")


@dataclass(frozen=True)
class LoadedRun:
    """A run ready to predict: its pipeline, the label set of every head, and the model in evaluation mode."""

    pipeline: Pipeline
    labels: dict[str, LabelSet]
    model: MultiTaskModel


def load_model(run: str | Path, plugins: PluginManager, overrides: tuple[str, ...] = ()) -> LoadedRun:
    """Build the model of a run folder and load its weights.

    Raises:
        RunError: no run folder, no weights, damaged weights, or weights of another pipeline.
    """
    folder = RunFolder(Path(run)).require()
    pipeline, labels = folder.pipeline(overrides), folder.labels()
    if missing := [head for head in pipeline.heads if head not in labels]:
        raise RunError(f"{folder.labels_file} has no labels for head '{missing[0]}'")
    model = build_model(without_first_weights(pipeline, plugins), plugins, labels)
    load_state(model, folder.weights(), str(folder.path))
    return LoadedRun(pipeline, labels, model.eval())


def write_run(path: str | Path, pipeline: Pipeline, labels: Mapping[str, LabelSet], model: MultiTaskModel) -> RunFolder:
    """Make a run folder of a model that was not trained here."""
    folder = RunFolder(Path(path))
    folder.write_description(pipeline, labels)
    folder.write_weights(model.state_dict())
    return folder
