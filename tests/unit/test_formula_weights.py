"""The weights of reference models are what their files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.formula_weights import formula_weights

# Entries of a published model's file; the sums are of tensors that were made elsewhere.
ENTRIES = [
    ("proposal_generator.rpn_head.objectness_logits.bias", [3], "bias", 0.0, 0.05, 0.01392),
    ("backbone.bottom_up.stem.conv1.norm.running_var", [64], "norm_var", 1.0, 0.1, 69.45915),
    (
        "proposal_generator.rpn_head.objectness_logits.weight",
        [3, 256, 1, 1],
        "conv_weight",
        0.0,
        0.08838834764831845,
        -0.01082,
    ),
    ("bn1.num_batches_tracked", [], "zero", 0.0, 0.0, 0.0),
]


def write(path: Path) -> Path:
    names = ("name", "shape", "kind", "mean", "std", "sum")
    entries = [dict(zip(names, entry), dtype="int64" if entry[2] == "zero" else "float32") for entry in ENTRIES]
    path.write_text(json.dumps(entries))
    return path


def test_shapes_types_and_sums(tmp_path: Path) -> None:
    state = formula_weights(write(tmp_path / "keys.json"))
    assert [list(tensor.shape) for tensor in state.values()] == [entry[1] for entry in ENTRIES]
    assert [tensor.dtype for tensor in state.values()] == [torch.float32] * 3 + [torch.int64]
    assert (state["backbone.bottom_up.stem.conv1.norm.running_var"] >= 1).all()


def test_other_seeds_are_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"objectness_logits\.bias: the sum is"):
        formula_weights(write(tmp_path / "keys.json"), suffix="b")
