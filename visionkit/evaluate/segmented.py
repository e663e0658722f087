"""What a trained run for semantic segmentation sees in pictures that were made (Isola et al., CVPR 2017, section 4.1:
the FCN score, with a network of one's own choice)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from visionkit.data.base import Sample, Source
from visionkit.data.loader import collate
from visionkit.data.transforms import apply_transforms
from visionkit.data.wiring import build_transforms
from visionkit.errors import UserError
from visionkit.evaluate.semantic import SemanticEvaluator
from visionkit.model.run import load_model
from visionkit.plugins import PluginManager
from visionkit.types import ImageInfo, LabelSet, PictureTarget, SemanticPrediction, SemanticTarget


class Segmenter:
    """A run that says what is to be seen where, and how much of it is right.

    Args:
        run: its folder.
        head: which of its heads; ``None``: the only one that makes label maps.
        shown: the classes of the label maps that pictures come with, or ``None`` where they come without.

    Raises:
        UserError: no such run, no such head, or a class that pictures show and the run does not know.
    """

    def __init__(self, run: str, head: str | None, shown: LabelSet | None) -> None:
        plugins = PluginManager()
        loaded = load_model(run, plugins)
        self._pipeline, self._model = loaded.pipeline, loaded.model
        self._head = _semantic_head(run, head, [
            name for name in loaded.model.order if issubclass(loaded.model.head(name).makes, SemanticPrediction)
        ])  # fmt: skip
        self.labels = loaded.labels[self._head]
        self._table = None if shown is None else _table(run, shown, self.labels)
        config = loaded.pipeline.evaluate.transforms
        self._transforms = build_transforms(loaded.pipeline, plugins, config)

    def cells(self, source: Source, made: Tensor, target: PictureTarget) -> Any:
        """The confusion of one picture, as :class:`SemanticEvaluator` keeps it.

        The truth is the label map that comes with the target, else what the run sees in the target itself.

        Args:
            source: where the target is from.
            made: (3, H, W) uint8.
            target: of the same size.
        """
        if target.shows is None or self._table is None:
            truth = SemanticTarget(self.seen(target.picture).labels)
        else:
            truth = target.shows.relabel(self._table)
        one = SemanticEvaluator(source, self.labels)
        one.add([self.seen(made)], [truth], [_info(made)])
        return one.images[0]

    def scores(self, source: Source, cells: Mapping[int | str, Any]) -> dict[str, float]:
        """mIoU and accuracies over all pictures, from their confusions by image."""
        whole = SemanticEvaluator(source, self.labels)
        whole.images = dict(cells)
        return {f"segmented_{name}": value for name, value in whole.result().items()}

    @torch.inference_mode()
    def seen(self, picture: Tensor) -> SemanticPrediction:
        """What the run sees in a picture (3, H, W) uint8."""
        sample = apply_transforms(self._transforms, Sample(picture, _info(picture)))
        batch = collate([sample], size_divisor=self._pipeline.train.size_divisor)
        ready = batch.normalised(self._model.mean, self._model.std, channels_last=self._pipeline.train.channels_last)
        (found,) = self._model.predict(ready, [self._head])[self._head]
        assert isinstance(found, SemanticPrediction)
        return found


def _info(picture: Tensor) -> ImageInfo:
    size = (picture.shape[1], picture.shape[2])
    return ImageInfo(id=0, path="", original_size=size, size=size)


def _semantic_head(run: str, wanted: str | None, found: list[str]) -> str:
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted is None or wanted not in found:
        asked = "name one with segmenter_head" if wanted is None else f"it has no such head '{wanted}'"
        raise UserError(f"pictures: segmenter: {run}: {asked} (heads that make label maps: "
                        f"{', '.join(found) or 'none'})")  # fmt: skip
    return wanted


def _table(run: str, shown: LabelSet, known: LabelSet) -> Tensor:
    """The labels of pictures -> those of the run."""
    if unknown := [name for name in shown.names if name not in known.names]:
        raise UserError(f"pictures: segmenter: {run}: does not know the class '{unknown[0]}' that the pictures show "
                        f"(it knows: {', '.join(known.names)})")  # fmt: skip
    return torch.tensor([known.names.index(name) for name in shown.names])
