"""Pictures that were made, beside those that were wanted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from visionkit.data.base import Source
from visionkit.data.pairs import PaintedSource
from visionkit.errors import DataError, UserError
from visionkit.evaluate.base import Evaluator
from visionkit.evaluate.image_quality import (
    SMALLEST,
    SMALLEST_OF_SCALES,
    frechet_distance,
    kernel_distance,
    ms_ssim,
    psnr,
    ssim,
)
from visionkit.evaluate.segmented import Segmenter
from visionkit.types import ImageInfo, LabelSet, PicturePrediction, PictureTarget, Prediction, Target


class PicturesEvaluator(Evaluator):
    """L1 (0 ... 1), PSNR (decibels), SSIM and MS-SSIM, means over the pictures; with weights also LPIPS, FID and KID.

    SSIM can be said of pictures from 11 pixels a side on, MS-SSIM from 176 on; smaller ones are left out of its mean,
    and where none is left it is NaN. FID and KID compare all pictures that were made with all that were wanted, which
    need not belong together: where they do not (source ``unpaired``), nothing else is said of them.

    Args:
        source, labels: as for every evaluator.
        inception: a TorchScript file for FID and KID: pictures (B, 3, H, W) uint8 to features (B, D). StyleGAN's
            ``inception-2015-12-05.pt`` is one. Numbers depend on how it resizes, so name it beside them.
        lpips: a TorchScript file for LPIPS: two batches (B, 3, H, W) in -1 ... 1 to distances (B,) or (B, 1, 1, 1).
        segmenter: the folder of a run for semantic segmentation, which says what it sees in the pictures that were made
            (FCN score): ``segmented_mIoU``, ``segmented_pixel_accuracy`` and ``segmented_mean_accuracy``, by the label
            maps that the pictures were made of where the source knows them (``painted`` in reverse), else by what the
            run sees in the pictures that were wanted.
        segmenter_head: which head of that run; needed where several make label maps.

    Raises:
        UserError: a file of weights or a run is missing or cannot be read, or the run does not know what is shown.
    """

    reads = PicturePrediction

    def __init__(
        self,
        source: Source,
        labels: LabelSet,
        *,
        inception: str | None = None,
        lpips: str | None = None,
        segmenter: str | None = None,
        segmenter_head: str | None = None,
    ) -> None:
        super().__init__(source, labels)
        self.inception = None if inception is None else _network(inception, "inception")
        self.lpips = None if lpips is None else _network(lpips, "lpips")
        shown = source.painted if isinstance(source, PaintedSource) else None
        self.segmenter = None if segmenter is None else Segmenter(segmenter, segmenter_head, shown)
        # By image: one that two processes saw must count once.
        self.images: dict[int | str, dict[str, Any]] = {}

    def add(
        self, predictions: Sequence[Prediction], targets: Sequence[Target | None], info: Sequence[ImageInfo]
    ) -> None:
        """Take in one batch; images without a target do not count.

        Raises:
            DataError: a prediction is not of the size of its target.
        """
        for prediction, target, image in zip(predictions, targets, info, strict=True):
            if target is None or image.id in self.images:
                continue
            made = cast(PicturePrediction, prediction).picture.float().cpu()
            wanted = cast(PictureTarget, target).picture.float().cpu() / 255.0
            if made.shape != wanted.shape:
                raise DataError(f"image {image.path or image.id}: a picture of {tuple(made.shape)} for one of "
                                f"{tuple(wanted.shape)}")  # fmt: skip
            self.images[image.id] = self._measured(made, wanted, paired=cast(PictureTarget, target).paired)
            if self.segmenter is not None:
                pixels = (made * 255.0).round().clamp(0, 255).to(torch.uint8)
                cells = self.segmenter.cells(self.source, pixels, cast(PictureTarget, target).to("cpu"))
                self.images[image.id]["segmented"] = cells

    def _measured(self, made: Tensor, wanted: Tensor, *, paired: bool) -> dict[str, Any]:
        """All that is said of one picture."""
        side = min(made.shape[1:])
        said: dict[str, Any] = {}
        if paired:
            said["L1"] = float((made - wanted).abs().double().mean())
            said["PSNR"] = psnr(made, wanted)
            said["SSIM"] = ssim(made, wanted) if side >= SMALLEST else None
            said["MS-SSIM"] = ms_ssim(made, wanted) if side >= SMALLEST_OF_SCALES else None
            if self.lpips is not None:
                said["LPIPS"] = float(self.lpips(made[None] * 2 - 1, wanted[None] * 2 - 1).mean())
        if self.inception is not None:
            both = torch.stack((made, wanted))
            features = self.inception((both * 255.0).round().clamp(0, 255).to(torch.uint8))
            said["features"] = features.reshape(2, -1).double().numpy()
        return said

    def state(self) -> dict[int | str, dict[str, Any]]:
        return self.images

    def merge(self, states: Collection[Any]) -> None:
        for state in states:
            self.images = state | self.images

    def result(self) -> dict[str, float]:
        # In the order of the ids, so that sums do not depend on who saw what.
        seen = [self.images[key] for key in sorted(self.images, key=str)]
        names = ["L1", "PSNR", "SSIM", "MS-SSIM", *(["LPIPS"] if self.lpips is not None else [])]
        known = [said for said in seen if "L1" in said]
        out: dict[str, float] = {}
        if known or not seen:
            out = {name: _mean([said[name] for said in known if said[name] is not None]) for name in names}
        if self.inception is not None:
            out |= self._distances([said["features"] for said in seen])
        if self.segmenter is not None:
            cells = {key: said["segmented"] for key, said in self.images.items()}
            out |= self.segmenter.scores(self.source, cells)
        return out

    @staticmethod
    def _distances(features: list[np.ndarray]) -> dict[str, float]:
        """FID and KID from the features (2, D) of what was made and what was wanted; NaN for fewer than two."""
        if len(features) < 2:
            return {"FID": math.nan, "KID": math.nan}
        made, wanted = np.stack(features, 1)
        return {"FID": frechet_distance(made, wanted), "KID": kernel_distance(made, wanted)}


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _network(path: str, key: str) -> Callable[..., Tensor]:
    """A function that someone has written down with its weights."""
    if not Path(path).is_file():
        raise UserError(f"pictures: {key}: {path}: no such file; it must hold a network with its weights, saved by "
                        "torch.jit.save")  # fmt: skip
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # weights are published as TorchScript
            network = torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # whatever a damaged file makes it raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"pictures: {key}: {path}: cannot be read as TorchScript: {reason}") from None

    def run(*pictures: Tensor) -> Tensor:
        with torch.inference_mode():
            try:
                made = network(*pictures)
            except RuntimeError as error:  # TorchScript tells it over many lines, the last of which says what it was
                raise UserError(f"pictures: {key}: {path}: the network takes no such pictures: "
                                f"{str(error).strip().splitlines()[-1]}") from None  # fmt: skip
            if not isinstance(made, Tensor):
                raise UserError(f"pictures: {key}: {path}: the network gives a {type(made).__name__}, and no tensor")
            return made

    return run
