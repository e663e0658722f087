"""A trained run as a function from images to predictions."""

from __future__ import annotations

import difflib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from visionkit.config import Pipeline, RefineConfig
from visionkit.data.base import Sample, Transform
from visionkit.data.images import as_hwc, from_hwc, read_image, to_rgb
from visionkit.data.loader import collate
from visionkit.data.transforms import apply_transforms
from visionkit.data.wiring import build_transforms
from visionkit.errors import DataError, UserError
from visionkit.layers.fast_conv import keep_kernels, to_channels_last
from visionkit.model.fold import fold_batch_norms
from visionkit.model.graph import MultiTaskModel
from visionkit.model.refine import check_refinable, predict_refined
from visionkit.model.run import load_model
from visionkit.types import ImageInfo, LabelSet, Prediction
from visionkit.types.device import all_on_host

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from visionkit.plugins import PluginManager

    Image = str | os.PathLike[str] | np.ndarray | PILImage

OnError = Literal["fail", "skip"]

_PRECISIONS = {
    "32-true": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class Result:
    """What was found on one image.

    Attributes:
        info: its file and size; the id is the file name, or the number of an image that is no file.
        image: (H, W, 3) uint8 RGB as it was read; ``None`` if it could not be.
        predictions: by head, in original coordinates, on the CPU; empty if the image could not be read.
        error: why it could not be read.
    """

    info: ImageInfo
    image: np.ndarray | None = None
    predictions: dict[str, Prediction] = field(default_factory=dict)
    error: DataError | None = None


class Predictor:
    """A model with all that it takes to predict: transforms, device, precision.

    Args:
        model: moved to ``device``, and set to evaluation.
        labels: the label set of every head.
        transforms: what an image goes through before it is batched.
        device: where the model runs.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        channels_last: the memory format of weights and images; faster on most machines, and different in the last bits.
        fold: put batch norms into the convolutions before them (:func:`~visionkit.model.fold.fold_batch_norms`) and
            transform the kernels of those once and for all (:mod:`visionkit.layers.fast_conv`), which is faster,
            different in the last bits, and leaves a model that can no longer be trained.
        size_divisor: images are padded to a multiple of it.
        refine: by head, how its class probabilities are found where one look is not enough.

    Raises:
        UserError: no such precision, or a head to refine that does not score the classes of every pixel.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        labels: Mapping[str, LabelSet],
        transforms: Sequence[Transform] = (),
        *,
        device: torch.device | str = "cpu",
        precision: str = "32-true",
        channels_last: bool = True,
        size_divisor: int = 32,
        fold: bool = False,
        refine: Mapping[str, RefineConfig] | None = None,
    ) -> None:
        if precision not in _PRECISIONS:
            raise UserError(f"no precision '{precision}' to predict in (there are {', '.join(_PRECISIONS)})")
        self.labels = dict(labels)
        self.refine = dict(refine or {})
        for name in self.refine:
            check_refinable(model, name)
        self.transforms = tuple(transforms)
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        if fold:
            fold_batch_norms(self.model)
        if channels_last:
            to_channels_last(self.model)
        if fold and self.device.type == "cpu" and precision == "32-true":
            keep_kernels(self.model)
        self.channels_last = channels_last
        self.size_divisor = size_divisor
        self._dtype = _PRECISIONS[precision]

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of its heads."""
        return tuple(self.model.order)

    def predict(
        self,
        images: Image | Iterable[Image],
        *,
        heads: Iterable[str] | None = None,
        batch_size: int = 1,
        on_error: OnError = "fail",
    ) -> list[dict[str, Prediction]]:
        """Predictions by head for each image; the backbone runs once an image, whatever the number of heads.

        Args:
            images: a file name, an array (H, W, 3) RGB, a PIL image, or an iterable of these. Files and PIL images are
                rotated as their EXIF orientation says, and predictions lie on the rotated image. 16-bit and
                floating-point values are scaled by :func:`~visionkit.data.images.to_uint8`.
            heads: names of the heads that are asked; ``None``: all.
            batch_size: images that go through the model together.
            on_error: an image that cannot be read raises (``"fail"``), or gives an empty mapping (``"skip"``).

        Returns:
            One mapping an image, in order (of one image: a list of one), in original coordinates.

        Raises:
            DataError: an image cannot be read; the message names it.
            UserError: no such head.
        """
        return [r.predictions for r in self.stream(images, heads=heads, batch_size=batch_size, on_error=on_error)]

    def stream(
        self,
        images: Image | Iterable[Image],
        *,
        heads: Iterable[str] | None = None,
        batch_size: int = 1,
        on_error: OnError = "fail",
    ) -> Iterator[Result]:
        """As :meth:`predict`, but one :class:`Result` at a time; only a few images are held, however many come."""
        if batch_size < 1:
            raise UserError(f"a batch size of {batch_size}; it must be 1 or more")
        names = self.check_heads(heads)
        return self._stream(_as_iterable(images), names, batch_size, on_error)

    def check_heads(self, heads: Iterable[str] | None) -> list[str]:
        """The names of these heads, or of all. Raises ``UserError`` if there is no such head."""
        names = list(self.heads if heads is None else [heads] if isinstance(heads, str) else heads)
        for name in names:
            if name not in self.heads:
                near = difflib.get_close_matches(name, self.heads, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                raise UserError(f"no head '{name}' in this run (heads: {', '.join(self.heads)}){hint}")
        return names

    def _stream(self, images: Iterable[Any], heads: list[str], size: int, on_error: OnError) -> Iterator[Result]:
        read = _read_ahead(images, self._read, ahead=size + 1)
        while batch := list(islice(read, size)):
            good = [item for item in batch if isinstance(item, tuple)]
            predictions = iter(self._run([sample for sample, _ in good], heads))
            for item in batch:
                if isinstance(item, tuple):
                    yield Result(item[0].info, item[1], next(predictions))
                elif on_error == "fail":
                    assert item.error is not None
                    raise item.error
                else:
                    yield item

    def _read(self, number: int, image: Any) -> tuple[Sample, np.ndarray] | Result:
        """An image ready for a batch, and as it was read; or a result that says why there is none."""
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
        name: int | str = Path(path).name if path else number
        try:
            pixels = as_hwc(read_image(path)) if path else to_rgb(image, f"image {number}")
            size = (pixels.shape[0], pixels.shape[1])
            sample = Sample(from_hwc(pixels), ImageInfo(name, path, size, size))
            return apply_transforms(self.transforms, sample), pixels
        except DataError as error:
            return Result(ImageInfo(name, path, (0, 0), (0, 0)), error=error)

    @torch.inference_mode()
    def _run(self, samples: Sequence[Sample], heads: list[str]) -> list[dict[str, Prediction]]:
        if not samples:
            return []
        mean, std = self.model.get_buffer("mean"), self.model.get_buffer("std")
        batch = collate(samples, size_divisor=self.size_divisor).to(self.device)
        batch = batch.normalised(mean, std, channels_last=self.channels_last)
        with torch.autocast(self.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
            found = predict_refined(self.model, batch, heads, self.refine, size_divisor=self.size_divisor)
        return all_on_host([{head: found[head][row] for head in heads} for row in range(len(samples))])


def load(
    run: str | os.PathLike[str],
    *,
    device: str | None = None,
    precision: str | None = None,
    plugins: PluginManager | Sequence[str] | None = None,
    source: str | None = None,
    refine: Mapping[str, RefineConfig] | None = None,
) -> Predictor:
    """A run folder, ready to predict.

    Args:
        run: the folder that ``visionkit train`` or ``visionkit import-weights`` wrote.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``; ``None`` takes the best there is.
        precision: ``"32-true"`` (``None``), ``"bf16-mixed"`` or ``"16-mixed"``.
        plugins: a plugin manager, or the plugin files that the run needs beside the installed plugins.
        source: whose evaluation transforms images go through; ``None``: those of the pipeline's ``evaluate`` section.
        refine: by head, how its class probabilities are found; ``None``: as the pipeline's ``evaluate`` section says.

    Raises:
        RunError: no run there, or a damaged one.
        UserError: a device that is not there, no such source or precision.
    """
    from visionkit.plugins import PluginManager

    if not isinstance(plugins, PluginManager):
        plugins = PluginManager(files=plugins or ())
    where = pick_device(device)
    loaded = load_model(os.fspath(run), plugins)
    transforms = build_transforms(loaded.pipeline, plugins, _transforms_of(loaded.pipeline, source))
    return Predictor(
        loaded.model,
        loaded.labels,
        transforms,
        device=where,
        precision=precision or "32-true",
        channels_last=loaded.pipeline.train.channels_last,
        size_divisor=loaded.pipeline.train.size_divisor,
        refine=loaded.pipeline.evaluate.refine if refine is None else refine,
        fold=loaded.pipeline.train.channels_last,  # a run without is to be equal to its original to the last bits
    )


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is (``"auto"``, ``None``). Raises ``UserError`` if it is not there."""
    has_mps = torch.backends.mps.is_available()
    if name in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"no device '{name}' (there are cpu, cuda, cuda:N, mps and auto)") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(has_mps)}.get(device.type, 0)
    if (device.index or 0) >= there:
        raise UserError(f"device '{name}' is not available here ({device.type} devices: {there})")
    return device


def _transforms_of(pipeline: Pipeline, source: str | None) -> Sequence[Any]:
    if source is None:
        return pipeline.evaluate.transforms
    if source not in pipeline.sources:
        raise UserError(f"no source '{source}' in this run (sources: {', '.join(pipeline.sources) or 'none'})")
    own = pipeline.sources[source].eval_transforms
    return pipeline.evaluate.transforms if own is None else own


def _as_iterable(images: Image | Iterable[Image]) -> Iterable[Any]:
    """What was given as many images; one image becomes a list of one."""
    if isinstance(images, str | os.PathLike | np.ndarray) or hasattr(images, "convert"):
        return [images]
    return images


def _read_ahead(items: Iterable[Any], read: Any, ahead: int) -> Iterator[Any]:
    """``read(number, item)`` of every item in order, done by threads while the model is at work."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(max_workers=2) as pool:
        for number, item in enumerate(items):
            waiting.append(pool.submit(read, number, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
