"""Random layers whose outputs are those of trained ones, so that detections are many and different."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


@torch.no_grad()
def spread(layer: nn.Module, std: float, run: Callable[[], object], mean: float = 0.0) -> None:
    """Rescale a layer so that each of its outputs has this mean and deviation in ``run``."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, args, out: seen.append(out.transpose(0, 1).flatten(1)))
    run()
    hook.remove()
    out, own = torch.cat(seen, 1), cast(Any, layer)
    factor = std / out.std(1).clamp(min=1e-6)
    own.weight.mul_(factor.view(-1, *[1] * (own.weight.ndim - 1)))
    own.bias.copy_((own.bias - out.mean(1)) * factor + mean)
