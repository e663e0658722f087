"""Frozen parts of a model: their parameters get no gradient, and nothing in them changes, whatever their code does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.errors import UserError


class FrozenParts:
    """The frozen modules of a model, with the values of their buffers.

    A module is frozen if the longest prefix that matches its name is frozen, or if it has parameters, directly or in
    its children, and none of them requires a gradient. What has no parameters (dropout, an image pool) is frozen with
    the module that contains it.

    A frozen module stays in evaluation mode, so that batch norms keep their statistics, dropout is off, and spectral
    norms do not iterate. Not every module looks at its mode, so buffers are also reset to their values. Parameters
    that require no gradient and are frozen by a prefix are reset too, since a head may update them itself.

    Args:
        model: the model; gradients of frozen parameters are switched off.
        parts: whether the modules, parameters and buffers under a prefix are frozen, by prefix.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, bool]) -> None:
        named = list(model.named_parameters(remove_duplicate=False))
        chosen = {name: p for name, p in named if parts.get(longest_prefix(name, parts), False)}
        updated = {id(p) for p in chosen.values() if not p.requires_grad}  # the code of a head may update these
        for parameter in chosen.values():
            parameter.requires_grad_(False)
        modules = dict(_frozen_modules(model, parts))
        frozen = set(modules.values())
        self._whole: list[nn.Module] = []  # the outermost of those that are frozen with all their children
        self._alone: list[nn.Module] = []
        inside: set[nn.Module] = set()
        for module in modules.values():
            if module in inside:
                continue
            if frozen.issuperset(module.modules()):
                self._whole.append(module)
                inside.update(module.modules())
            else:
                self._alone.append(module)
        chosen |= {f"{name}.{key}": p for name, m in modules.items() for key, p in m.named_parameters(recurse=False)}
        self._parameters = {name: p for name, p in chosen.items() if id(p) not in updated}
        self._kept: list[tuple[dict[str, Any], str]] = [(m._buffers, key) for m in frozen for key in m._buffers]
        self._kept += [(m._parameters, key) for m in model.modules() for key, p in m._parameters.items()
                       if id(p) in updated]  # fmt: skip
        self._values: list[Tensor | None] = []
        self.remember()

    def remember(self) -> None:
        """Take the present values as those to keep; called after weights have been loaded."""
        present = [owner[key] for owner, key in self._kept]
        self._values = [None if value is None else value.detach().clone() for value in present]

    @torch.no_grad()
    def reset(self) -> None:
        """Give everything that is kept its value again."""
        for i, (owner, key) in enumerate(self._kept):
            value, present = self._values[i], owner.get(key)
            if value is None or present is None or present.shape != value.shape:
                owner[key] = None if value is None else value.clone()
                continue
            if value.device != present.device:  # the model has been moved: the copies stay beside it from now on
                value = self._values[i] = value.to(present.device)
            present.copy_(value)

    def evaluation_mode(self) -> None:
        """Put all frozen modules into evaluation mode; their children that are not frozen stay as they are."""
        for module in self._whole:
            module.eval()
        for module in self._alone:
            module.training = False

    def versions(self) -> list[int]:
        """How often each frozen parameter has been written to."""
        return [parameter._version for parameter in self._parameters.values()]

    def check(self, before: list[int]) -> None:
        """Raise ``UserError`` if a frozen parameter has been written to since :meth:`versions` returned ``before``."""
        for (name, parameter), version in zip(self._parameters.items(), before, strict=True):
            if parameter._version != version:
                raise UserError(
                    f"'{name}' requires no gradient and is frozen, but the code of its module updates it; "
                    "hold weights that a module updates itself in buffers of a module without parameters"
                )


def longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    """The longest of the prefixes that ``name`` is, or lies under; empty if there is none."""
    return max((prefix for prefix in prefixes if name == prefix or name.startswith(f"{prefix}.")), key=len, default="")


def part_names(model: nn.Module) -> list[str]:
    """All names that a prefix can match: of modules, parameters and buffers."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    return modules + [name for name, _ in tensors if "." in name]  # without the mean and deviation of pixels


def _frozen_modules(model: nn.Module, parts: Mapping[str, bool]) -> Iterator[tuple[str, nn.Module]]:
    """Frozen modules by name, each before its children."""
    without_gradient = {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    }
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = longest_prefix(name, parts)
        steps = name.split(".")
        around = {".".join(steps[:end]) for end in range(max(prefix.count(".") + 1, 1), len(steps) + 1)}
        if name and (parts.get(prefix, False) or not without_gradient.isdisjoint(around)):
            yield name, module
