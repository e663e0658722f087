"""Which module of a model an exception comes from, for messages that name it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from visionkit.errors import UserError


def failing_module(model: nn.Module, error: BaseException) -> tuple[str, nn.Module] | None:
    """Name and module of the innermost module of ``model`` whose code was running when ``error`` was raised."""
    names = {module: name for name, module in model.named_modules() if name}
    found = None
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in names:
            found = names[module], module
        trace = trace.tb_next
    return found


@contextmanager
def normalization_errors(model: nn.Module) -> Iterator[None]:
    """Report that a normalization layer was given a single value in one line that names the layer.

    Raises:
        UserError: torch's batch or instance norm has refused its input.
    """
    try:
        yield
    except ValueError as error:
        place = failing_module(model, error)
        if place is None or "more than 1" not in str(error) or "when training" not in str(error):
            raise
        name, module = place
        shape = str(error).rpartition("[")[2].partition("]")[0].replace(", ", " x ")
        raise UserError(
            f"'{name}' ({type(module).__name__}) cannot normalize a single value per channel (its input is {shape}): "
            f"use larger images or a larger train.batch_size, another norm, or train.parts.{name}.freeze: true"
        ) from None
