"""What comparisons with other implementations share: turns, clocks, training steps, pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bf16_device() -> str | None:
    """Where bf16 is faster than float32: a GPU, else a processor that multiplies in bf16, else nowhere."""
    if torch.cuda.is_available():
        return "cuda"
    return "cpu" if torch.cpu._is_avx512_bf16_supported() else None


def row(name: str, ours: list[float], peer: list[float], bar: float, who: str = "torchvision") -> dict[str, Any]:
    """Ratios are taken round by round, so that a machine that slows down slows both."""
    return {
        "name": name,
        "ours": f"{median(ours) * 1e3:.0f} ms",
        "peer": f"{who} {median(peer) * 1e3:.0f} ms",
        "ratio": median(b / a for a, b in zip(ours, peer)),
        "bar": bar,
    }


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each, ``rounds`` times after one warm-up."""
    for step in (ours, theirs):
        step()
    times = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return [a for a, _ in times], [b for _, b in times]


def step_of(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One step of SGD with momentum; its rate is 0, so that all steps do the same work."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], Any]) -> float:
    """How long one call takes, whatever it has only asked a GPU to do included."""
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(layer: nn.Module, mean: float, std: float, run: Callable[[], Any]) -> None:
    """Rescale a random layer so that each of its outputs has this mean and deviation."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.transpose(0, 1).flatten(1)))
    run()
    hook.remove()
    out = torch.cat(seen, 1)
    factor = std / out.std(1).clamp(min=1e-6)
    layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - out.mean(1)) * factor + mean)


def picture(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: coloured patches; in noise a random network would see the same everywhere."""
    coarse = torch.randint(0, 256, (1, 3, height // 32, width // 32), dtype=torch.uint8)
    return F.interpolate(coarse, size=(height, width))[0].permute(1, 2, 0).contiguous().numpy()


def as_float(image: np.ndarray) -> Tensor:
    """(3, H, W) in 0 ... 1."""
    return torch.from_numpy(image).permute(2, 0, 1) / 255
