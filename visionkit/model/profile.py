"""What a model costs, part by part, and what its heads save by sharing one backbone."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from visionkit.layers.fast_conv import to_channels_last
from visionkit.model.base import Head
from visionkit.model.graph import MultiTaskModel
from visionkit.types import Detections, ImageInfo, MixedBatch, RegionOutput


@dataclass
class Cost:
    """What one part costs for one batch.

    Attributes:
        parameters: trained or not; buffers are not counted.
        flops: floating-point operations of products and convolutions, a multiplication and an addition being two; what
            runs outside torch's own operators (RoIAlign, suppression) is not counted.
        milliseconds: median over the repetitions; of a head, ``forward`` and ``predict``.
        peak_bytes: most memory that tensors made by the part hold at once, kernels' own workspace not included;
            ``None`` of a sum of parts.
    """

    parameters: int = 0
    flops: int = 0
    milliseconds: float = 0.0
    peak_bytes: int | None = None


@dataclass
class Network:
    """A network inside a head that trains its networks apart.

    Attributes:
        parameters: trained or not.
        phase: in which it is trained; ``"frozen"`` if it never is.
    """

    parameters: int
    phase: str


@dataclass
class Profile:
    """The cost of a model.

    Attributes:
        total: the whole model, every head on one pass over the backbone.
        parts: ``"backbone"``, ``"neck"`` and ``"heads/NAME"``.
        alone: each head as a model of its own: the sum of backbone, neck, the heads it reads, and itself.
        separate: the heads that no other head reads; one model for each of them is what sharing is held against.
        boxes: how many boxes an image branches on boxes were given, or ``None`` where no head reads boxes.
        networks: ``"heads/NAME"`` to its networks by name, of heads that train them in several phases or keep some
            frozen: generators and discriminators.
    """

    total: Cost
    parts: dict[str, Cost]
    alone: dict[str, Cost]
    separate: list[str]
    boxes: int | None
    networks: dict[str, dict[str, Network]] = field(default_factory=dict)

    def sharing(self) -> dict[str, Any]:
        """The shared model against one for each head in ``separate`` (a mask model gives its boxes too)."""
        models = [self.alone[name] for name in self.separate]
        measures = ("parameters", "flops", "milliseconds")
        sums = {what: sum(getattr(cost, what) for cost in models) for what in measures}
        return {
            "models": self.separate,
            "separate": sums,
            "times_fewer": {what: sums[what] / max(getattr(self.total, what), 1e-9) for what in measures},
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {
            "total": asdict(self.total),
            "parts": {name: asdict(cost) for name, cost in self.parts.items()},
            "alone": {name: asdict(cost) for name, cost in self.alone.items()},
            "sharing": self.sharing(),
            "boxes": self.boxes,
            "networks": {
                head: {name: asdict(network) for name, network in own.items()} for head, own in self.networks.items()
            },
        }


def profile_model(
    model: MultiTaskModel,
    size: tuple[int, int] = (480, 640),
    *,
    images: int = 1,
    device: torch.device | str = "cpu",
    boxes: int = 100,
    repeats: int = 5,
) -> Profile:
    """Measure a model on random images.

    How many boxes a detector finds decides what the branches on them cost, and untrained weights find none or hundreds.
    So those branches are given ``boxes`` random ones an image, of 1/32 to 1/2 of its sides.

    Args:
        model: moved to ``device`` and set to evaluation, in channels_last as in training and inference.
        size: (height, width) of the images, rounded up to multiples of 32 as loaders pad them.
        images: in the batch.
        boxes: given to heads that read another's boxes, an image.
        repeats: passes that are timed, after one that is not.
    """
    model = model.to(device).eval()
    to_channels_last(model)
    batch = _random_batch(model, size, images, device)
    walk = _Walk(model, batch, boxes)
    with torch.inference_mode():
        walk.run(lambda _, step: step())  # warm-up
        peaks: dict[str, int] = {}
        with _Allocations() as everything:
            walk.run(lambda name, step: _peak(everything, peaks, name, step))
        flops: dict[str, int] = {}
        walk.run(lambda name, step: _flops(flops, name, step))
        times: dict[str, list[float]] = {}
        for _ in range(repeats):
            walk.run(lambda name, step: _time(times, name, step, torch.device(device)))
    modules = {"backbone": model.backbone, "neck": model.neck, **{f"heads/{n}": model.head(n) for n in model.order}}
    parts = {
        name: Cost(_count(module), flops[name], statistics.median(times[name]) * 1e3, peaks[name])
        for name, module in modules.items()
        if module is not None
    }
    whole = [sum(one) for one in zip(*times.values())]
    total = Cost(_count(model), sum(flops.values()), statistics.median(whole) * 1e3, everything.peak)
    read = {other for ports in model.reads.values() for other in ports.values()}
    return Profile(
        total=total,
        parts=parts,
        alone={name: _sum([parts[part] for part in _needed(model, name, parts)]) for name in model.order},
        separate=[name for name in model.order if name not in read],
        boxes=boxes if walk.fixed else None,
        networks={f"heads/{name}": networks for name in model.order if (networks := networks_of(model.head(name)))},
    )


def networks_of(head: Head) -> dict[str, Network]:
    """The networks of a head by name, with the phase that trains each; none where one phase trains them all."""
    phase_of = {id(p): phase for phase, parameters in head.phases().items() for p in parameters}
    found = {
        name: Network(_count(part), phase_of.get(id(next(part.parameters())), "frozen"))
        for name, part in head.named_children()
        if _count(part)
    }
    return found if len({network.phase for network in found.values()}) > 1 else {}


class _Walk:
    """One pass over the model in its parts, each handed to ``around(name, step)``, which runs it."""

    def __init__(self, model: MultiTaskModel, batch: MixedBatch, boxes: int) -> None:
        self.model, self.batch = model, batch
        read = {other for ports in model.reads.values() for other in ports.values()}
        self.fixed = {
            name: _random_boxes(batch, boxes, len(model.head(name).labels))
            for name in sorted(read)
            if issubclass(model.head(name).output, RegionOutput)
        }

    def run(self, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        model = self.model
        features: dict[str, Tensor] = {}
        if model.backbone is not None:
            features = around("backbone", partial(model.backbone, self.batch.images))
        if model.neck is not None:
            features = {**features, **around("neck", partial(model.neck, features))}
        outputs: dict[str, Any] = {}
        for name in model.order:
            outputs[name] = around(f"heads/{name}", partial(self._head, name, features, outputs))
            if name in self.fixed:
                # From here on it answers with these boxes, and is in all else what the head made.
                outputs[name].__dict__["detections"] = partial(list, self.fixed[name])

    def _head(self, name: str, features: Mapping[str, Tensor], outputs: Mapping[str, Any]) -> Any:
        head = self.model.head(name)
        view = self.batch.view(name, range(len(self.batch)), targets=False)
        upstream = {port: outputs[other] for port, other in self.model.reads[name].items()}
        output = head({level: features[level] for level in head.levels}, view, {**upstream, "memory": None})
        head.predict(output, view)
        return output


def _random_batch(model: MultiTaskModel, size: tuple[int, int], images: int, device: torch.device | str) -> MixedBatch:
    height, width = (-(-side // 32) * 32 for side in size)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
    info = tuple(ImageInfo(i, "", size, size) for i in range(images))
    mean, std = model.get_buffer("mean"), model.get_buffer("std")
    return MixedBatch(pixels, info, {}).to(device).normalised(mean, std)


def _random_boxes(batch: MixedBatch, count: int, classes: int) -> list[Detections]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for info in batch.info:
        sides = torch.tensor((info.size[1], info.size[0]))
        extent = sides * 2.0 ** -(torch.rand(count, 2, generator=generator) * 4 + 1)
        corner = torch.rand(count, 2, generator=generator) * (sides - extent)
        labels = torch.randint(0, classes, (count,), generator=generator)
        boxes = Detections(torch.cat((corner, corner + extent), 1), torch.linspace(1, 0.1, count), labels)
        found.append(Detections(*(t.to(batch.images.device) for t in (boxes.boxes, boxes.scores, boxes.labels))))
    return found


def _needed(model: MultiTaskModel, name: str, parts: Mapping[str, Cost]) -> list[str]:
    """The parts that head ``name`` would need as a model of its own."""
    heads, waiting = {name}, [name]
    while waiting:
        new = set(model.reads[waiting.pop()].values()) - heads
        heads |= new
        waiting += new
    shared = ("backbone", "neck") if any(model.head(one).levels for one in heads) else ()
    return [part for part in parts if part in shared or part.removeprefix("heads/") in heads]


def _sum(costs: list[Cost]) -> Cost:
    return Cost(
        sum(c.parameters for c in costs),
        sum(c.flops for c in costs),
        sum(c.milliseconds for c in costs),
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _time(times: dict[str, list[float]], name: str, step: Callable[[], Any], device: torch.device) -> Any:
    start = _now(device)
    result = step()
    times.setdefault(name, []).append(_now(device) - start)
    return result


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels are only queued; the clock must wait for them
    return time.perf_counter()


def _flops(flops: dict[str, int], name: str, step: Callable[[], Any]) -> Any:
    with FlopCounterMode(display=False) as counter:
        result = step()
    flops[name] = counter.get_total_flops()
    return result


def _peak(allocations: _Allocations, peaks: dict[str, int], name: str, step: Callable[[], Any]) -> Any:
    before, so_far = allocations.now, allocations.peak
    allocations.peak = before
    result = step()
    peaks[name] = allocations.peak - before
    allocations.peak = max(allocations.peak, so_far)
    return result


class _Allocations(TorchDispatchMode):
    """Bytes of all tensors that operators have made and that are still alive; the same on every device."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._take_in(tensor.untyped_storage(), before)
        return result

    def _take_in(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage._cdata
        if key in before or key in self._seen:  # a view, or written in place
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size
