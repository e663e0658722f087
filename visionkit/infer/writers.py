"""Predictions as files: COCO results, label maps and overlays, as the type of each prediction says."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from visionkit.draw import encode_image, overlay, visualization
from visionkit.errors import UserError
from visionkit.results.files import atomic_file, disk_is_full, safe_path, with_suffix, write_atomically, write_errors
from visionkit.results.journal import JOURNAL, Journal, digest, file_stamp, output_files
from visionkit.types import LabelSet, Prediction

log = logging.getLogger("visionkit.infer")


class PredictionWriter:
    """Writes predictions as they come.

    ``OUT/HEAD.json`` holds the COCO results of a head, ``OUT/HEAD/NAME.png`` its label maps, and
    ``OUT/pictures/NAME.jpg`` an overlay of all heads, beside which stand pictures that were made. A file appears when
    it is whole; the results files do when the writer is closed, with the records of all images up to then::

        with PredictionWriter("out", predictor.labels) as writer:
            for result in predictor.stream(files):
                writer.add(result.predictions, image_id=result.info.id, name=..., image=result.image)

    ``OUT/predictions.jsonl`` is the journal: one line per image with its records and the names of its files. Files are
    written under a hidden name first and renamed once the journal has the line, so whatever is in its place is in the
    journal too, and a killed process loses at most the image it was working on. With ``resume`` the writer continues
    such a journal; :meth:`completed` says which images it holds.

    Args:
        out: the folder; made if it is not there. What it holds is replaced file by file.
        labels: the label set of every head.
        pictures: whether overlays are drawn.
        min_score: predictions below this are written, but not drawn; ``None``: below what their kind is drawn from.
        resume: continue the journal in ``out``; otherwise it is replaced.
        belongs_to: what the results depend on (weights, arguments, images); the journal of anything else is refused.
        protected: files that must not be overwritten, such as the images themselves.

    Raises:
        UserError: the folder cannot be written, or its journal belongs to something else.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        labels: Mapping[str, LabelSet],
        *,
        pictures: bool = True,
        min_score: float | None = None,
        resume: bool = False,
        belongs_to: Mapping[str, Any] | None = None,
        protected: Collection[Path] = (),
    ) -> None:
        self.out = Path(out)
        self.labels = labels
        self.pictures = pictures
        self.min_score = min_score
        self.counts: dict[str, int] = {}
        """Records or pictures written so far, by the file or folder in ``out``."""
        self.skipped: list[dict[str, Any]] = []
        """Images without results so far: ``image_id`` and ``reason``."""
        self.problems = 0
        """Overlays that could not be drawn or written."""
        self._taken = {os.path.relpath(file, self.out).casefold() for file in protected}
        for head in labels:
            if f"{head}.json".casefold() in self._taken:
                raise UserError(f"{self.out / head}.json is part of the input and would be overwritten; choose another "
                                "output folder")  # fmt: skip
        self._order: dict[str, None] = {}  # names, in the order of the results
        self._heads: dict[str, None] = {}  # that have a results file
        earlier = {"earlier_files": sorted(output_files(self.out))}
        self._journal = Journal(self.out / JOURNAL, belongs_to or {}, resume=resume, notes=earlier)
        for name in self._journal:
            self._restore(str(name))

    def completed(self, name: str, path: str = "") -> bool:
        """Whether the journal holds the image of this name, read from the same file as now."""
        return name in self._journal and self._journal[name]["file"] == file_stamp(path)

    def keep(self, name: str) -> None:
        """Take over an image that an earlier process has :meth:`completed`."""
        self._count_entry(name, self._journal[name])

    def add(
        self,
        predictions: Mapping[str, Prediction],
        *,
        image_id: int | str,
        name: str,
        image: np.ndarray | None = None,
        path: str = "",
    ) -> None:
        """Take in one image.

        Args:
            predictions: by head.
            image_id: as the records name the image.
            name: of its files, without suffix; ``/`` makes folders. No other image has it.
            image: (H, W, 3) uint8 RGB to draw on; ``None`` draws no overlay.
            path: the file of the image, by which a resumed process notices that it has changed.

        Raises:
            UserError: a file cannot be written.
        """
        name = self._new_name(name)
        records: dict[str, list[dict[str, Any]]] = {}
        files: dict[str, bytes] = {}
        for head, prediction in predictions.items():
            if type(prediction).to_coco is not Prediction.to_coco:
                records[head] = prediction.to_coco(image_id, self.labels[head])
            for suffix, picture in prediction.files().items():
                files[self._new_file(head, name, f"{suffix}.png")] = encode_image(picture, ".png")
        entry: dict[str, Any] = {"image_id": image_id, "file": file_stamp(path), "records": records}
        if self.pictures and image is not None and predictions:
            data = visualization(lambda: overlay(image, predictions, self.labels, min_score=self.min_score), name)
            if data is None:
                entry["undrawn"] = True
            else:
                files[self._new_file("pictures", name, ".jpg")] = data
        self._commit(name, entry, files)

    def skip(self, *, image_id: int | str, name: str, reason: str, path: str = "") -> None:
        """Take in an image that has no results, and why."""
        entry: dict[str, Any] = {"image_id": image_id, "file": file_stamp(path), "records": {}, "skipped": reason}
        self._commit(self._new_name(name), entry, {})

    def close(self, *, keep: bool = True) -> None:
        """Put the results files in their places, or with ``keep=False`` leave what was there before."""
        try:
            if keep:
                self._write_results()
                if self.skipped or (self.out / "skipped.json").exists():
                    write_atomically(self.out / "skipped.json", json.dumps(self.skipped, indent=1) + "\n")
        finally:
            self._order.clear()
            self._heads.clear()
            self._journal.close()

    def _new_name(self, name: str) -> str:
        """The name as a safe path that no other image of this writer has."""
        path, number = safe_path(name), 1
        while path in self._order:
            number += 1
            path = safe_path(name, f"{name}#{number}")
        return path

    def _new_file(self, folder: str, name: str, suffix: str) -> str:
        """The path of a file, relative to ``out``, that is neither another image's nor protected."""
        file = f"{folder}/{with_suffix(name, suffix)}"
        if file.casefold() in self._taken:
            file = f"{folder}/{with_suffix(safe_path(name, f'{name}{suffix}'), suffix)}"
        return file

    def _commit(self, name: str, entry: dict[str, Any], files: Mapping[str, bytes]) -> None:
        """Files under hidden names first, then the line of the journal, then the files into their places. Nothing is
        written if an earlier process has written the same."""
        hashes = {file: digest(data) for file, data in files.items()}
        if name in self._journal and self._journal[name] == {"image": name, **entry, "files": hashes}:
            self._count_entry(name, entry | {"files": hashes})
            return
        for file, data in files.items():
            try:
                _write(_hidden(self.out / file, hashes[file]), data)
            except OSError as error:
                if not file.startswith("pictures/") or disk_is_full(error):
                    with write_errors(self.out / file):
                        raise
                log.warning("%s: no visualization: %s", self.out / file, error.strerror)
                del hashes[file]
                entry["undrawn"] = True
        self._journal.append(name, entry | {"files": hashes})
        with write_errors(self.out):
            for file, hashed in hashes.items():
                os.replace(_hidden(self.out / file, hashed), self.out / file)
        self._count_entry(name, entry | {"files": hashes})

    def _restore(self, name: str) -> None:
        """Put files of an image in the journal into their places, where the last process had no time to; an image with
        a file that is gone is no longer complete."""
        for file, hashed in self._journal[name].get("files", {}).items():
            hidden = _hidden(self.out / file, hashed)
            if hidden.exists():
                with write_errors(self.out / file):
                    os.replace(hidden, self.out / file)
            elif not (self.out / file).exists():
                self._journal.discard(name)

    def _count_entry(self, name: str, entry: Mapping[str, Any]) -> None:
        self._order[name] = None
        self._taken.update(file.casefold() for file in entry["files"])
        self.problems += bool(entry.get("undrawn"))
        if "skipped" in entry:
            self.skipped.append({"image_id": entry["image_id"], "reason": entry["skipped"]})
        for head, records in entry["records"].items():
            self._heads[head] = None
            self._count(f"{head}.json", len(records))
        for file in entry["files"]:
            self._count(f"{file.split('/')[0]}/", 1)

    def _count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def _write_results(self) -> None:
        """The results file of every head, from the journal."""
        for head in self._heads:
            with atomic_file(self.out / f"{head}.json") as file:
                separator = "["
                for name in self._order:
                    for record in self._journal[name]["records"].get(head, ()):
                        file.write(f"{separator}\n{json.dumps(record)}".encode())
                        separator = ","
                file.write(b"\n]\n" if separator == "," else b"[\n]\n")

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The results of all images up to an error are kept; the error is the one that is raised."""
        with contextlib.suppress(UserError) if error is not None else contextlib.nullcontext():
            self.close()


def _hidden(path: Path, hashed: str) -> Path:
    """Where a file is until the journal holds its image; the hash tells it from one of another attempt."""
    return path.with_name(f".visionkit-{digest(path.name)}-{hashed}")


def _write(path: Path, data: bytes) -> None:
    """Write a file to the disk; a part of it is removed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
