"""Reading foreign weights files: where in them the weights are, and what is refused."""

from __future__ import annotations

import argparse
import datetime
import os
import pickle
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.importing import read_state
from visionkit.model.weights import module_state, read_tensors
from visionkit_backbones.timm_backbone import TimmBackbone

STATE = {"stem.weight": torch.arange(4.0), "stem.bias": torch.ones(2), "head.weight": torch.zeros(3)}


def with_prefix(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


NESTED: dict[str, Any] = {
    "plain": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(4)}}}},
    "net": {"net": STATE, "acc": 93.5},
    "ema": {"ema": {"decay": 0.99, "shadow": STATE}},
    "generator beside a discriminator": {"generator": STATE, "discriminator": {"model.0.weight": torch.ones(2)}},
    "DataParallel": with_prefix("module."),
    "several prefixes": {"state_dict": with_prefix("module.model.backbone.encoder.")},
    "compiled": with_prefix("_orig_mod."),
    "averaged": {**with_prefix("module."), "n_averaged": torch.tensor(3)},
    "part of a larger model": {
        **with_prefix("backbone."),
        "decoder.weight": torch.ones(3),
        "decoder.bias": torch.ones(3),
    },
    "a wrapper inside": {**with_prefix("backbone.module."), "loss.weight": torch.ones(21)},
    "the same module twice": {**with_prefix("net."), **with_prefix("model.net.")},
}


@pytest.mark.parametrize("how", NESTED)
def test_weights_are_found_wherever_a_checkpoint_has_them(how: str, tmp_path: Path) -> None:
    torch.save(NESTED[how], tmp_path / "checkpoint.pth")
    found = read_state(tmp_path / "checkpoint.pth", STATE)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def test_weights_under_a_prefix_are_found_in_safetensors(tmp_path: Path) -> None:
    save_file(with_prefix("model.encoder."), tmp_path / "weights.safetensors")
    assert read_state(tmp_path / "weights.safetensors", ["stem.weight"]).keys() == STATE.keys()


def test_without_names_to_look_for_the_outermost_tensors_are_read(tmp_path: Path) -> None:
    plain = {"model.0.weight": torch.ones(1), "fc.weight": torch.ones(2)}
    for content in (plain, {"ema": STATE, "model": plain}, {"inner": {"state_dict": plain}, "epoch": 3}):
        torch.save(content, tmp_path / "weights.pth")
        assert read_state(tmp_path / "weights.pth").keys() == plain.keys()
    assert read_state(tmp_path / "weights.pth", prefix="inner.state_dict.model.").keys() == {"0.weight"}


def test_dictionaries_that_refer_to_one_another_are_searched_once(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"a": torch.ones(1)}
    for _ in range(60):
        inner = {"left": inner, "right": inner}
    torch.save(inner, tmp_path / "many.pth")
    assert len(read_tensors(tmp_path / "many.pth")) == 1
    assert read_state(tmp_path / "many.pth").keys() == {"a"}


def test_a_part_of_a_name_is_no_prefix() -> None:
    state = {
        "layer1.0.conv1.weight": torch.ones(2),
        "conv1.weight": torch.zeros(1),
        "layer2.0.conv1.weight": torch.ones(1),
    }
    assert module_state(with_prefix("net.", state), state).keys() == state.keys()


def test_the_tensors_of_a_file_without_the_wanted_ones_are_named(tmp_path: Path) -> None:
    torch.save(with_prefix("module."), tmp_path / "other.pth")
    with pytest.raises(UserError) as error:
        read_state(tmp_path / "other.pth", ["conv1.weight"])
    assert str(error.value) == (
        f"{tmp_path / 'other.pth'}: no tensor is called 'conv1.weight', with or without a prefix; "
        "its tensors are called module.stem.weight, module.stem.bias, module.head.weight"
    )


def test_two_networks_in_one_file_are_named(tmp_path: Path) -> None:
    torch.save({"student": STATE, "teacher": {k: v + 1 for k, v in STATE.items()}}, tmp_path / "dino.pth")
    with pytest.raises(UserError, match=r"several networks of this kind, with the prefixes 'student\.', 'teacher\.'"):
        read_state(tmp_path / "dino.pth", STATE)
    assert torch.equal(read_state(tmp_path / "dino.pth", STATE, "teacher.")["head.weight"], torch.ones(3))
    with pytest.raises(UserError, match=r"no tensor's name begins with 'ema\.'; its tensors are called student\."):
        read_state(tmp_path / "dino.pth", STATE, "ema.")


HARMLESS: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=0.1, out=Path("runs"), seed=np.int64(3), nested=argparse.Namespace(a=[1])),
    "namespace": types.SimpleNamespace(lr=0.1),
    "path": Path("data"),
    "counts": defaultdict(int, {"a": 1}),
    "history": OrderedDict(loss=[np.float32(0.5), np.float64(0.25)], time=datetime.datetime(2026, 1, 1)),
    "array": np.arange(3),
    "text array": np.array(["a", "b"]),
    "set": {1, 2},
    "frozen": frozenset((1, 2)),
    "range": range(3),
    "slice": slice(1, 2),
    "device": torch.device("cpu"),
    "type": torch.float32,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", HARMLESS)
def test_what_describes_a_training_is_passed_over(what: str, zipped: bool, tmp_path: Path) -> None:
    checkpoint = {"state_dict": with_prefix("module."), what: HARMLESS[what], "epoch": 3}
    torch.save(checkpoint, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=zipped)
    assert read_state(tmp_path / "checkpoint.pth", STATE).keys() == STATE.keys()


class Runs:
    """Leaves a file behind where its pickle is executed."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


class Config:
    """Of a class that only its own program knows."""


@pytest.mark.parametrize("write", ["torch", "legacy", "pickle"])
@pytest.mark.parametrize("kind", ["system", "eval", "path", "class", "namespace"])
def test_nothing_of_a_file_is_run(kind: str, write: str, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    harmful = {
        "system": Runs(os.system, f"touch {target}"),
        "eval": Runs(eval, f"open({str(target)!r}, 'w')"),
        "path": Runs(target.write_text, ""),
        "class": Config(),
        "namespace": argparse.Namespace(inner=Runs(os.mkdir, str(target))),
    }[kind]
    content = {"state_dict": {"a": np.ones(2) if write == "pickle" else torch.ones(2)}, "extra": harmful}
    file = tmp_path / "harmful.pth"
    if write == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(
        UserError, match=r"harmful\.pth: cannot be read as weights: it holds an object of type \S+;"
    ) as error:
        read_state(file)
    assert "\n" not in str(error.value)
    assert not target.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    """Those of detectron2's model zoo are such files."""
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.ones(2, np.float32)}
    arrays["turned"] = np.asfortranarray(arrays["a.weight"])
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "iteration": np.int64(3)}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_state(tmp_path / "model.pkl")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {k: v.tolist() for k, v in arrays.items()}


def test_tensors_without_values_of_their_own_are_refused(tmp_path: Path) -> None:
    for tensor in (torch.ones(1).expand(10**9, 10**6), torch.eye(3).to_sparse(), torch.ones(2) * 1j):
        torch.save({"a": tensor}, tmp_path / "odd.pth")
        with pytest.raises(UserError, match="a is not a plain tensor"):
            read_tensors(tmp_path / "odd.pth")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02}q", b"\x80", b"not weights", b"\x93NUMPY", b"{}" * 9]
)
def test_files_of_other_kinds_are_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    for name in ("a.pth", "a.safetensors", "a.pkl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as weights") as error:
            read_tensors(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "encoder.", "model.", "module.model.backbone.body."])
def test_weights_of_a_backbone_in_a_larger_model(prefix: str, tmp_path: Path) -> None:
    theirs = timm.create_model("resnet10t", num_classes=3)
    nn.init.normal_(theirs.layer4[0].conv1.weight)
    state = {**with_prefix(prefix, theirs.state_dict()), "decoder.weight": torch.ones(2)}
    if not prefix:
        del state["decoder.weight"]
    torch.save({"model_state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "weights.pth")
    backbone = TimmBackbone(model="resnet10t", pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(backbone.body.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("resnet18", {"layers": [1, 3, 1, 2]}),
        ("resnet50", {"layers": [1, 1, 2, 1], "cardinality": 8, "base_width": 8}),
        ("convnext_atto", {"depths": [1, 1, 3, 2], "dims": [8, 16, 24, 32]}),
        ("efficientnet_b0", {}),
        ("mobilenetv3_small_050", {}),
        ("densenet121", {"block_config": [1, 2, 2, 1]}),
    ],
)
@torch.no_grad()
def test_backbones_of_other_depths_and_numbers_of_classes_are_those_of_timm(
    model: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(model, num_classes=5, **options).eval()
    torch.save({"net": with_prefix("module.backbone.", theirs.state_dict())}, tmp_path / "weights.pth")
    ours = TimmBackbone(model=model, options=options, pretrained=str(tmp_path / "weights.pth")).eval()
    images = torch.randn(1, 3, 64, 96)
    # The maps of all strides, of which the last one of each counts; without them, all that the classifier reads.
    if hasattr(theirs, "forward_intermediates"):
        wanted = {x.shape[-1]: x for x in theirs.forward_intermediates(images, intermediates_only=True)}
        found = {x.shape[-1]: x for x in ours(images).values()}
        assert found.keys() == wanted.keys()
        for size, want in wanted.items():
            torch.testing.assert_close(found[size], want)
    else:
        torch.testing.assert_close(theirs.features.norm5(ours(images)["c5"]), theirs.forward_features(images))


def test_the_names_of_a_backbone_of_another_kind_are_shown(tmp_path: Path) -> None:
    torch.save(with_prefix("module."), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"its tensors are called module\.stem\.weight, module\.stem\.bias"):
        TimmBackbone(model="resnet10t", pretrained=str(tmp_path / "weights.pth"))
