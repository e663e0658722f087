"""Numeric precisions of training, ``train.precision``; what the device or a head cannot compute in is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from lightning_fabric.plugins.precision import DoublePrecision, Precision
from torch import Tensor, nn

from visionkit.config import Pipeline
from visionkit.model.failing import failing_module
from visionkit.model.graph import Step
from visionkit.types._tree import map_tensors

FULL = ("32-true", "64-true", "bf16-true", "16-true")
"""Precisions without autocast of float32 weights. Evaluation and saved weights are in float32 in all of these."""

# What torch and its libraries say of operations that do not exist in a type, or not in these types together.
_OF_TYPES = re.compile(
    r"\bd?types?\b|scalar ?type|not implemented for|\b(half|bfloat16|float16|double)\b|find an engine|not_supported",
    re.IGNORECASE,
)


class DoubleEverything(DoublePrecision):
    """``64-true``: weights, images and targets in float64."""

    def convert_input(self, data: Any) -> Any:
        (step,), options = data
        if isinstance(step, Step):
            step.batch = map_tensors(step.batch, lambda t: t.double() if t.is_floating_point() else t)
        return (step,), options

    def convert_output(self, data: Any) -> Any:
        return data


class HalfWeights(Precision):
    """``bf16-true`` and ``16-true``: weights, their gradients and the optimizer's state in half precision.

    Parameters and statistics of normalization layers, and of other modules without a parameter of two or more
    dimensions, stay in float32. So do coordinates and losses: the model runs under autocast, as with ``bf16-mixed``.

    Args:
        precision: ``"bf16-true"`` or ``"16-true"``.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision  # type: ignore[assignment]
        self.dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16
        self.module: nn.Module | None = None

    def convert_module(self, module: nn.Module) -> nn.Module:
        self.module = module
        for part in module.modules():
            parameters = [p for p in part.parameters(recurse=False) if p.is_floating_point()]
            for parameter in parameters if any(p.ndim > 1 for p in parameters) else ():
                parameter.data = parameter.data.to(self.dtype)
        return module

    def forward_context(self) -> AbstractContextManager:
        assert self.module is not None
        return torch.autocast(next(self.module.parameters()).device.type, self.dtype)


def precision_arguments(precision: str) -> dict[str, Any]:
    """The arguments of Fabric that make it compute in a precision."""
    if precision == "64-true":
        return {"plugins": DoubleEverything()}
    return {"plugins": HalfWeights(precision)} if precision in ("bf16-true", "16-true") else {"precision": precision}


@contextmanager
def precision_errors(model: nn.Module, pipeline: Pipeline, device: torch.device) -> Iterator[None]:
    """Report that something cannot be computed in the pipeline's precision, in one line that names the module.

    Raises:
        UserError: torch has refused an operation because of its types, and the precision is not ``32-true``.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        precision = pipeline.train.precision
        if precision == "32-true" or not _OF_TYPES.search(str(error)):
            raise
        place = failing_module(model, error)
        what = f"'{place[0]}'" if place else "the model"
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        raise pipeline.fail(
            ("train", "precision"),
            f"train.precision: {what} cannot be trained in {precision} on {device.type}: {reason}",
        ) from None


@contextmanager
def in_single_precision(model: nn.Module) -> Iterator[None]:
    """All floating-point tensors of a model are float32 for a while, and then those that they were."""
    parameters = [(p, p.data) for p in model.parameters() if p.is_floating_point() and p.dtype != torch.float32]
    buffers: list[tuple[dict[str, Tensor | None], str, Tensor]] = [
        (module._buffers, name, value)
        for module in model.modules()
        for name, value in module.named_buffers(recurse=False)
        if value.is_floating_point() and value.dtype != torch.float32
    ]
    for parameter, data in parameters:
        parameter.data = data.float()
    for owner, name, value in buffers:
        owner[name] = value.float()
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for owner, name, value in buffers:
            owner[name] = value
