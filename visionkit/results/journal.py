"""The journal of a prediction or evaluation: one line of JSON per completed image, so that a run can resume."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from visionkit.errors import RunError, UserError
from visionkit.results.files import write_atomically, write_errors

FORMAT = 1
JOURNAL = "predictions.jsonl"
SYNC_SECONDS = 5.0


class Journal:
    """An append-only file with one line per completed image.

    The first line says what the journal belongs to: weights, arguments and everything else that the other lines depend
    on. A line is written with a single call and counts once its newline is there, so a process that is killed loses at
    most the image it is working on. Lines reach the disk at the latest five seconds later, in case the machine dies.

    Args:
        path: the file. The folder is created.
        belongs_to: what the lines depend on, as plain JSON values.
        resume: keep the lines that are there; otherwise the file is replaced.
        notes: further entries of the first line, which are not compared.

    Raises:
        UserError: ``resume`` with a file that belongs to something else (the message says to what), that is not a
            journal, or that another process is writing.
        RunError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        belongs_to: Mapping[str, Any],
        *,
        resume: bool = False,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._lines: dict[int | str, tuple[int, int]] = {}
        header = {"journal": FORMAT, "belongs_to": dict(belongs_to)}
        if resume and path.exists():
            self._check(read_header(path), header)
        else:
            self._replace(header | dict(notes or {}))
        with write_errors(path):
            self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - open as long as the journal
            _lock(self._file.fileno(), path)
            self._end = self._scan()
            os.ftruncate(self._file.fileno(), self._end)  # an incomplete last line
        self._synced = time.monotonic()

    def __contains__(self, key: int | str) -> bool:
        return key in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[int | str]:
        """The images that it held when the iteration began."""
        return iter(list(self._lines))

    def __getitem__(self, key: int | str) -> dict[str, Any]:
        """The entry of an image; of several, the last."""
        start, size = self._lines[key]
        self._file.seek(start)
        return json.loads(self._file.read(size))

    def append(self, key: int | str, entry: Mapping[str, Any]) -> None:
        """Add the entry of one image.

        Raises:
            RunError: the disk is full or not writable. The journal is as it was before.
        """
        line = json.dumps({"image": key, **entry}, separators=(",", ":")).encode() + b"\n"
        handle = self._file.fileno()
        with write_errors(self.path, f"; it holds {len(self)} images, go on with --resume"):
            try:
                self._file.seek(self._end)
                written = self._file.write(line)
                while written < len(line):  # a disk that fills up takes a part first
                    written += self._file.write(line[written:])
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    os.fsync(handle)
                    self._synced = time.monotonic()
            except OSError:
                with suppress(OSError):
                    os.ftruncate(handle, self._end)
                raise
        self._lines[key] = self._end, len(line)
        self._end += len(line)

    def discard(self, key: int | str) -> None:
        """Forget an image whose entry is no longer valid; its next entry takes the place."""
        self._lines.pop(key, None)

    def close(self) -> None:
        """Bring the lines to the disk and release the file."""
        if not self._file.closed:
            with suppress(OSError):  # the lines were written; all that is left is a second copy of them
                os.fsync(self._file.fileno())
            self._file.close()

    def _replace(self, header: Mapping[str, Any]) -> None:
        if self.path.is_file():
            with write_errors(self.path), open(self.path, "rb") as old:
                _lock(old.fileno(), self.path)
        write_atomically(self.path, json.dumps(header) + "\n")

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        if before.get("journal") != FORMAT:
            raise UserError(f"{self.path}: not a journal of this version of visionkit; start over without --resume")
        old, new = before["belongs_to"], json.loads(json.dumps(now["belongs_to"]))
        for key in [*old, *(key for key in new if key not in old)]:
            if old.get(key) != new.get(key):
                change = f"{key} was {_short(old.get(key))} and is now {_short(new.get(key))}"
                raise UserError(f"{self.path}: cannot resume: {change}; start over without --resume")

    def _scan(self) -> int:
        """Note where each line is; returns where the last complete one ends."""
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                with suppress(ValueError, KeyError, TypeError):  # damaged: the image is predicted again
                    self._lines[json.loads(line)["image"]] = end, len(line)
                end += len(line)
        return end


def read_header(path: Path) -> dict[str, Any]:
    """The first line of a journal; empty if the file is none."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline())
    except ValueError:
        return {}
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    return header if isinstance(header, dict) and "belongs_to" in header else {}


def output_files(folder: Path) -> set[str]:
    """The files in a folder that its journal says were written there, by the last call and earlier ones; relative."""
    path = folder / JOURNAL
    header = read_header(path) if path.is_file() else {}
    if not header:
        return set()
    files = {JOURNAL, "skipped.json", *map(str, header.get("earlier_files", ()))}
    with open(path, "rb") as file:
        for line in file:
            with suppress(ValueError, TypeError, AttributeError):
                entry = json.loads(line)
                files.update(entry.get("files", ()), (f"{head}.json" for head in entry.get("records", ())))
    return {name for name in files if (folder / name).is_file()}


def file_stamp(path: str) -> list[int] | None:
    """Size and modification time of a file, by which a changed image is noticed; ``None`` if there is no file."""
    with suppress(OSError, ValueError):
        if path:
            status = os.stat(path)
            return [status.st_size, status.st_mtime_ns]
    return None


def digest(*parts: str | bytes) -> str:
    """A short fingerprint of texts or bytes."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _lock(handle: int, path: Path) -> None:
    """Keep other processes from writing the same journal; the lock ends with this process."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path}: another process is writing here; wait for it, or choose another --out") from None
    except OSError:
        return  # the file system has no locks
