"""Pages that would go stale if they were written by hand: made anew from the code by every build."""

from __future__ import annotations

from pathlib import Path


def everything(folder: Path) -> None:
    """Write every generated page to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
