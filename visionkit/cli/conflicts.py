"""``visionkit conflicts``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionkit.cli.options import JsonFile, Overrides, PipelineName, PluginFiles, read_pipeline, write_text

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from visionkit.train.conflicts import Conflicts, Part


def command(
    pipeline: PipelineName,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches to look at.")] = 20,
    run: Annotated[
        Path | None, typer.Option("--run", help="Take the weights of this run, not those that training begins with.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A folder for the picture, conflicts.png.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, mps or auto.")] = "auto",
    overrides: Overrides = None,
    plugin: PluginFiles = None,
    json_file: JsonFile = None,
) -> None:
    """Whether the heads pull their shared layers one way or against each other.

    For some batches of the training split, the gradient of each head's loss by the parameters of backbone and neck;
    how to read it: docs/explanation/balancing.md.
    """
    description, plugins = read_pipeline(pipeline, overrides, plugin)

    import json

    from rich.console import Console

    from visionkit.config import check_arguments
    from visionkit.infer import pick_device
    from visionkit.train.conflicts import SHARED, find_conflicts, hints, sentence

    check_arguments(description, plugins)
    found = find_conflicts(description, plugins, batches=batches, run=run, device=pick_device(device))
    console = Console()
    print_tables(console, found)
    shared = found.parts[SHARED]
    for line in [*map(sentence, shared.pairs), *hints(shared)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if untold := [head for head in description.heads if head not in found.heads]:
        console.print(f"Not labelled in these batches: {', '.join(untold)}.", highlight=False, markup=False)
    where = (
        f"with the weights of {run}" if run else "with the weights that training begins with; --run RUN takes others"
    )
    console.print(f"Measured {where}.", style="dim", highlight=False, markup=False)
    if json_file:
        weights = str(run) if run else description.train.init
        write_text(
            json_file,
            json.dumps({"pipeline": description.name, "weights": weights, **found.to_dict()}, indent=1) + "\n",
        )
    if out is not None:
        picture = save_picture(found, out, description.name)
        console.print(f"Picture: {picture}", highlight=False, markup=False, soft_wrap=True)


def print_tables(console: Console, found: Conflicts) -> None:
    """Cosines and norms of all shared layers; then, where there is more than one part or source, pairs in each."""
    from rich.table import Table

    from visionkit.train.conflicts import SHARED

    shared = found.parts[SHARED]
    table = Table(title=f"Mean cosine of gradients, {SHARED}, {found.batches} batches", title_justify="left")
    table.add_column("head", style="bold")
    for head in found.heads:
        table.add_column(head, justify="right")
    table.add_column("norm", justify="right")
    table.add_column("batches", justify="right")
    for head in found.heads:
        norm = shared.norms[head]
        cells = ["" if head == other else _signed(shared.cosine(head, other)) for other in found.heads]
        table.add_row(head, *cells, f"{norm.mean:.3g} ± {norm.spread:.2g}", str(norm.batches))
    console.print(table)

    columns = {**{name: part for name, part in found.parts.items() if name != SHARED}, **found.sources}
    if not columns:
        return
    also = ", and in batches of one source alone" if found.sources else ""
    table = Table(title=f"The same in each part{also}", title_justify="left")
    table.add_column("pair", style="bold")
    for name in columns:
        table.add_column(name if name in found.parts else f"source {name}", justify="right")
    for pair in shared.pairs:
        table.add_row(" / ".join(pair.heads), *(_signed(part.cosine(*pair.heads)) for part in columns.values()))
    console.print(table)


def _signed(cosine: float) -> str:
    if cosine != cosine:
        return "-"
    color = "red" if cosine <= -0.05 else "green" if cosine >= 0.05 else "dim"
    return f"[{color}]{cosine:+.2f}[/]"


def save_picture(found: Conflicts, folder: Path, name: str) -> Path:
    """Write ``conflicts.png``: the heat map of all shared layers, with what it means below."""
    import cv2
    import numpy as np

    from visionkit.draw.chart import heat_map
    from visionkit.model.run import write_atomically
    from visionkit.train.conflicts import SHARED, hints

    shared, heads = found.parts[SHARED], found.heads
    values = np.array([[shared.cosine(one, other) for other in heads] for one in heads])
    picture = heat_map(
        values,
        heads,
        title=f"Do the heads of {name} agree?",
        subtitle=f"Cosine between the gradients of two heads in the layers they share ({shared.parameters:,} "
        f"parameters), mean of up to {found.batches} batches: +1 the same direction, 0 nothing in common, "
        "-1 opposite directions.",
        notes=_notes(found),
        ends=("conflict", "unrelated", "agree"),
        bars={head: norm.mean for head, norm in shared.norms.items()},
        bars_title="gradient norm",
        lines=[*_verdicts(shared), *hints(shared)],
    )
    data = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
    write_atomically(folder / "conflicts.png", data)
    return folder / "conflicts.png"


def _verdicts(part: Part) -> list[str]:
    """One line for every verdict that any pair has."""
    said = {"agree": "Agree", "unrelated": "Unrelated", "conflict": "In conflict"}
    found = {verdict: [pair.heads for pair in part.pairs if pair.verdict == verdict] for verdict in said}
    return [
        f"{said[v]}: {', '.join(f'{one} and {other}' for one, other in pairs)}." for v, pairs in found.items() if pairs
    ]


def _notes(found: Conflicts) -> np.ndarray:
    import numpy as np

    from visionkit.train.conflicts import SHARED

    notes = np.full((len(found.heads),) * 2, "", dtype=object)
    for pair in found.parts[SHARED].pairs:
        one, other = (found.heads.index(head) for head in pair.heads)
        text = "never in one batch" if pair.negative is None else f"negative in {pair.negative:.0%}"
        notes[one, other] = notes[other, one] = text
    return notes
