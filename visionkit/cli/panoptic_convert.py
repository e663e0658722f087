"""``visionkit panoptic-convert``: panoptic annotations in another format."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    coco = "coco"
    two_channel = "two-channel"
    detection = "detection"


def command(
    file: Annotated[str, typer.Argument(metavar="JSON", help="The annotations; of two-channel PNGs, their images.")],
    source: Annotated[Format, typer.Option("--from", help="The format that is there.")],
    target: Annotated[Format, typer.Option("--to", help="The format to write.")],
    out: Annotated[str, typer.Option("--out", help="A JSON; for two-channel, a folder of PNGs.")],
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="The PNGs that are there; else JSON without .json.")
    ] = None,
    categories: Annotated[
        str | None, typer.Option("--categories", metavar="FILE", help="JSON with the categories; else those of JSON.")
    ] = None,
    things_only: Annotated[bool, typer.Option("--things-only", help="Leave stuff out of detections.")] = False,
) -> None:
    """Bring panoptic annotations into another format: COCO's PNGs, two-channel PNGs or detections."""
    from visionkit.data.panoptic_formats import convert

    count = convert(
        source.value, target.value, file, out, folder=folder, categories=categories, things_only=things_only
    )
    typer.echo(f"{out}: {count} images")
