"""Synthetic data for checks, in a scratch folder that is written when it is first asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from visionkit.data.shapes import write_shapes
from visionkit.errors import UserError

IMAGES, SIZE = 8, 96


class ToyData:
    """Eight synthetic scenes of 96 x 96 pixels, on disk for as long as this object lives.

    The folder holds what the source ``shapes`` writes (``images/``, ``instances.json``, ``semantic/``, ``panoptic/``,
    ``panoptic.json``) and ``classes/`` with a folder of images for each of four classes.
    """

    @cached_property
    def folder(self) -> Path:
        """The folder, which is written now if it has not been."""
        scratch = tempfile.mkdtemp(prefix="visionkit-check-")
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        folder = Path(scratch, "data")
        write_shapes(str(folder), IMAGES, size=(SIZE, SIZE))
        for i, file in enumerate(sorted((folder / "images").iterdir())):
            (folder / "classes" / "abcd"[i % 4]).mkdir(parents=True, exist_ok=True)
            os.link(file, folder / "classes" / "abcd"[i % 4] / file.name)
        return folder

    def fill(self, value: Any) -> Any:
        """The value with the folder in place of every ``{data}`` in its text."""
        if isinstance(value, str):
            return value.replace("{data}", str(self.folder)) if "{data}" in value else value
        if isinstance(value, Mapping):
            return {key: self.fill(child) for key, child in value.items()}
        return [self.fill(child) for child in value] if isinstance(value, list | tuple) else value

    def args_of(self, made: Any, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What to build a component with: ``args``, and what its class names in ``check_args``.

        Raises:
            UserError: ``check_args`` is not a mapping.
        """
        own = getattr(made, "check_args", {})
        if not isinstance(own, Mapping):
            raise UserError(f"{made.__name__}: 'check_args' must map names of arguments to values, not {own!r}")
        return {**{key: self.fill(value) for key, value in own.items() if key not in (args or {})}, **(args or {})}
