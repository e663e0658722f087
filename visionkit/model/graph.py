"""The heads on their shared features: the one module that is trained, profiled and exported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.base import Backbone, Head, Neck
from visionkit.types import Features, MixedBatch, Output, Prediction
from visionkit.types.outputs import take_rows

Losses = dict[str, dict[str, Tensor]]
"""Scalars by head name and loss name."""


class Step:
    """One batch on its way through the phases of a training step.

    Not a dataclass, and no container: wrappers for precision and distribution look into those and convert what they
    find, and boxes in half precision are wrong boxes.
    """

    def __init__(self, batch: MixedBatch) -> None:
        self.batch = batch
        self.phase = "main"
        self.outputs: dict[str, Any] | None = None


class MultiTaskModel(nn.Module):
    """Backbone, neck and heads as one module.

    Args:
        backbone: ``None`` where no head reads features.
        neck: ``None`` where the heads read the backbone's own levels.
        heads: by name.
        reads: for each head with ports, port name -> name of the head it reads.

    Raises:
        UserError: a port without a head or with one of the wrong type, or heads that read one another in a circle.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone | None,
        neck: Neck | None,
        heads: Mapping[str, Head],
        reads: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        if taken := [name for name in heads if hasattr(nn.ModuleDict, name)]:
            raise UserError(f"a head cannot be called '{taken[0]}': torch keeps that name for itself")
        self.heads = nn.ModuleDict(heads)
        self.reads = resolve_ports(heads, reads or {})
        self.order = sort_heads(list(heads), self.reads)
        mean, std = (backbone.mean, backbone.std) if backbone is not None else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def head(self, name: str) -> Head:
        """One head, typed."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Every level that any head reads, from normalised images (B, 3, H, W)."""
        if self.backbone is None:
            return {}
        features = self.backbone(images)
        return {**features, **self.neck(features)} if self.neck is not None else features

    def run_heads(
        self,
        features: Features,
        batch: MixedBatch,
        rows: Mapping[str, Sequence[int]],
        memory: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Outputs of the heads named in ``rows``, each over its rows of the batch, in the order of the graph."""
        outputs: dict[str, Any] = {}
        for name in self.order:
            if not rows.get(name):
                continue
            head, mine = self.head(name), list(rows[name])
            upstream: dict[str, Any] = {}
            for port, other in self.reads[name].items():
                theirs = list(rows[other])
                upstream[port] = outputs[other].rows([theirs.index(row) for row in mine], len(theirs))
            if memory is not None:
                upstream["memory"] = memory.get(name)
            seen = {level: take_rows(features[level], mine, len(batch)) for level in head.levels}
            outputs[name] = head(seen, batch.view(name, mine, targets=False), upstream)
        return outputs

    def forward(self, step: Step) -> Losses:
        """Losses of the phase that ``step`` is in; its outputs are left there for the phases after it."""
        losses, step.outputs = self.losses(step.batch, step.phase, step.outputs)
        return losses

    def losses(
        self, batch: MixedBatch, phase: str = "main", outputs: dict[str, Any] | None = None
    ) -> tuple[Losses, dict[str, Any]]:
        """Losses of one phase, and the outputs that they come from.

        Each head learns from the rows that are labelled for it and from no others; where there is none, its losses are
        zeros that reach all its parameters, so that every process of a distributed run has the same graph.

        Args:
            batch: normalised.
            phase: whose losses.
            outputs: what ``"main"`` returned in this step, for the phases after it.
        """
        labelled = {name: batch.labelled(name) for name in self.order}
        rows = self._rows_to_run(labelled)
        features: dict[str, Tensor] = {}
        if outputs is None:
            features = self.features(batch.images)
            outputs = self.run_heads(features, batch, rows)
        losses: Losses = {}
        for name in self.order:
            head, mine = self.head(name), labelled[name]
            if mine:
                output = outputs[name].rows([list(rows[name]).index(row) for row in mine], len(rows[name]))
                losses[name] = head.phase_losses(phase, output, batch.view(name, mine, targets=True))
            elif phase in head.phases():
                losses[name] = self._zero_losses(head, features)
        return losses, outputs

    def predict(
        self, batch: MixedBatch, heads: Iterable[str] | None = None, memory: Mapping[str, Any] | None = None
    ) -> dict[str, Sequence[Prediction]]:
        """Predictions by head, one an image; one pass over the backbone whatever the number of heads."""
        wanted = list(self.order if heads is None else heads)
        everything = list(range(len(batch)))
        rows = self._rows_to_run({name: everything if name in wanted else [] for name in self.order})
        outputs = self.run_heads(self.features(batch.images), batch, rows, memory)
        return {
            name: self.head(name).predict(outputs[name], batch.view(name, everything, targets=False)) for name in wanted
        }

    def _rows_to_run(self, labelled: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """A head runs on its own rows and on those of every head that reads it."""
        run = {name: set(labelled[name]) for name in self.order}
        for name in reversed(self.order):
            for other in self.reads[name].values():
                run[other] |= run[name]
        return {name: sorted(rows) for name, rows in run.items()}

    @staticmethod
    def _zero_losses(head: Head, features: Features) -> dict[str, Tensor]:
        # One element of each is enough to join the graph, and costs nothing.
        parts = [p.flatten()[:1].sum() for p in head.parameters() if p.requires_grad]
        parts += [features[level][:1, :1, :1, :1].sum() for level in head.levels if level in features]
        zero = sum(parts, torch.zeros(())) * 0.0 if not parts else torch.stack(parts).sum() * 0.0
        return dict.fromkeys(head.loss_names, zero)


def resolve_ports(heads: Mapping[str, Head], reads: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Which head feeds each port: the one that is named, else the only one of the right type."""
    resolved: dict[str, dict[str, str]] = {}
    for name, head in heads.items():
        given = dict(reads.get(name, {}))
        if unknown := set(given) - set(head.needs):
            ports = ", ".join(head.needs) or "none"
            raise UserError(f"head '{name}' has no port '{sorted(unknown)[0]}' (its ports: {ports})")
        resolved[name] = {
            port: _feeder(name, port, wanted, given.get(port), heads) for port, wanted in head.needs.items()
        }
    return resolved


def _feeder(name: str, port: str, wanted: type[Output], given: str | None, heads: Mapping[str, Head]) -> str:
    fitting = [other for other, head in heads.items() if other != name and issubclass(head.output, wanted)]
    if given is None:
        if len(fitting) == 1:
            return fitting[0]
        found = f"{len(fitting)} heads give one: {', '.join(fitting)}" if fitting else "no head gives one"
        raise UserError(f"head '{name}' reads a {wanted.__name__} on its port '{port}', but {found}; "
                        f"name it with reads: {{{port}: HEAD}}")  # fmt: skip
    if given not in heads:
        raise UserError(f"head '{name}' reads '{given}' on its port '{port}', but there is no such head "
                        f"(heads: {', '.join(heads)})")  # fmt: skip
    if given not in fitting:
        raise UserError(f"port '{port}' of head '{name}' needs a {wanted.__name__}; "
                        f"head '{given}' gives a {heads[given].output.__name__}")  # fmt: skip
    return given


def sort_heads(names: Sequence[str], reads: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names in an order in which every head comes after those that it reads; the given order where it is free."""
    order: list[str] = []
    waiting = list(names)
    while waiting:
        ready = [name for name in waiting if all(other in order for other in reads[name].values())]
        if not ready:
            raise UserError(f"heads read one another in a circle: {', '.join(waiting)}")
        order.append(ready[0])
        waiting.remove(ready[0])
    return order
