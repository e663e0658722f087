"""Names of files that annotations refer to."""

from __future__ import annotations

import os
from pathlib import PurePath

from visionkit.errors import DataError

LONGEST_NAME = 1024  # characters, with folders; file systems allow a few thousand


def inside(root: str, name: str, where: str) -> str:
    """``root/name``, where ``name`` must not lead out of ``root``.

    Raises:
        DataError: it is absolute, goes up, or is no name of a file; the message starts with ``where``.
    """
    if len(name) > LONGEST_NAME:
        raise DataError(f"{where}: a file name has {len(name):,} characters; at most {LONGEST_NAME:,} are allowed")
    if "\0" in name:
        raise DataError(f"{where}: file name {name!r} holds a null character")
    if name.startswith(("/", "\\")) or ".." in name or ":" in name:  # the slow look is for the few that need it
        pure = PurePath(name)
        if pure.is_absolute() or pure.drive or ".." in name.replace("\\", "/").split("/") or name.startswith("\\"):
            raise DataError(f"{where}: file name '{name}' leads out of the folder {root}")
    return os.path.join(root, name)
