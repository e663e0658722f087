"""Pictures of a run over time: what its heads make of the same few images, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from visionkit.config import Pipeline
from visionkit.data.base import Sample
from visionkit.data.loader import Feed, eval_loader, readable
from visionkit.draw import encode_image, sheet
from visionkit.draw.canvas import bounded
from visionkit.model.graph import MultiTaskModel
from visionkit.results.files import write_atomically
from visionkit.types import LabelSet, PictureTarget
from visionkit.types.device import all_on_host

IMAGES = 4
COLUMNS = 8
SIDE = 256


@torch.inference_mode()
def pictures_over_time(
    model: MultiTaskModel,
    pipeline: Pipeline,
    labels: Mapping[str, LabelSet],
    feeds: list[Feed],
    folder: Path,
    step: int,
    device: torch.device | str = "cpu",
) -> None:
    """For each head that makes pictures, ``folder/SOURCE/over_time_HEAD.jpg``: a row an image; the image, what was made
    of it at the steps so far, and its target.

    At most four images and eight steps are shown. What was made is kept in ``folder/SOURCE/over_time``, so a run that
    is resumed goes on with its sheet.

    Args:
        model: on ``device``; left in the mode it was in.
        pipeline, labels: what it was built from.
        feeds: to evaluate on.
        folder: of the pictures of the run.
        step: steps that are done.
        device: where images go.
    """
    was_training = model.training
    model.eval()
    try:
        for feed in feeds:
            heads = [h for h in feed.heads if model.head(h).makes.covers]
            count = min(IMAGES, pipeline.evaluate.pictures, len(feed.source))
            if heads and count:
                _make(model, pipeline, labels, feed, heads, count, folder / feed.name / "over_time", step, device)
                for head in heads:
                    samples = readable(feed.source, (feed.heads[head][0],), pipeline.train.on_error, count)
                    _join(feed, head, samples, folder / feed.name, step)
    finally:
        model.train(was_training)


def _make(
    model: MultiTaskModel,
    pipeline: Pipeline,
    labels: Mapping[str, LabelSet],
    feed: Feed,
    heads: list[str],
    count: int,
    folder: Path,
    step: int,
    device: torch.device | str,
) -> None:
    """What these heads make of the first images now, a file each."""
    divisor = pipeline.train.size_divisor
    batches = eval_loader(feed, batch_size=1, max_images=count, size_divisor=divisor, on_error=pipeline.train.on_error)
    samples = readable(feed.source, (), pipeline.train.on_error, count)
    for index, (batch, sample) in enumerate(zip(batches, samples)):
        ready = batch.to(device).normalised(model.mean, model.std, channels_last=pipeline.train.channels_last)
        found = all_on_host(model.predict(ready, heads))
        image = sample.image.permute(1, 2, 0).numpy()
        for head in heads:
            _write(_file(folder, head, step, index), found[head][0].draw(image, labels[head]))


def _join(feed: Feed, head: str, samples: Iterable[Sample], folder: Path, step: int) -> None:
    """The sheet of one head on these images, of what was kept up to ``step``."""
    kept = {int(path.stem.split("_")[0]) for path in (folder / "over_time" / head).glob("*_*.png")}
    steps = sorted(one for one in kept if one <= step)
    if len(steps) > COLUMNS:
        steps = [steps[round(i * (len(steps) - 1) / (COLUMNS - 1))] for i in range(COLUMNS)]
    task, tiles = feed.heads[head][0], []
    last = ""
    for index, sample in enumerate(samples):
        tiles.append(_small(sample.image.permute(1, 2, 0).numpy()))
        for one in steps:
            file = _file(folder / "over_time", head, one, index)
            made = cv2.imread(str(file)) if file.exists() else None
            tiles.append(np.full_like(tiles[-1], 255) if made is None else _small(made[..., ::-1]))
        target = sample.targets.get(task)
        if isinstance(target, PictureTarget):
            last = "target" if target.paired else "example"
            tiles.append(_small(target.picture.permute(1, 2, 0).numpy()))
    if not tiles:
        return
    titles = ["input", *(f"step {one}" for one in steps), *([last] if last else [])]
    write_atomically(folder / f"over_time_{head}.jpg", encode_image(sheet(tiles, len(titles), titles), ".jpg"))


def _file(folder: Path, head: str, step: int, index: int) -> Path:
    return folder / head / f"{step:07d}_{index}.png"


def _write(path: Path, picture: np.ndarray) -> None:
    write_atomically(path, encode_image(bounded(picture), ".png"))


def _small(picture: np.ndarray) -> np.ndarray:
    """A picture that is no larger than fits a sheet, nor so small that nothing is seen of it."""
    height, width = picture.shape[:2]
    scale = min(SIDE / max(height, width), 1.0) if max(height, width) >= SIDE // 2 else SIDE // 2 // max(height, width)
    if scale == 1.0:
        return np.ascontiguousarray(picture)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
