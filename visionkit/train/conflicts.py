"""Do the heads of a pipeline pull their shared layers one way? Measured on its own data, one backward pass a head."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from visionkit.config import Pipeline, build_component
from visionkit.data.loader import Feed, train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels
from visionkit.errors import RunError, UserError
from visionkit.layers.fast_conv import to_channels_last
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.model.run import RunFolder, load_state
from visionkit.train.balance import Balancer
from visionkit.train.optim import freeze_parts, load_initial_weights
from visionkit.types import MixedBatch

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager

SHARED = "all shared layers"
CLEAR = 0.05
"""A cosine nearer to 0 than this is called unrelated: gradients of millions of numbers are rarely far from it."""

LOUD = 5.0
"""How many times larger one gradient is than another before it is worth a word."""


@dataclass(frozen=True)
class Norm:
    """The norm of one head's gradient: mean and standard deviation over the batches that are labelled for it."""

    mean: float
    spread: float
    batches: int


@dataclass(frozen=True)
class Pair:
    """How the gradients of two heads lie to one another.

    Attributes:
        heads: their names.
        cosine: mean over the batches that both have learnt from; that of their average gradients where there is none.
        error: standard error of that mean; ``None`` with fewer than two batches.
        negative: share of these batches in which it was below 0; ``None`` where there was none.
        batches: how many they were; 0: the two never shared one, and gradients of different batches are compared.
        of_averages: cosine of the two gradients, each averaged over all batches of its head.
        ratio: norm of the first divided by that of the second, means.
    """

    heads: tuple[str, str]
    cosine: float
    error: float | None
    negative: float | None
    batches: int
    of_averages: float
    ratio: float

    @property
    def verdict(self) -> str:
        """``"agree"`` or ``"conflict"`` where the cosine is beyond :data:`CLEAR` and two standard errors from 0 (twice
        :data:`CLEAR` where there is no such error), else ``"unrelated"``."""
        error = CLEAR if self.error is None else self.error
        if abs(self.cosine) < max(CLEAR, 2 * error):
            return "unrelated"
        return "agree" if self.cosine > 0 else "conflict"


@dataclass
class Part:
    """What was found in one part of the shared layers: norms by head, and every pair that could be compared."""

    parameters: int
    norms: dict[str, Norm] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)

    def cosine(self, one: str, other: str) -> float:
        """Of two heads, in any order; not a number where they could not be compared."""
        if one == other:
            return 1.0 if one in self.norms else math.nan
        return next((pair.cosine for pair in self.pairs if set(pair.heads) == {one, other}), math.nan)


@dataclass
class Conflicts:
    """What was found for a pipeline.

    Attributes:
        heads: those that are trained on something, in the pipeline's order.
        batches: how many were looked at, in the mixture that training sees.
        parts: by name, :data:`SHARED` first, then ``"backbone"`` and ``"neck"`` where there are both.
        sources: by name, the same for batches of one source alone, in all shared layers; only where there are several
            sources, and only those that feed two heads or more.
    """

    heads: list[str]
    batches: int
    parts: dict[str, Part]
    sources: dict[str, Part]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; what could not be computed is ``None``."""
        return {
            "heads": self.heads,
            "batches": self.batches,
            "parts": {name: _plain(part) for name, part in self.parts.items()},
            "sources": {name: _plain(part) for name, part in self.sources.items()},
        }


def find_conflicts(
    pipeline: Pipeline,
    plugins: PluginManager,
    *,
    batches: int = 20,
    run: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> Conflicts:
    """Measure a pipeline on its own training split, as training begins or with the weights of a run.

    Args:
        pipeline: what would be trained.
        plugins: where its components are looked up.
        batches: how many of the mixture, and how many of each source alone.
        run: a run folder whose weights are taken; ``None``: the pipeline's own (``train.init``, else fresh ones).
        device: where the model runs.

    Raises:
        UserError: fewer than two heads, nothing that they share and train, no data, or a loss that is not finite.
    """
    if len(pipeline.heads) < 2:
        raise pipeline.fail(("heads",), "one head alone has nobody to conflict with; give the pipeline two or more")
    train = pipeline.train
    torch.manual_seed(train.seed)
    sources = build_sources(pipeline, plugins, "train")
    if not sources:
        raise pipeline.fail(("sources",), "nothing to measure on: no source has a `train` split")
    # As in training, where a head may take its classes from held-out data alone.
    labels = resolve_labels(pipeline, plugins, sources, build_sources(pipeline, plugins, "val"))
    model = build_model(pipeline, plugins, labels)
    if run is not None:
        load_state(model, RunFolder(Path(run)).require().weights(), str(run))
    else:
        load_initial_weights(model, pipeline)
    freeze_parts(model, pipeline)
    model.to(device).train()
    if train.channels_last:
        to_channels_last(model)
    names = model.loss_names()
    balancer: Balancer = build_component(plugins, "balancer", train.balancer, pipeline, names)
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)

    def look(at: Sequence[Feed]) -> dict[str, Part]:
        loader = train_loader(at, batch_size=train.batch_size, seed=train.seed, steps=batches,
                              workers=train.workers, on_error=train.on_error,
                              size_divisor=train.size_divisor)  # fmt: skip
        ready = (b.to(device).normalised(model.mean, model.std, channels_last=train.channels_last) for b in loader)
        return measure(model, ready, balancer)

    parts = look(feeds)
    several = [feed for feed in feeds if len(feeds) > 1 and len(feed.heads) > 1]
    alone = {feed.name: look([feed])[SHARED] for feed in several}
    heads = [name for name in pipeline.heads if name in parts[SHARED].norms]
    return Conflicts(heads, batches, parts, alone)


def measure(model: MultiTaskModel, batches: Iterable[MixedBatch], balancer: Balancer) -> dict[str, Part]:
    """Compare the gradients of all heads over some normalised batches; the model keeps its weights.

    Args:
        model: in training mode.
        batches: each is gone through once forward, and once backward for every head that it is labelled for.
        balancer: its base weights count as in training.

    Returns:
        By part, as in :class:`Conflicts`.
    """
    layers = shared_layers(model)
    parameters = list(itertools.chain(*layers.values()))
    products: dict[str, list[Products]] = {name: [] for name in layers}
    sums: dict[str, list[Tensor]] = {}
    for batch in batches:
        found = dict(head_gradients(model, batch, balancer, parameters))
        for head, gradient in found.items():
            before = sums.setdefault(head, [torch.zeros_like(g) for g in gradient])
            torch._foreach_add_(before, gradient)
        for name, own in _by_layers(found, layers).items():
            products[name].append(_products(own))
    sums = {head: sums[head] for head in model.order if head in sums}
    of_sums = {name: _products(own) for name, own in _by_layers(sums, layers).items()}
    parts = {SHARED: _part(parameters, [_added(each) for each in zip(*products.values())], _added(of_sums.values()))}
    if len(layers) > 1:
        parts |= {name: _part(own, products[name], of_sums[name]) for name, own in layers.items()}
    return parts


def shared_layers(model: MultiTaskModel) -> dict[str, list[nn.Parameter]]:
    """Trained parameters before the heads, of ``"backbone"`` and ``"neck"``."""
    parts = {"backbone": model.backbone, "neck": model.neck}
    found = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items() if part}
    found = {name: parameters for name, parameters in found.items() if parameters}
    if not found:
        raise UserError("the heads share nothing that is trained: there is no backbone, or all of it is frozen")
    return found


def head_gradients(
    model: MultiTaskModel, batch: MixedBatch, balancer: Balancer, parameters: Sequence[nn.Parameter]
) -> Iterator[tuple[str, list[Tensor]]]:
    """The gradient of each head that the batch is labelled for, in float32, one a parameter.

    Raises:
        RunError: a loss is not finite.
    """
    losses, _ = model.losses(batch)
    totals = balancer.totals(losses)
    learnt = [head for head in totals if batch.labelled(head)]
    for i, head in enumerate(learnt):
        if not torch.isfinite(totals[head]):
            raise RunError(f"the loss of head '{head}' is {totals[head].item()}; its gradient says nothing")
        found = torch.autograd.grad(
            totals[head], list(parameters), retain_graph=i < len(learnt) - 1, allow_unused=True, materialize_grads=True
        )
        yield head, [gradient.float() for gradient in found]


Products = dict[tuple[str, str], float]
"""Inner products of the gradients of one batch, by pairs of heads in their order, each with itself among them."""


def _by_layers(
    gradients: Mapping[str, Sequence[Tensor]], layers: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, dict[str, Sequence[Tensor]]]:
    found, start = {}, 0
    for name, own in layers.items():
        found[name] = {head: gradient[start : start + len(own)] for head, gradient in gradients.items()}
        start += len(own)
    return found


def _products(gradients: Mapping[str, Sequence[Tensor]]) -> Products:
    pairs = list(itertools.combinations_with_replacement(gradients, 2))
    dots = [torch.stack([(a * b).sum() for a, b in zip(gradients[one], gradients[other])]) for one, other in pairs]
    return dict(zip(pairs, torch.stack(dots).sum(1).tolist())) if pairs else {}


def _added(parts: Iterable[Products]) -> Products:
    """Of backbone and neck together."""
    first, *rest = parts
    return {pair: value + sum(other[pair] for other in rest) for pair, value in first.items()}


def _part(parameters: Sequence[nn.Parameter], batches: Sequence[Products], sums: Products) -> Part:
    norms: dict[str, list[float]] = {}
    cosines: dict[tuple[str, str], list[float]] = {}
    for products in batches:
        for (one, other), value in products.items():
            length = math.sqrt(products[one, one] * products[other, other])
            if one == other:
                norms.setdefault(one, []).append(length**0.5)
            elif length > 0:
                cosines.setdefault((one, other), []).append(value / length)
    found = {
        head: Norm(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else 0.0, len(each))
        for head, each in norms.items()
    }
    pairs = []
    for (one, other), value in sums.items():
        length = math.sqrt(sums[one, one] * sums[other, other])
        if one != other and length > 0:
            seen = cosines.get((one, other)) or cosines.get((other, one)) or []
            pairs.append(_pair((one, other), seen, value / length, found[one].mean / found[other].mean))
    return Part(sum(p.numel() for p in parameters), found, pairs)


def _pair(heads: tuple[str, str], found: Sequence[float], average: float, ratio: float) -> Pair:
    if not found:
        return Pair(heads, average, None, None, 0, average, ratio)
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    negative = sum(cosine < 0 for cosine in found) / len(found)
    return Pair(heads, statistics.fmean(found), error, negative, len(found), average, ratio)


def _plain(part: Part) -> dict[str, Any]:
    return {
        "parameters": part.parameters,
        "norms": {head: vars(norm) for head, norm in part.norms.items()},
        "pairs": [{**vars(pair), "heads": list(pair.heads), "verdict": pair.verdict} for pair in part.pairs],
    }


def sentence(pair: Pair) -> str:
    """What a pair of heads means to one another."""
    if pair.batches:
        found = f"mean cosine {pair.cosine:+.2f}, negative in {pair.negative:.0%} of {pair.batches} batches"
    else:
        found = f"cosine of their average gradients {pair.cosine:+.2f}; they never share a batch"
    verb, means = {
        "agree": ("agree", "what one learns helps the other"),
        "unrelated": ("are unrelated", "neither clearly helps or hinders the other"),
        "conflict": ("conflict", "each undoes part of what the other learns"),
    }[pair.verdict]
    return f"{pair.heads[0]} and {pair.heads[1]} {verb} ({found}): {means}."


def hints(part: Part) -> list[str]:
    """What may help, a line each; nothing where nothing needs help."""
    lines = []
    if any(pair.verdict == "conflict" for pair in part.pairs):
        lines.append(
            "Against the conflict: balancer upgrad, pcgrad or cagrad; or let one of the two share fewer layers."
        )
    norms = sorted((norm.mean, head) for head, norm in part.norms.items() if norm.mean > 0)
    if norms and norms[-1][0] >= LOUD * norms[0][0]:
        (low, quiet), (high, loud) = norms[0], norms[-1]
        lines.append(f"{loud} pulls {high / low:.2g} times as hard as {quiet}: balancer gradnorm or imtl_l, "
                     f"or a smaller weight for {loud}, evens that out.")  # fmt: skip
    return lines
