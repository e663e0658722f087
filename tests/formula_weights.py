"""Weights that are made by a formula, so that a reference model can be rebuilt from the names of its tensors alone."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def formula_weights(keys: str | Path, suffix: str = "") -> dict[str, Tensor]:
    """The state dict that a ``keys.json`` describes.

    Each entry holds ``name``, ``shape``, ``dtype``, ``kind``, ``mean``, ``std`` and ``sum``. A tensor is ``mean + std *
    z``, where z is standard normal noise whose seed is the CRC-32 of the name; a running variance takes ``abs(z)``.

    Args:
        keys: the file.
        suffix: put after each name before its checksum is taken.

    Raises:
        ValueError: a tensor whose sum is not the one in the file.
    """
    state = {}
    for entry in json.loads(Path(keys).read_text(encoding="utf-8")):
        seed = zlib.crc32((entry["name"] + suffix).encode())
        noise = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(entry["shape"]))
        if entry["kind"] == "norm_var":
            noise = np.abs(noise)
        values = np.asarray(entry["mean"] + entry["std"] * noise, dtype=np.float32)
        total = values.sum(dtype=np.float64)
        if abs(total - entry["sum"]) > 1e-4:
            raise ValueError(f"{entry['name']}: the sum is {total:.5f}, not {entry['sum']:.5f}")
        state[entry["name"]] = torch.from_numpy(values).to(getattr(torch, entry["dtype"].removeprefix("torch.")))
    return state


def formula_image(height: int, width: int, suffix: str = "") -> np.ndarray:
    """The picture (height, width, 3) uint8 that detectron2's reference models were shown: blurred blocks and noise."""
    random = np.random.Generator(np.random.PCG64(zlib.crc32(("image" + suffix).encode())))
    coarse = random.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    fine = random.integers(0, 256, (height, width, 3))
    image = 0.7 * coarse.repeat(16, 0).repeat(16, 1)[:height, :width] + 0.3 * fine
    for _ in range(2):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
        image = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1)).mean((-2, -1))
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def blocks_image(height: int, width: int) -> Tensor:
    """The picture (3, height, width) uint8 of plain blocks of 8 x 8 that some reference models were shown.

    Its channels are blue, green, red there, and turned round here.
    """
    random = np.random.Generator(np.random.PCG64(zlib.crc32(b"image")))
    coarse = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    image = coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)
    return torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
