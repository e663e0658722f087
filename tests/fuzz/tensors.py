"""Damage to files of weights: their bytes, the containers in them, and single tensors."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pickle
import struct
import types
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from tests.fuzz.mutations import NUMBERS, STRINGS, Raw, change_bytes

PLAIN = tuple(value for value in (*NUMBERS, *STRINGS) if not isinstance(value, Raw))
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)


KEYS = ("state_dict", "model", "net", "module", "ema", "model_state_dict", "x")
PREFIXES = ("module", "model", "backbone", "encoder", "module.model", "x")


class Stranger:
    """An object that no weights file may hold."""


class Command:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("echo code of a file was run; kill -9 $PPID",)


def save_tree(tree: Any, path: Path, rng: Random | None = None) -> None:
    """Write a tree of tensors as the ending of the name says; with a generator, now and then in another format."""
    form = path.suffix if rng is None or rng.random() < 0.9 else rng.choice((".safetensors", ".pkl", ".pth", ".old"))
    if form == ".safetensors":
        flat = {key: value for key, value in dict(tree).items() if isinstance(value, Tensor)}
        try:
            save_file({key: value.detach().clone().contiguous() for key, value in flat.items()}, path)
            return
        except Exception:  # tensors that this format cannot hold
            form = ".pth"
    if form == ".pkl":
        path.write_bytes(pickle.dumps(to_numpy(tree)))
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=form != ".old")


def to_numpy(tree: Any) -> Any:
    """The tree with arrays in place of tensors that NumPy has a type for."""
    if isinstance(tree, Tensor):
        try:
            return tree.detach().numpy()
        except (TypeError, RuntimeError):
            return None
    if type(tree) is dict:
        return {key: to_numpy(value) for key, value in tree.items()}
    return tree


def change_tensors(rng: Random, tree: Any) -> Any:
    """The tree with one change: to a tensor, to a name, to a container, or to another value."""
    places: list[tuple[Any, Any]] = []
    waiting, seen = [tree], set()
    while waiting:
        at = waiting.pop()
        if id(at) in seen:  # containers may hold themselves
            continue
        seen.add(id(at))
        if isinstance(at, dict):
            places += [(at, key) for key in at]
            waiting += [value for value in at.values() if isinstance(value, dict | list)]
        elif isinstance(at, list):
            places += [(at, i) for i in range(len(at))]
            waiting += [value for value in at if isinstance(value, dict | list)]
    if not places or rng.random() < 0.1:
        return _contained(rng, tree)
    tensors = [(at, key) for at, key in places if isinstance(at[key], Tensor)]
    at, key = rng.choice(tensors if tensors and rng.random() < 0.6 else places)
    form = rng.randrange(8)
    if form == 0:
        del at[key]
    elif form == 1 and isinstance(at, dict):
        at[rng.choice((f"{key}_", f"module.{key}", str(key).upper(), "x", "", "a.b.c", 3, None, (1, 2)))] = at.pop(key)
    elif form == 2 and isinstance(at, dict):
        at[rng.choice((f"{key}_", f"model.{key}", f"other.{key}", 7))] = at[key]
    elif form == 3 or not isinstance(at[key], Tensor):
        at[key] = _contained(rng, at[key]) if rng.random() < 0.4 else _value(rng)
    else:
        at[key] = _tensor(rng, at[key])
    return tree


def _value(rng: Random) -> Any:
    values: tuple[Callable[[], Any], ...] = (
        lambda: rng.choice(PLAIN),
        lambda: rng.choice((None, True, [], {}, (), [1, 2], {"a": 1}, b"x", 1 + 2j, range(3), {1, 2}, slice(1))),
        lambda: rng.choice((torch.float32, torch.device("cpu"), torch.Size([2]), np.float64(1.5), np.zeros(3), "NaN")),
        lambda: rng.choice((Stranger, Stranger(), Command(), nn.Linear(2, 2), types.SimpleNamespace(), Path("/x"))),
        lambda: rng.choice((collections.Counter("ab"), np.array(["a"]), np.array([None]), argparse.Namespace(lr=1))),
    )
    return rng.choice(values)()


def _tensor(rng: Random, tensor: Tensor) -> Tensor:
    """The same tensor in another type, shape or layout, or with other values."""
    many = 2**40
    forms: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor.to(rng.choice(DTYPES)),
        lambda: tensor.to(rng.choice(DTYPES)),
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor.transpose(0, -1) if tensor.ndim > 1 else tensor.flatten()[:-1],
        lambda: tensor.new_zeros(rng.choice(((), (0,), (1,), (3, 0, 3), (1,) * 20, (2, 2)))),
        lambda: torch.cat((tensor, tensor)) if tensor.ndim else tensor[None],
        lambda: tensor.flatten()[:1].expand(rng.choice(((many,), tuple(tensor.shape) or (1,), (2**20, 2**20)))),
        lambda: torch.full_like(tensor, rng.choice((float("nan"), float("inf"), 1e38, 0.0)), dtype=torch.float32),
        lambda: tensor.to_sparse() if tensor.ndim else tensor,
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.to("meta"),
        lambda: nn.Parameter(tensor.float()),
        lambda: tensor.float().requires_grad_() * 1.0,
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: tensor.conj() if tensor.is_complex() else torch.complex(tensor.float(), tensor.float()).conj(),
        lambda: torch.randn(tensor.shape),
    )
    return rng.choice(forms)()


def _contained(rng: Random, value: Any) -> Any:
    """The value inside, or as, another container."""
    deep: Any = value
    for _ in range(rng.choice((1, 3, 50, 900, 20_000))):
        deep = {"model": deep}
    own = dict(value) if isinstance(value, dict) else {"weight": value}
    loop = {**own}
    loop["self"] = loop
    key, prefix = rng.choice(KEYS), rng.choice(PREFIXES)
    floats = {k.replace(".", "_"): v for k, v in own.items() if isinstance(v, Tensor) and v.is_floating_point()}
    zeros = {k: v * 0 if isinstance(v, Tensor) else v for k, v in own.items()}
    forms: tuple[Callable[[], Any], ...] = (
        lambda: deep,
        lambda: {key: value, "epoch": 3},
        lambda: {f"{prefix}.{k}": v for k, v in own.items()},
        lambda: collections.OrderedDict(own),
        lambda: collections.defaultdict(list, own),
        lambda: argparse.Namespace(model=value),
        lambda: list(own.items()),
        lambda: tuple(own.values()),
        lambda: {**own, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda: {"state_dict": own, "model": zeros},
        lambda: {"generator": own, "critic": dict(list(own.items())[:3])},
        lambda: dict(enumerate(own.values())),
        lambda: loop,
        lambda: _value(rng),
        lambda: nn.ParameterDict(floats),
        dict,
    )
    return rng.choice(forms)()


def damage_file(rng: Random, path: Path) -> None:
    """One damage to the bytes of a file, or something else in its place."""
    data = path.read_bytes()
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    odd = (
        {**header, "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 0]}},
        {"a": 3},
        {"__metadata__": {"a": 1}, **header},
        [],
        {},
    )
    forms: tuple[Callable[[], bytes], ...] = (
        lambda: change_bytes(rng, data),
        lambda: change_bytes(rng, data),
        lambda: change_bytes(rng, data),
        lambda: struct.pack("<Q", rng.choice((0, 1, 2**20, 2**40, 2**63))) + data[8:],
        lambda: (lambda text: struct.pack("<Q", len(text)) + text + bytes(8))(json.dumps(rng.choice(odd)).encode()),
        lambda: data.replace(b"weight", b"wieght", rng.choice((1, 100))),
        lambda: data.replace(b"FloatStorage", rng.choice((b"HalfStorage\0", b"LongStorage\0", b"os.systemxx\0"))),
        lambda: data.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
        lambda: pickle.dumps(rng.choice((Command(), Stranger(), 3, None, "x", [1], {"a": Stranger()}))),
        lambda: save({"a": torch.zeros(2)}),
        lambda: b"\x1f\x8b" + data,
        lambda: b"<html>404: Not Found</html>\n",
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        lambda: b"PK\x05\x06" + bytes(18),
        lambda: b"PK\x03\x04" + data[4:],
        lambda: b"\x80\x02" + data,
        lambda: b"\x80\x04" + b"]" * 5000 + b".",
        lambda: b"\x80\x04(" + b"K\x01" * 5000 + b"t.",
    )  # fmt: skip
    if rng.random() < 0.08:
        path.unlink()
        if rng.random() < 0.7:
            rng.choice((path.mkdir, lambda: path.symlink_to(path), lambda: path.symlink_to("/dev/zero")))()
        return
    path.write_bytes(rng.choice(forms)())
