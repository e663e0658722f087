"""Evaluate every head of a model on every source that is labelled for it."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from visionkit.config import ComponentConfig, Pipeline, build_component
from visionkit.data.base import Sample, Source
from visionkit.data.loader import Feed, Skipped, eval_loader, readable
from visionkit.data.wiring import build_feeds
from visionkit.draw import comparison, encode_image, visualization
from visionkit.evaluate.base import Evaluator
from visionkit.model.graph import MultiTaskModel
from visionkit.model.refine import predict_refined
from visionkit.model.run import weights_digest
from visionkit.results.codec import CodecError, decode, encode
from visionkit.results.files import json_text, safe_name, write_atomically, write_optional
from visionkit.results.journal import JOURNAL, Journal, file_stamp
from visionkit.types import ImageInfo, LabelSet, MixedBatch, PanopticPrediction, Prediction, Target
from visionkit.types.device import all_on_host
from visionkit.types.processes import gather_objects

if TYPE_CHECKING:
    from visionkit.plugins import PluginManager

log = logging.getLogger("visionkit.evaluate")


def evaluate_model(
    model: MultiTaskModel,
    pipeline: Pipeline,
    plugins: PluginManager,
    labels: Mapping[str, LabelSet],
    sources: Mapping[str, Source],
    *,
    device: torch.device | str = "cpu",
    out: Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    report: Callable[[str, int, int], None] | None = None,
    on_metrics: Callable[[dict[str, float]], None] | None = None,
    resume: bool = False,
) -> dict[str, float]:
    """Metrics by ``source/head/metric``.

    With ``out``, every image is written to a journal (:mod:`visionkit.results.journal`) as soon as it is predicted.
    The metrics of a source are written to ``metrics.json`` as soon as they are known, then the results files, and
    visualizations last: whatever happens to them costs nothing else.

    Args:
        model: on ``device``; left in the mode it was in.
        pipeline, plugins, labels: what it was built from.
        sources: to evaluate on, by name.
        device: where images go.
        out: a run folder to write predictions and pictures to.
        rank, world_size: this process and the number of processes that share the images.
        report: called with source name, images done and images in all.
        on_metrics: called with all metrics, before visualizations are drawn.
        resume: continue the journals in ``out``, and predict only the batches with images that they do not hold.

    Raises:
        UserError: a broken image, a metric that does not read what its head predicts, a journal that belongs to
            something else, or a file that cannot be written.
    """
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    evaluations: list[_SourceEvaluation] = []
    try:
        for feed in build_feeds(pipeline, plugins, sources, labels, training=False):
            folder = None if out is None else out / "predictions" / feed.name
            one = _SourceEvaluation(model, pipeline, plugins, labels, feed, folder)
            if folder is not None:
                one.open_journal(torch.device(device), rank, world_size, resume=resume)
            try:
                one.run(torch.device(device), rank, world_size, report)
            finally:
                one.close_journal()
            metrics.update(one.results(world_size))
            if world_size > 1:
                one.gather_predictions(world_size)
            if out is not None and folder is not None and rank == 0:
                write_atomically(out / "metrics.json", json_text(metrics, indent=1))
                one.write_predictions(folder)
            if rank == 0:
                one.report_skipped(folder)
            evaluations.append(one.for_pictures())
        if on_metrics is not None:
            on_metrics(metrics)
        if out is not None and rank == 0:
            for one in evaluations:
                one.write_pictures(out / "pictures" / one.feed.name)
    finally:
        model.train(was_training)
    return metrics


def check_metrics(
    model: MultiTaskModel,
    pipeline: Pipeline,
    plugins: PluginManager,
    labels: Mapping[str, LabelSet],
    sources: Mapping[str, Source],
) -> None:
    """Build every metric once, so that what is wrong with one is told before the training and not after it.

    Raises:
        UserError: an unknown metric or argument, a file that is missing, a metric that reads something else.
    """
    for feed in build_feeds(pipeline, plugins, sources, labels, training=False):
        for head in feed.heads:
            _evaluators(model, pipeline, plugins, labels, feed, head)


class _SourceEvaluation:
    """All heads of one source, in one pass over its images."""

    def __init__(
        self,
        model: MultiTaskModel,
        pipeline: Pipeline,
        plugins: PluginManager,
        labels: Mapping[str, LabelSet],
        feed: Feed,
        folder: Path | None,
    ) -> None:
        self.model, self.pipeline, self.feed, self.labels, self.folder = model, pipeline, feed, labels, folder
        self.heads = [head for head in model.order if head in feed.heads]
        self.evaluators = {head: _evaluators(model, pipeline, plugins, labels, feed, head) for head in self.heads}
        self.source_labels = {head: source_labels(pipeline, feed, head, labels[head]) for head in self.heads}
        self.records: dict[str, list[list[dict[str, Any]]]] = {head: [] for head in self.heads}  # a list an image
        self.shown: list[tuple[int | str, dict[str, Prediction]]] = []  # by what no other sample has
        self.skipped = Skipped()
        self.journal: Journal | None = None

    def open_journal(self, device: torch.device, rank: int, world_size: int, *, resume: bool) -> None:
        """One journal for each process, which belongs to everything that its predictions depend on."""
        assert self.folder is not None
        everything = yaml.safe_load(self.pipeline.to_yaml())
        source = {k: v for k, v in everything["sources"][self.feed.name].items() if k not in ("train", "weight")}
        belongs_to = {
            "weights": weights_digest(self.model),
            **{key: everything.get(key) for key in ("backbone", "neck", "heads")},
            **{"source": source, "images": len(self.feed.source)},
            **{key: everything["evaluate"].get(key) for key in ("batch_size", "max_images", "transforms", "refine")},
            **{key: everything["train"].get(key) for key in ("size_divisor", "channels_last")},
            **{"device": device.type, "precision": _precision(device), "process": f"{rank} of {world_size}"},
        }
        name = JOURNAL if world_size == 1 else f"predictions.{rank}.jsonl"
        self.journal = Journal(self.folder / name, belongs_to, resume=resume)

    def close_journal(self) -> None:
        """Everything is in it; an evaluation that ends here can resume."""
        if self.journal is not None:
            self.journal.close()

    @torch.inference_mode()
    def run(
        self, device: torch.device, rank: int, world_size: int, report: Callable[[str, int, int], None] | None
    ) -> None:
        """Predict every image once, whatever the number of heads."""
        config = self.pipeline.evaluate
        with_targets = [h for h in self.heads if any(e.needs_targets for e in self.evaluators[h])]
        batches = eval_loader(
            self.feed,
            batch_size=config.batch_size,
            heads_with_targets=with_targets,
            workers=self.pipeline.train.workers,
            rank=rank,
            world_size=world_size,
            max_images=config.max_images,
            on_error=self.pipeline.train.on_error,
            size_divisor=self.pipeline.train.size_divisor,
            skipped=self.skipped,
        )
        total = min(len(self.feed.source), config.max_images or len(self.feed.source))
        done = 0
        for batch in batches:
            predictions = self._predictions(batch, device)
            for head in self.heads:
                theirs: Sequence[Target | None] = batch.targets.get(head, [None] * len(batch))
                for evaluator in self.evaluators[head]:
                    evaluator.add(predictions[head], theirs, batch.info)
            if self.folder is not None:
                self._keep(predictions, batch.info, self.folder)
            done += len(batch) * world_size
            if report:
                report(self.feed.name, min(done, total), total)

    def _predictions(self, batch: MixedBatch, device: torch.device) -> dict[str, list[Prediction]]:
        """By head, from the journal if it holds the whole batch: in the last bits, a prediction may depend on the
        other images of its batch. What the model predicts goes into the journal."""
        stored = [one for info in batch.info if (one := self._stored(info)) is not None]
        if len(stored) == len(batch):
            return {head: [one[head] for one in stored] for head in self.heads}
        fresh = self._predict(batch, device)
        if self.journal is not None:
            for row, info in enumerate(batch.info):
                predictions = _encoded({head: fresh[head][row] for head in self.heads})
                entry = {"image": info.key, "file": file_stamp(info.path), "predictions": predictions}
                if info.key not in self.journal or self.journal[info.key] != entry:
                    self.journal.append(info.key, entry)
        return fresh

    def _predict(self, batch: MixedBatch, device: torch.device) -> dict[str, list[Prediction]]:
        """What the model predicts, on the CPU, where the journal has it too."""
        train = self.pipeline.train
        ready = dataclasses.replace(batch, targets={}).to(device).normalised(
            self.model.mean, self.model.std, channels_last=train.channels_last
        )  # fmt: skip
        refine = self.pipeline.evaluate.refine
        found = predict_refined(self.model, ready, self.heads, refine, size_divisor=train.size_divisor)
        return all_on_host({head: list(found[head]) for head in self.heads})

    def _stored(self, info: ImageInfo) -> dict[str, Prediction] | None:
        """The predictions of an image that the journal holds, unless its file has changed since."""
        if self.journal is None or info.key not in self.journal:
            return None
        entry = self.journal[info.key]
        predictions = entry.get("predictions")
        if predictions is None or entry.get("file") != file_stamp(info.path) or predictions.keys() != set(self.heads):
            return None
        try:
            return {head: decode(data) for head, data in predictions.items()}
        except CodecError:
            return None

    def _keep(self, predictions: Mapping[str, Sequence[Prediction]], info: Sequence[ImageInfo], folder: Path) -> None:
        for row, image in enumerate(info):
            for head in self.heads:
                prediction, labels = predictions[head][row], self.source_labels[head]
                if isinstance(prediction, PanopticPrediction):
                    self.records[head].append(_write_panoptic(prediction, image, labels, folder / head))
                    continue
                found = prediction.to_coco(image.id, labels)
                self.records[head].append([record for record in found if record["category_id"] != -1])
            if len(self.shown) < self.pipeline.evaluate.pictures:
                self.shown.append((image.key, {head: predictions[head][row] for head in self.heads}))

    def results(self, world_size: int) -> dict[str, float]:
        """Metrics by ``source/head/metric``, over the images of all processes."""
        out: dict[str, float] = {}
        for head in self.heads:
            results: list[dict[str, float]] = []
            for evaluator in self.evaluators[head]:
                if world_size > 1:
                    states = gather_objects(evaluator.state())
                    evaluator.merge([s for r, s in enumerate(states) if r != torch.distributed.get_rank()])
                results.append(evaluator.result())
            out |= {f"{self.feed.name}/{head}/{metric}": value for metric, value in self._named(head, results).items()}
        return out

    def _named(self, head: str, results: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The metrics of all evaluators of a head; where two use one name (AP), under the names of their evaluators."""
        names = list(itertools.chain(*results))
        if len(set(names)) == len(names):
            return {name: value for result in results for name, value in result.items()}
        who = [config.name for config in metrics_of(self.pipeline, self.model, head)]
        return {f"{one}/{name}": value for one, own in zip(who, results) for name, value in own.items()}

    def gather_predictions(self, world_size: int) -> None:
        """Records and predictions of all processes, in the order of the images."""
        everyone = gather_objects((self.records, self.shown))
        self.records = {head: _in_turn([records[head] for records, _ in everyone]) for head in self.heads}
        self.shown = _in_turn([shown for _, shown in everyone])[: self.pipeline.evaluate.pictures]
        self.skipped = self.skipped.gathered(world_size)

    def write_predictions(self, folder: Path) -> None:
        """One COCO results file a head, for the heads whose predictions have such records."""
        for head, records in self.records.items():
            if any(records) or any(p[head].to_coco(0, self.labels[head]) for _, p in self.shown):
                write_atomically(folder / f"{head}.json", json.dumps(list(itertools.chain(*records))))

    def report_skipped(self, folder: Path | None) -> None:
        """How many images were left out, and why; ``skipped.json`` has the reason of each."""
        reasons = self.skipped.reasons.get(self.feed.name, {})
        if folder is not None and (reasons or (folder / "skipped.json").exists()):
            write_atomically(folder / "skipped.json", json.dumps([reasons[i] for i in sorted(reasons)], indent=1))
        for line in self.skipped.summary():
            log.warning("%s", line)

    def for_pictures(self) -> _SourceEvaluation:
        """Itself, without what only metrics and results files need."""
        self.evaluators, self.records = {}, {}
        return self

    def write_pictures(self, folder: Path) -> None:
        """Input, truth and prediction side by side, for the first images."""
        predictions = dict(self.shown)
        for index, sample in enumerate(self._samples_shown()):
            if sample.info.key not in predictions:  # it can be read, but was skipped for another reason
                continue
            name = str(sample.info.path or sample.info.id)
            data = visualization(lambda: self._comparison(sample, predictions[sample.info.key]), name)  # noqa: B023
            if data is not None:
                path = folder / f"{index:03d}_{safe_name(Path(name).stem)}.jpg"
                write_optional(path, data)
                for earlier in folder.glob(f"{index:03d}_*.jpg"):  # of another image that was the same one in turn
                    if earlier != path:
                        earlier.unlink(missing_ok=True)

    def _samples_shown(self) -> Iterator[Sample]:
        """The first images once more, with their targets. That one cannot be read costs visualizations alone."""
        tasks = {task for task, _ in self.feed.heads.values()}
        samples = readable(self.feed.source, tasks, self.pipeline.train.on_error, len(self.feed.source))
        try:
            yield from itertools.islice(samples, len(self.shown))
        except Exception as error:
            log.warning("%s: no more visualizations: %s", self.feed.name, (str(error) or repr(error)).splitlines()[0])

    def _comparison(self, sample: Sample, predictions: Mapping[str, Prediction]) -> np.ndarray:
        targets: dict[str, Target | None] = {}
        for head in self.heads:
            task, table = self.feed.heads[head]
            target = sample.targets.get(task)
            targets[head] = target if target is None or table is None else target.relabel(table)
        return comparison(sample.image.permute(1, 2, 0).numpy(), targets, predictions, self.labels)


def _encoded(predictions: Mapping[str, Prediction]) -> dict[str, Any] | None:
    """The predictions of an image for the journal; ``None`` if a plugin's type does not allow it."""
    try:
        return {head: encode(prediction) for head, prediction in predictions.items()}
    except CodecError as error:
        log.warning("the journal cannot hold %s; with --resume, its image is predicted again", error)
        return None


def _precision(device: torch.device) -> str:
    enabled = torch.is_autocast_enabled(device.type)
    return str(torch.get_autocast_dtype(device.type)) if enabled else "float32"


def _write_panoptic(
    prediction: PanopticPrediction, image: ImageInfo, labels: LabelSet, folder: Path
) -> list[dict[str, Any]]:
    """The record of an image, and its PNG, without which it says nothing, and which is too large to be kept."""
    known = torch.tensor([number != -1 for number in labels.ids])
    prediction = prediction.only(known[prediction.labels.cpu()])
    name = f"{safe_name(str(image.id))}.png"
    write_atomically(folder / name, encode_image(prediction.files()[""], ".png"))
    return [record | {"file_name": name} for record in prediction.to_coco(image.id, labels)]


def _in_turn(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """One item of each in turn: process ``r`` of ``n`` has seen the images r, r + n, r + 2 n ..."""
    missing = object()
    return [one for turn in itertools.zip_longest(*parts, fillvalue=missing) for one in turn if one is not missing]


def metrics_of(pipeline: Pipeline, model: MultiTaskModel, head: str) -> list[ComponentConfig]:
    """The evaluators of a head: those that the pipeline names, else its own."""
    configs = pipeline.evaluate.metrics.get(head)
    if configs is not None:
        return configs
    at = pipeline.heads[head].at
    return [ComponentConfig(name=name, args={}, at=at) for name in model.head(head).evaluators]


def _evaluators(
    model: MultiTaskModel,
    pipeline: Pipeline,
    plugins: PluginManager,
    labels: Mapping[str, LabelSet],
    feed: Feed,
    head: str,
) -> list[Evaluator]:
    label_map = pipeline.sources[feed.name].labels_for(head)
    built = []
    for config in metrics_of(pipeline, model, head):
        # Targets come relabelled; only an evaluator that reads the annotation file itself needs the map.
        takes_map = "label_map" in inspect.signature(plugins.load("evaluator", config.name)).parameters
        extra = {"label_map": label_map} if label_map and takes_map else {}
        evaluator = build_component(plugins, "evaluator", config, pipeline, feed.source, labels[head], **extra)
        if not issubclass(model.head(head).makes, evaluator.reads):
            raise pipeline.fail(
                config.at,
                f"metric '{config.name}' reads a {evaluator.reads.__name__}, but head '{head}' "
                f"makes a {model.head(head).makes.__name__}",
            )
        built.append(evaluator)
    return built


def source_labels(pipeline: Pipeline, feed: Feed, head: str, labels: LabelSet) -> LabelSet:
    """The labels of a head with the category ids of this source; -1 for a class that the source does not know."""
    theirs = feed.source.labels[feed.heads[head][0]]
    ids: dict[str, int | str] = dict.fromkeys(labels.names, -1)
    for name, number in zip(theirs.names, theirs.ids):
        mapped = pipeline.sources[feed.name].labels_for(head).get(name, name)
        if mapped is not None and ids.get(mapped) == -1:
            ids[mapped] = number
    return dataclasses.replace(labels, ids=tuple(ids.values()))
