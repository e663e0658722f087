"""Predictions as files: COCO results, label maps and overlays, as the type of each prediction says."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import cv2
import numpy as np

from visionkit.draw import overlay
from visionkit.errors import UserError
from visionkit.model.run import write_atomically
from visionkit.types import LabelSet, Prediction


class PredictionWriter:
    """Writes predictions as they come.

    ``OUT/HEAD.json`` holds the COCO results of a head, ``OUT/HEAD/NAME.png`` its label maps, and
    ``OUT/pictures/NAME.jpg`` an overlay of all heads, beside which stand pictures that were made. A file appears when
    it is whole; the results files do when the writer is closed::

        with PredictionWriter("out", predictor.labels) as writer:
            for result in predictor.stream(files):
                writer.add(result.predictions, image_id=result.info.id, name=..., image=result.image)

    Args:
        out: the folder; made if it is not there. What it holds is replaced file by file.
        labels: the label set of every head.
        pictures: whether overlays are drawn.
        min_score: predictions below this are written, but not drawn; ``None``: below what their kind is drawn from.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        labels: Mapping[str, LabelSet],
        *,
        pictures: bool = True,
        min_score: float | None = None,
    ) -> None:
        self.out = Path(out)
        self.labels = labels
        self.pictures = pictures
        self.min_score = min_score
        self.counts: dict[str, int] = {}
        """Records or pictures written so far, by the file or folder in ``out``."""
        self._results: dict[str, _ResultsFile] = {}

    def add(
        self,
        predictions: Mapping[str, Prediction],
        *,
        image_id: int | str,
        name: str,
        image: np.ndarray | None = None,
    ) -> None:
        """Take in one image.

        Args:
            predictions: by head.
            image_id: as the records name the image.
            name: of its files, without suffix; ``/`` makes folders.
            image: (H, W, 3) uint8 RGB to draw on; ``None`` draws no overlay.

        Raises:
            UserError: a file cannot be written.
        """
        for head, prediction in predictions.items():
            if type(prediction).to_coco is not Prediction.to_coco:
                if head not in self._results:
                    self._results[head] = _ResultsFile(self.out / f"{head}.json")
                records = prediction.to_coco(image_id, self.labels[head])
                self._results[head].add(records)
                self._count(f"{head}.json", len(records))
            for suffix, picture in prediction.files().items():
                _write_image(self.out / head / f"{name}{suffix}.png", picture)
                self._count(f"{head}/", 1)
        if self.pictures and image is not None and predictions:
            picture = overlay(image, predictions, self.labels, min_score=self.min_score)
            _write_image(self.out / "pictures" / f"{name}.jpg", picture)
            self._count("pictures/", 1)

    def close(self, *, keep: bool = True) -> None:
        """Put the results files in their places, or with ``keep=False`` leave what was there before."""
        with contextlib.ExitStack() as stack:  # one that fails does not leave the others open
            for file in self._results.values():
                stack.callback(file.close, keep=keep)
        self._results.clear()

    def _count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(keep=error is None)


class _ResultsFile:
    """A JSON list that is written record by record, beside its place until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beside = path.with_name(f".{path.name}.{os.getpid()}")
        self.empty = True
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[str] = self.beside.open("w", encoding="utf-8")
            self.file.write("[")

    def add(self, records: list[dict[str, Any]]) -> None:
        with self._explained():
            for record in records:
                self.file.write(("\n" if self.empty else ",\n") + json.dumps(record))
                self.empty = False

    def close(self, *, keep: bool) -> None:
        with self._explained():
            try:
                self.file.write("\n]\n")
                self.file.close()
                if keep:
                    os.replace(self.beside, self.path)
            finally:
                self.beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror or error}") from None


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) RGB, uint8 or uint16, whole or not at all; the suffix says the format."""
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(path.suffix, stored, [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix == ".jpg" else [])
    if not ok:
        raise ValueError(f"{path}: {image.dtype} of shape {image.shape} cannot be written as {path.suffix}")
    write_atomically(path, data.tobytes())
