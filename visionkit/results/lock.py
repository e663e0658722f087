"""One process at a time writes to an output folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from visionkit.errors import UserError
from visionkit.results.files import write_errors

LOCK = ".lock"


@contextmanager
def folder_lock(folder: Path, leftovers: Sequence[str] = ()) -> Iterator[None]:
    """Hold a folder, which is created if there is none, and leave none behind in which nothing was written.

    The lock belongs to the process: it ends when the process does, however that happens, and is not passed on to
    worker processes. Where the system or the file system has no locks, nothing is locked.

    Args:
        folder: the folder to lock.
        leftovers: patterns of files that only a process that was killed can have left behind; they are deleted.

    Raises:
        UserError: another process holds the folder.
        RunError: the folder cannot be written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(folder)
    try:
        for pattern in leftovers:
            for path in folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(handle)
        for path in created:
            with suppress(OSError):  # something was written
                path.rmdir()


def _lock(folder: Path) -> int:
    """The open lock file. Its content is the number of the process, for messages."""
    path = folder / LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            process = f" (PID {owner})" if owner.isdigit() else ""
            raise UserError(
                f"{folder}: another process{process} is writing here; wait for it, or choose another --out"
            ) from None
        except (ImportError, OSError):  # no locks on this system, or on this file system
            return handle
        with suppress(OSError):
            # The process that held the lock may have deleted the file in between: then this is not the file that
            # others will find.
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                with suppress(OSError):  # the disk is full
                    os.truncate(handle, 0)
                    os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)
