"""Checkpoints and weights that are damaged in ways that a reader must name in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from visionkit.errors import RunError, UserError
from visionkit.model.importing import build_importer
from visionkit.model.run import RunFolder, check_state, checkpoint_weights, damaged, starting_weights
from visionkit.model.weights import read_tensors
from visionkit.plugins import PluginManager
from visionkit.testing.compare import assert_close
from visionkit.train.checkpoint import load_optimizer
from visionkit.train.optim import fill_momentum
from visionkit.types import FeatureSpec, LabelSet
from visionkit_backbones.timm_backbone import TimmBackbone
from visionkit_translation.cyclegan import CycleGAN


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\x08" + bytes(20), b"<html>", bytes(2**10)])
@pytest.mark.parametrize("name", ["last.pt", "last.safetensors"])
def test_damaged_bytes(data: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (checkpoint_weights, starting_weights):
        with pytest.raises(RunError, match=r"is damaged|not a checkpoint of a run"):
            read(tmp_path / name)


@pytest.mark.parametrize("target", ["/dev/zero", "itself"])
def test_links_to_what_cannot_be_read_whole(target: str, tmp_path: Path) -> None:
    for name in ("itself", "labels.json"):
        (tmp_path / name).symlink_to(tmp_path / target)
    reads = (lambda: starting_weights(tmp_path / "labels.json"), RunFolder(tmp_path).labels)
    for read in reads:
        with pytest.raises(RunError, match=r"labels\.json"):
            read()


def test_names_that_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run folder or weights file"):
        starting_weights(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="no such weights file"):
        read_tensors(tmp_path / ("x" * 300))
    with pytest.raises(RunError, match="no such run folder"):
        RunFolder(tmp_path / ("x" * 300)).require()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": {}}', '{"a": 3}', "[]", "\xff"])
def test_damaged_labels(text: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(RunError, match=r"labels\.json is damaged"):
        RunFolder(tmp_path).labels()


@pytest.mark.parametrize("tree", [3, [], {}, {"model": 3}, {"model": {}, "pipeline": 3, "average": [1]}])
def test_another_structure(tree: Any, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "last.pt")
    with pytest.raises(RunError):
        check_state({"weight": torch.zeros(2)}, checkpoint_weights(tmp_path / "last.pt"), "last.pt")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "weight is a int"),
        (torch.zeros(2).to_sparse(), "not a plain tensor"),
        (torch.zeros(2, device="meta"), "not a plain tensor"),
        (torch.zeros(1).expand(2), "not a plain tensor"),
        (torch.zeros(2, dtype=torch.complex64), "not a plain tensor of real numbers"),
        (torch.zeros(3), r"weight has shape \(3,\), not \(2,\)"),
    ],
)
def test_tensors_that_cannot_be_weights(value: Any, says: str) -> None:
    with pytest.raises(RunError, match=says):
        check_state({"weight": torch.zeros(2)}, {"weight": value}, "last.pt")


def test_restoring_reports_any_exception_as_damage() -> None:
    with pytest.raises(RunError, match=r"last\.pt is damaged: KeyError: 'rng'"), damaged(Path("last.pt")):
        {}["rng"]
    with pytest.raises(UserError, match=r"^own words$"), damaged(Path("last.pt")):
        raise UserError("own words")


def _optimizer(lr: float = 0.1, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.ones(3))
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind([parameter], lr=lr, **momentum)  # type: ignore[call-arg]
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("value", [None, "x", torch.zeros(()), torch.zeros(2), torch.zeros(3).to_sparse()])
def test_the_state_of_an_optimizer_must_be_that_of_its_parameters(value: Any) -> None:
    state = _optimizer().state_dict()
    state["state"][0]["exp_avg"] = value
    with pytest.raises(RunError, match=r"last\.pt is damaged"), damaged(Path("last.pt")):
        load_optimizer(_optimizer(), state)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("change", ["removed", "renamed", "added"])
def test_the_state_of_a_parameter_has_the_names_that_its_optimizer_reads(
    kind: type[torch.optim.Optimizer], change: str
) -> None:
    state = _optimizer(kind=kind).state_dict()
    own = state["state"][0]
    last = own.popitem()
    own |= {"renamed": {5: last[1]}, "added": {last[0]: last[1], "x": last[1]}, "removed": {}}[change]
    own = own or {"step": torch.tensor(1.0)}  # without any, the parameter never had a gradient
    state["state"][0] = own
    with pytest.raises(RunError, match=r"last\.pt is damaged: ValueError: .* of a parameter"), damaged(Path("last.pt")):
        load_optimizer(_optimizer(kind=kind), state)


def test_parameters_may_get_their_first_gradient_later() -> None:
    """Fused SGD agrees with the plain one when one parameter has momentum and the other has none yet."""
    results = []
    for fused in (False, True):
        parameters = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, fused=fused)
        for trained in (1, 2, 2):
            for parameter in parameters[:trained]:
                parameter.grad = torch.full_like(parameter, 0.5)
            if fused:
                fill_momentum(optimizer)
            optimizer.step()
        results.append({str(i): parameter.detach() for i, parameter in enumerate(parameters)})
    assert_close(results[1], results[0])


def test_the_settings_of_an_optimizer_are_those_of_the_pipeline() -> None:
    state = _optimizer().state_dict()
    state["param_groups"][0] |= {"betas": None, "lr": "fast"}
    optimizer = _optimizer(lr=0.2)
    load_optimizer(optimizer, state)
    assert (optimizer.param_groups[0]["betas"], optimizer.param_groups[0]["lr"]) == ((0.9, 0.999), 0.2)


def test_a_narrowed_timm_model_loads_its_own_weights(tmp_path: Path) -> None:
    options = {"channels": [8, 8, 16, 16]}
    first = TimmBackbone(model="resnet18", options=options)
    state = {name.removeprefix("body."): value for name, value in first.state_dict().items()}
    torch.save(state, tmp_path / "narrow.pth")
    second = TimmBackbone(model="resnet18", options=options, pretrained=str(tmp_path / "narrow.pth"))
    assert_close(dict(second.state_dict()), dict(first.state_dict()), rtol=0.0)


def test_a_published_generator_is_loaded_whole() -> None:
    """What a file lacks is left out, and found when the state is loaded; it doesn't get random values."""
    state = {}
    for name, value in (
        CycleGAN(FeatureSpec(), LabelSet(()), blocks=1, width=4, judge_width=4).forth.state_dict().items()
    ):
        place, _, rest = name.removeprefix("layers.").partition(".")
        inner = {"layers.1.weight": "conv_block.1.weight", "layers.5.weight": "conv_block.5.weight"}
        inner |= {"layers.1.bias": "conv_block.1.bias", "layers.5.bias": "conv_block.5.bias"}
        state[f"model.{place}.{inner.get(rest, rest)}"] = value
    importer = build_importer(PluginManager(), "cyclegan/resnet9")
    whole = importer.convert(state)
    missing = importer.convert({name: value for name, value in state.items() if name != "model.4.weight"})
    assert set(whole) - set(missing) == {"heads.picture.forth.layers.4.weight"}
    assert any(name.startswith("heads.picture.back.") for name in missing)


@pytest.mark.parametrize("target", ["/dev/zero", "last.pt", "."])
def test_what_is_no_file_is_not_read(target: str, tmp_path: Path) -> None:
    (tmp_path / "last.pt").symlink_to(target)
    with pytest.raises(RunError):
        checkpoint_weights(tmp_path / "last.pt")
