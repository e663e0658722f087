"""A dry run of a pipeline: everything is built and used once, and what would fail is told before a long run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from visionkit.config import Pipeline, build_component, check_arguments
from visionkit.data.base import Source
from visionkit.data.images import image_header
from visionkit.data.label_maps import LabelCounts, label_map_problems
from visionkit.data.loader import Feed, OnError, Skipped, train_loader
from visionkit.data.wiring import build_feeds, build_sources, resolve_labels, untrained_heads
from visionkit.errors import DataError, UserError
from visionkit.evaluate.runner import evaluate_model
from visionkit.model.build import build_model
from visionkit.model.graph import MultiTaskModel
from visionkit.plugins import explain
from visionkit.train.optim import build_optimizers, freeze_parts, phases_of
from visionkit.types import ImageInfo, LabelSet, SemanticTarget

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager


@dataclass(frozen=True)
class Check:
    """One thing that was tried: ``what``, whether it went well, and what there is to say of it."""

    what: str
    ok: bool
    detail: str


def validate(pipeline: Pipeline, plugins: PluginManager, *, all_images: bool = False) -> Iterator[Check]:
    """Try everything that a training run would do, once; each check is yielded as soon as it is done.

    Args:
        pipeline: what to try.
        plugins: where its components are looked up.
        all_images: decode every image with its targets, not just one batch of each source.
    """
    found: dict[str, Any] = {}

    def attempt(what: str, work: Callable[[], tuple[Any, str]]) -> Check:
        try:
            found[what], detail = work()
            return Check(what, True, detail)
        except UserError as error:
            return Check(what, False, str(error))

    yield attempt("arguments", lambda: _arguments(pipeline, plugins))
    if "arguments" not in found:
        return
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        yield attempt(f"annotations ({split})", lambda split=split: _sources(pipeline, plugins, split))  # type: ignore[misc]
    training: dict[str, Source] = found.get("annotations (train)", {})
    held_out: dict[str, Source] = found.get("annotations (val)", {})
    if not training and not held_out:
        return
    yield attempt("model", lambda: _model(pipeline, plugins, training, held_out))
    if "model" not in found:
        return
    model, labels = found["model"]
    if training:
        yield attempt("train sources", lambda: _feeds(pipeline, plugins, training, labels))
        for feed in found.get("train sources", ()):
            yield attempt(f"one batch of '{feed.name}'", lambda feed=feed: _one_batch(pipeline, plugins, model, feed))  # type: ignore[misc]
    for name, source in held_out.items():
        yield attempt(
            f"evaluation on '{name}'",
            lambda name=name, source=source: _evaluate(pipeline, plugins, model, labels, name, source),  # type: ignore[misc]
        )
    if all_images:
        for split, sources in (("train", training), ("val", held_out)):
            for name, source in sources.items():
                work = partial(_decode_all, name, source, pipeline.train.on_error)
                yield attempt(f"every image of '{name}' ({split})", work)


def _arguments(pipeline: Pipeline, plugins: PluginManager) -> tuple[None, str]:
    check_arguments(pipeline, plugins)
    return None, "every key is known and well typed"


def _sources(
    pipeline: Pipeline, plugins: PluginManager, split: Literal["train", "val"]
) -> tuple[dict[str, Source], str]:
    sources = build_sources(pipeline, plugins, split)
    parts = []
    for name, source in sources.items():
        parts.append(f"{name}: {len(source)} images, {', '.join(sorted(source.tasks))}")
        parts += [f"{name}: {problem}" for problem in (*source.problems(), *label_map_problems(name, source))]
        for labels in (own for task, own in source.labels.items() if task == "keypoints" and own.keypoints):
            pairs = ", ".join(f"{labels.keypoints[i]} - {labels.keypoints[j]}" for i, j in labels.swaps)
            parts.append(f"{name}: {len(labels.keypoints)} keypoints; flipping an image swaps: {pairs or 'none'}")
    return sources, "\n".join(parts) or "no source has this split"


def _model(
    pipeline: Pipeline, plugins: PluginManager, sources: Mapping[str, Source], held_out: Mapping[str, Source]
) -> tuple[tuple[MultiTaskModel, dict[str, LabelSet]], str]:
    labels = resolve_labels(pipeline, plugins, sources, held_out)
    model = build_model(pipeline, plugins, labels)
    freeze_parts(model, pipeline)
    heads = model.loss_names()
    balancer = build_component(plugins, "balancer", pipeline.train.balancer, pipeline, heads)
    build_optimizers(model, phases_of(model), pipeline, balancer)
    count = sum(p.numel() for p in model.parameters())
    classes = ", ".join(f"{name} ({len(labels[name])} classes)" for name in model.order)
    told = [f"{name}: {problem}" for name in model.order for problem in model.head(name).problems()]
    return (model, labels), "\n".join([f"{count:,} parameters; heads: {classes}", *told])


def _feeds(
    pipeline: Pipeline, plugins: PluginManager, sources: Mapping[str, Source], labels: Mapping[str, LabelSet]
) -> tuple[list[Feed], str]:
    feeds = build_feeds(pipeline, plugins, sources, labels, training=True)
    unfed = untrained_heads(pipeline, plugins, feeds)
    told = "; ".join(f"{feed.name} feeds {', '.join(feed.heads)}" for feed in feeds)
    return feeds, told + (f"; NOT TRAINED by any source: {', '.join(unfed)}" if unfed else "")


def _one_batch(pipeline: Pipeline, plugins: PluginManager, model: MultiTaskModel, feed: Feed) -> tuple[None, str]:
    train, skipped = pipeline.train, Skipped()
    batches = train_loader([feed], batch_size=train.batch_size, seed=train.seed, steps=1, on_error=train.on_error,
                           size_divisor=train.size_divisor, skipped=skipped)  # fmt: skip
    batch = next(iter(batches)).normalised(model.mean, model.std, channels_last=train.channels_last)
    model.train()
    losses, _ = model.losses(batch)
    for head, named in losses.items():
        for name, value in named.items():
            if not torch.isfinite(value):
                raise UserError(f"loss '{name}' of head '{head}' is {value.item()}")
    torch.stack([v for named in losses.values() for v in named.values()]).sum().backward()
    model.zero_grad(set_to_none=True)
    shown = ", ".join(
        f"{head} {sum(v.item() for v in losses[head].values()):.3f}" for head in losses if batch.labelled(head)
    )
    size = f"{batch.images.shape[2]}x{batch.images.shape[3]}"
    detail = f"{len(batch)} images of {size}; losses: {shown}{_rotated(batch.info)}"
    return None, "\n".join([detail, *skipped.summary()])


def _evaluate(
    pipeline: Pipeline,
    plugins: PluginManager,
    model: MultiTaskModel,
    labels: Mapping[str, LabelSet],
    name: str,
    source: Source,
) -> tuple[None, str]:
    import dataclasses

    few = dataclasses.replace(pipeline.evaluate, max_images=pipeline.evaluate.batch_size)
    metrics = evaluate_model(model, dataclasses.replace(pipeline, evaluate=few), plugins, labels, {name: source})
    return None, f"{len(metrics)} metrics: {', '.join(sorted({key.split('/')[1] for key in metrics}))}"


def _decode_all(name: str, source: Source, on_error: OnError) -> tuple[None, str]:
    skipped = Skipped()
    broken: list[str] = []
    info = []
    counts = LabelCounts(source.labels.get("semantic", LabelSet(())))
    for index in range(len(source)):
        try:
            sample = source.load(index, source.tasks)
        except DataError as error:
            if on_error == "skip":
                skipped.add(name, index, str(error))
            else:
                broken.append(str(error))
            continue
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"unexpected {explain(error)}"
            broken.append(f"{source.describe(index)}: {text}")
            continue
        info.append(sample.info)
        if isinstance(target := sample.targets.get("semantic"), SemanticTarget):
            counts.add(target.labels.numpy())
    if broken:
        more = f" (and {len(broken) - 3} more)" if len(broken) > 3 else ""
        raise UserError("; ".join(broken[:3]) + more)
    if not info:
        raise UserError("; ".join(skipped.summary()))
    detail = f"{len(info)} images decoded{_rotated(info)}"
    return None, "\n".join([detail, *skipped.summary(), *counts.lines(counts.maps)])


def _rotated(info: Sequence[ImageInfo]) -> str:
    """How many of these images have an EXIF orientation, which annotations must have taken into account."""
    count = 0
    for path in {image.path for image in info if image.path}:
        try:
            count += image_header(path).orientation > 1
        except UserError:  # not an image file: a source may make images of anything
            continue
    text = f"; {count} of them rotated by their EXIF orientation (annotations must lie on the rotated image)"
    return text if count else ""
