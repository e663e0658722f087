"""``visionkit pipelines``: what is shipped."""

from __future__ import annotations

from typing import Annotated

import typer

from visionkit.errors import PipelineError


def command(
    name: Annotated[str | None, typer.Argument(help="Print this one, to start a file of your own from.")] = None,
) -> None:
    """List the pipelines that are shipped, or print one of them."""
    from visionkit.config import shipped_pipelines, summary_of
    from visionkit.plugins import did_you_mean

    shipped = shipped_pipelines()
    if name is None:
        width = max(map(len, shipped))
        for one, file in shipped.items():
            print(f"{one.ljust(width)}  {summary_of(file)}")
    elif name not in shipped:
        raise PipelineError(
            f"no pipeline of the name '{name}' is shipped{did_you_mean(name, shipped)}; "
            "'visionkit pipelines' lists them"
        )
    else:
        print(shipped[name].read_text(encoding="utf-8"), end="")
