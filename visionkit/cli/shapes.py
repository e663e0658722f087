"""``visionkit shapes``: write a data set of drawn scenes."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from visionkit.errors import UserError


def command(
    out: Annotated[str, typer.Argument(help="Folder to write; with --val-images, its folders train and val.")],
    images: Annotated[int, typer.Option(help="Number of scenes.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same scenes; val takes the next one.")] = 0,
    size: Annotated[str, typer.Option(help="Height x width in pixels, as 160x160, or one number.")] = "160x160",
    val_images: Annotated[int, typer.Option(help="Number of scenes for validation.")] = 0,
) -> None:
    """Write drawn scenes in COCO format, labelled with boxes, masks, keypoints, semantic and panoptic maps."""
    from visionkit.data.shapes import write_shapes

    shape = parse_size(size)
    parts = [(out, images, seed)]
    if val_images:
        parts = [(os.path.join(out, "train"), images, seed), (os.path.join(out, "val"), val_images, seed + 1)]
    for folder, count, own_seed in parts:
        new = write_shapes(folder, count, own_seed, shape)
        typer.echo(f"{folder}: {count} scenes of {shape[0]}x{shape[1]}{'' if new else ' (were there already)'}")


def parse_size(text: str) -> tuple[int, int]:
    """``"160x240"`` as (160, 240), ``"160"`` as (160, 160)."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip())
    if found is None:
        raise UserError(f"--size {text}: must be HEIGHTxWIDTH in pixels, such as 160x240")
    return int(found[1]), int(found[2] or found[1])
