"""The heads on their shared features: the one module that is trained, profiled and exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionkit.errors import UserError
from visionkit.model.base import Backbone, Head, Neck
from visionkit.model.failing import normalization_errors
from visionkit.model.frozen import FrozenParts
from visionkit.types import Features, Mean, MixedBatch, Output, Prediction
from visionkit.types.mean import divide
from visionkit.types.outputs import take_rows

Losses = dict[str, dict[str, Tensor]]
"""Scalars by head name and loss name."""

Branches = dict[str, dict[str, Tensor]]
"""The shared features that each head reads, by head name and level."""


@dataclass(frozen=True)
class Counts:
    """What the losses of one phase are means over.

    Attributes:
        losses: for each loss, in the order in which they are returned, the count that its sum is divided by.
        labelled: how many images each head has learned from.
    """

    losses: list[Tensor | float]
    labelled: dict[str, int]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            [one + two for one, two in zip(self.losses, other.losses, strict=True)],
            {head: count + other.labelled[head] for head, count in self.labelled.items()},
        )

    def of_all_processes(self, device: torch.device) -> Counts:
        """The sum over all processes of a distributed run; one exchange serves all losses and heads."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self
        own = [*self.losses, *self.labelled.values()]
        counts = torch.stack([torch.as_tensor(c, dtype=torch.float32, device=device) for c in own])
        torch.distributed.all_reduce(counts)
        losses, labelled = counts[: len(self.losses)], counts[len(self.losses) :]
        return Counts(list(losses), {head: int(n) for head, n in zip(self.labelled, labelled.tolist())})


class Step:
    """One batch on its way through the phases of a training step.

    Attributes:
        batch: normalised.
        phase: whose losses are asked for.
        outputs: what ``"main"`` made, for the phases after it.
        branch: hands the shared features to the heads; ``None`` hands every head the very same tensors. A balancer that
            weighs gradients where the heads branch off stands here.
        counts: after the forward pass, the counts of this batch in this process.
        whole: the counts of all batches of the step in all processes, which sums are divided by. ``None``: this batch
            is the only one, and the forward pass finds them.
        divide: whether losses are means; else they are returned as sums, which several batches need to find ``whole``.

    Not a dataclass, and no container: wrappers for precision and distribution look into those and convert what they
    find, and boxes in half precision are wrong boxes.
    """

    def __init__(self, batch: MixedBatch, branch: Callable[[Branches], Branches] | None = None) -> None:
        self.batch = batch
        self.phase = "main"
        self.outputs: dict[str, Any] | None = None
        self.branch = branch
        self.counts = Counts([], {})
        self.whole: Counts | None = None
        self.divide = True


class MultiTaskModel(nn.Module):
    """Backbone, neck and heads as one module.

    Args:
        backbone: ``None`` where no head reads features.
        neck: ``None`` where the heads read the backbone's own levels.
        heads: by name.
        reads: for each head with ports, port name -> name of the head it reads.

    Raises:
        UserError: a port without a head or with one of the wrong type or labels, or heads that read one another in a
            circle.
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
        self.heads = nn.ModuleDict(heads)
        self.reads = resolve_ports(heads, reads or {})
        self.order = sort_heads(list(heads), self.reads)
        for name, head in heads.items():
            head.connect({port: heads[other].labels for port, other in self.reads[name].items()})
        self.learning = [name for name in self.order if learns(heads[name])]
        mean, std = (backbone.mean, backbone.std) if backbone is not None else ((0.5,) * 3, (0.5,) * 3)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self._frozen: FrozenParts | None = None

    def freeze(self, parts: Mapping[str, bool]) -> None:
        """Freeze the parts whose longest prefix in ``parts`` is mapped to true, and those without any gradient."""
        self._frozen = FrozenParts(self, parts)

    def train(self, mode: bool = True) -> MultiTaskModel:
        """As for any module, but frozen parts stay in evaluation mode and have the values that they had."""
        super().train(mode)
        if self._frozen is not None:
            self._frozen.reset()
            self._frozen.evaluation_mode()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module."""
        if self._frozen is not None:
            self._frozen.reset()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module; what is loaded are the values that frozen parts keep."""
        result = super().load_state_dict(*args, **kwargs)
        if self._frozen is not None:
            self._frozen.remember()
        return result

    def loss_names(self) -> dict[str, tuple[str, ...]]:
        """The names of the losses of the main phase, by head; heads that learn nothing are left out."""
        return {name: tuple(self.head(name).loss_names) for name in self.learning}

    def local_buffers(self) -> dict[str, Tensor]:
        """By name, the buffers in which each process of a distributed run keeps values of its own: those that a module
        names in an attribute ``local_buffers``."""
        return {
            f"{path}.{name}".lstrip("."): getattr(module, name)
            for path, module in self.named_modules()
            if module is not self
            for name in getattr(module, "local_buffers", ())
        }

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
        branches: Mapping[str, Features],
        batch: MixedBatch,
        rows: Mapping[str, Sequence[int]],
        memory: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Outputs of the heads named in ``rows``, each over its rows of the batch, in the order of the graph.

        Args:
            branches: by head name, the levels that it reads.
            batch: normalised.
            rows: by head name.
            memory: what each head kept of the frame before; as in :meth:`predict`.
        """
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
            seen = {level: take_rows(value, mine, len(batch)) for level, value in branches[name].items()}
            outputs[name] = output = head(seen, batch.view(name, mine, targets=False), upstream)
            if not isinstance(output, head.output):
                raise UserError(
                    f"head '{name}': forward returns a {type(output).__name__}; it declares {head.output.__name__}"
                )
        return outputs

    def forward(self, step: Step) -> Losses:
        """Losses of the phase that ``step`` is in; its outputs are left there for the phases after it.

        Averaged over the processes and added up over the batches of the step, they are means over everything that was
        counted. A loss that is a scalar counts the images that its head has learned from.
        """
        found, step.outputs = self._losses(step.batch, step.phase, step.outputs, step.branch)
        labelled = {name: len(step.batch.labelled(name)) for name in found}
        listed = [loss for named in found.values() for loss in named.values()]
        own = [
            loss.count if isinstance(loss, Mean) else labelled[h]
            for h, named in found.items()
            for loss in named.values()
        ]
        step.counts = Counts(own, labelled)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if step.whole is None and step.divide:
            step.whole = step.counts.of_all_processes(step.batch.images.device)
            if world == 1:
                return _values(found)
        totals = [loss.total if isinstance(loss, Mean) else loss * count for loss, count in zip(listed, own)]
        if step.whole is not None:
            totals = [divide(total * world, count) for total, count in zip(totals, step.whole.losses)]
        left = iter(totals)
        return {head: {name: next(left) for name in named} for head, named in found.items()}

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
        found, outputs = self._losses(batch, phase, outputs)
        return _values(found), outputs

    def _losses(
        self,
        batch: MixedBatch,
        phase: str,
        outputs: dict[str, Any] | None,
        branch: Callable[[Branches], Branches] | None = None,
    ) -> tuple[dict[str, dict[str, Tensor | Mean]], dict[str, Any]]:
        """What :meth:`losses` returns, the losses as the heads give them."""
        written = self._frozen.versions() if self._frozen is not None else []
        with normalization_errors(self):
            result = self._losses_of_heads(batch, phase, outputs, branch)
        if self._frozen is not None:
            self._frozen.check(written)
        return result

    def _losses_of_heads(
        self,
        batch: MixedBatch,
        phase: str,
        outputs: dict[str, Any] | None,
        branch: Callable[[Branches], Branches] | None,
    ) -> tuple[dict[str, dict[str, Tensor | Mean]], dict[str, Any]]:
        labelled = {name: batch.labelled(name) if name in self.learning else [] for name in self.order}
        rows = self._rows_to_run(labelled)
        branches: Branches = {name: {} for name in self.order}
        if outputs is None:
            branches = self.branches(self.features(batch.images))
            branches = branch(branches) if branch else branches
            outputs = self.run_heads(branches, batch, rows)
        losses: dict[str, dict[str, Tensor | Mean]] = {}
        for name in self.learning:
            head, mine = self.head(name), labelled[name]
            if mine:
                output = outputs[name].rows([list(rows[name]).index(row) for row in mine], len(rows[name]))
                found = head.phase_losses(phase, output, batch.view(name, mine, targets=True))
                if found or phase in head.phases():
                    losses[name] = _checked(name, head, phase, found)
            elif phase in head.phases():
                losses[name] = self._zero_losses(name, phase, branches[name])
        return losses, outputs

    def branches(self, features: Features) -> Branches:
        """For each head, the levels that it reads."""
        return {name: {level: features[level] for level in self.head(name).levels} for name in self.order}

    def predict(
        self, batch: MixedBatch, heads: Iterable[str] | None = None, memory: dict[str, Any] | None = None
    ) -> dict[str, Sequence[Prediction]]:
        """Predictions by head, one an image; one pass over the backbone whatever the number of heads.

        Args:
            batch: normalised.
            heads: who is asked; ``None``: all.
            memory: for a clip, frame by frame: an empty dictionary at its start, in which heads that remember leave
                what they need of this frame for the next one. ``None``: every image stands by itself.
        """
        wanted = list(self.order if heads is None else heads)
        everything = list(range(len(batch)))
        rows = self._rows_to_run({name: everything if name in wanted else [] for name in self.order})
        outputs = self.run_heads(self.branches(self.features(batch.images)), batch, rows, memory)
        if mirrored := [name for name in wanted if self.head(name).mirrors]:
            self._join_mirrored(mirrored, outputs, batch)
        if memory is not None:
            memory.update({name: out.memory for name, out in outputs.items() if self.head(name).remembers})
        return {
            name: _listed(
                name,
                self.head(name),
                self.head(name).predict(outputs[name], batch.view(name, everything, targets=False)),
                len(batch),
            )
            for name in wanted
        }

    def _join_mirrored(self, names: Sequence[str], outputs: dict[str, Any], batch: MixedBatch) -> None:
        """Put what these heads say of the images and of their mirror images together into their ``outputs``."""
        seen, everything = batch.mirrored(), list(range(len(batch)))
        rows = self._rows_to_run({name: everything if name in names else [] for name in self.order})
        others = self.run_heads(self.branches(self.features(seen.images)), seen, rows)
        for name in names:
            view = batch.view(name, everything, targets=False)
            outputs[name] = self.head(name).join_mirrored(outputs[name], others[name], view)

    def _rows_to_run(self, labelled: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """A head runs on its own rows and on those of every head that reads it."""
        run = {name: set(labelled[name]) for name in self.order}
        for name in reversed(self.order):
            for other in self.reads[name].values():
                run[other] |= run[name]
        return {name: sorted(rows) for name, rows in run.items()}

    def _zero_losses(self, name: str, phase: str, features: Features) -> dict[str, Tensor | Mean]:
        # One element of each is enough to join the graph, and costs nothing. A head without parameters joins by those
        # of the heads that it would have taught.
        joined = [self.head(name), *(self.head(other) for other in self.reads[name].values())]
        parts = [p.flatten()[:1].sum() for head in joined for p in head.parameters() if p.requires_grad]
        parts += [features[level][:1, :1, :1, :1].sum() for level in features]
        zero = torch.stack(parts).sum() * 0.0 if parts else torch.zeros((), device=self.mean.device)
        return dict.fromkeys(names_of_losses(self.head(name), phase), zero)


def learns(head: Head | type[Head]) -> bool:
    """Whether a head has any loss; one that has none only joins what others have learnt."""
    return bool(head.loss_names or head.phase_loss_names)


def names_of_losses(head: Head, phase: str) -> tuple[str, ...]:
    """The losses that a head has in one phase; a phase that names none has one of its own name."""
    return head.loss_names if phase == "main" else head.phase_loss_names.get(phase, (phase,))


def _checked(name: str, head: Head, phase: str, losses: Mapping[str, Tensor | Mean]) -> dict[str, Tensor | Mean]:
    """The losses in the order in which they are declared: the same in every step and process."""
    declared = names_of_losses(head, phase)
    where = "" if phase == "main" else f" in phase '{phase}'"
    if not isinstance(losses, Mapping):
        raise UserError(f"head '{name}' gives a {type(losses).__name__} as losses{where}; it must be a mapping by name")
    for key, loss in losses.items():
        value = loss.total if isinstance(loss, Mean) else loss
        if not isinstance(value, Tensor) or value.ndim:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"head '{name}': loss '{key}'{where} is {what}; it must be a scalar tensor or a Mean of one"
            )
    if set(losses) != set(declared):
        raise UserError(
            f"head '{name}' gives losses {sorted(map(str, losses))}{where}, but declares {sorted(declared)}"
        )
    return {key: losses[key] for key in declared}


def _listed(name: str, head: Head, predictions: Any, count: int) -> Sequence[Prediction]:
    """The predictions of a head, if they are what it declares, one for each image."""
    if not isinstance(predictions, Sequence) or len(predictions) != count:
        what = (
            f"{len(predictions)} predictions"
            if isinstance(predictions, Sequence)
            else f"a {type(predictions).__name__}"
        )
        raise UserError(
            f"head '{name}': predict returns {what} for {count} images; it must be a list with one for each"
        )
    for prediction in predictions:
        if not isinstance(prediction, head.makes):
            raise UserError(
                f"head '{name}': predict returns a {type(prediction).__name__}; it declares {head.makes.__name__}"
            )
    return predictions


def _values(found: Mapping[str, Mapping[str, Tensor | Mean]]) -> Losses:
    """Every loss as the mean over what this process counted."""
    return {
        head: {name: loss.value() if isinstance(loss, Mean) else loss for name, loss in named.items()}
        for head, named in found.items()
    }


def resolve_ports(heads: Mapping[str, Head], reads: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Which head feeds each port: the one that is named, else the only one of the right type; ports that may stay open
    are fed by name alone."""
    resolved: dict[str, dict[str, str]] = {}
    for name, head in heads.items():
        given = dict(reads.get(name, {}))
        wanted_of = {**head.needs, **{port: wanted for port, wanted in head.may_read.items() if port in given}}
        if unknown := set(given) - set(wanted_of):
            ports = ", ".join((*head.needs, *head.may_read)) or "none"
            raise UserError(f"head '{name}' has no port '{sorted(unknown)[0]}' (its ports: {ports})")
        resolved[name] = {
            port: _feeder(name, port, wanted, given.get(port), heads) for port, wanted in wanted_of.items()
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
