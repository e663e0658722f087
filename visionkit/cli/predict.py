"""``visionkit predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from visionkit.cli.options import PluginFiles, plugin_manager
from visionkit.errors import DataError, UserError
from visionkit.results.files import check_output_folder, output_names, printable
from visionkit.results.journal import JOURNAL, digest, output_files

if TYPE_CHECKING:
    from visionkit.infer import PredictionWriter, Predictor

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Files, folders or patterns such as 'in/*.jpg'.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write to.")],
    heads: Annotated[str | None, typer.Option(metavar="A,B", help="Only these heads; all if not given.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = "32-true",
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the model together.")] = 1,
    score: Annotated[
        float | None, typer.Option(help="Draw what scores at least this (0.5 for most); files hold everything.")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw an overlay of each image.")] = True,
    annotations: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Take image ids from this COCO file, by file name.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Prepare images as the run does for this source of its pipeline.")
    ] = None,
    scales: Annotated[
        str | None, typer.Option(metavar="A,B", help="Average label maps over the image in these sizes: 0.75,1,1.25.")
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average label maps over the mirror image too.")] = False,
    tiles: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Cut large images into blended squares of this side.")
    ] = None,
    on_error: Annotated[
        Literal["fail", "skip"], typer.Option(help="Stop at an image that cannot be read, or leave it out.")
    ] = "fail",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a call that was stopped; its images are not predicted again.")
    ] = False,
    plugin: PluginFiles = None,
) -> None:
    """Predict images with the heads of a run: COCO results, label maps and pictures."""
    check_output_folder(out)
    files = find_images(images, out)
    places = places_below(files)
    names = output_names(places)
    ids = read_ids(annotations, files) if annotations else [printable(place.as_posix()) for place in places]

    from visionkit.infer import PredictionWriter, load
    from visionkit.model.run import weights_digest

    predictor = load(run, device=device, precision=precision, plugins=plugin_manager(plugin), source=source)
    wanted = [name.strip() for name in heads.split(",") if name.strip()] if heads else None
    if scales or flip or tiles:
        look_closer(predictor, wanted, scales, flip, tiles)
    predictor.check_heads(wanted)
    belongs_to = {
        "run": digest((run / "pipeline.yaml").read_bytes(), (run / "labels.json").read_bytes()),
        "weights": weights_digest(predictor.model),
        "images": f"{len(files)} images {digest(*names, *map(str, ids))}",
        **{"heads": heads, "device": predictor.device.type, "precision": precision, "batch_size": batch_size},
        **{"source": source, "scales": scales, "flip": flip, "tiles": tiles, "pictures": pictures, "score": score},
    }
    inputs = [*files, *([annotations] if annotations else [])]
    with (
        PredictionWriter(out, predictor.labels, pictures=pictures, min_score=score, resume=resume,
                         belongs_to=belongs_to, protected=inputs) as writer,
        _progress(files) as step,
    ):  # fmt: skip
        done = [writer.completed(name, str(file)) for name, file in zip(names, files)]
        # Whole batches again: in the last bits, predictions may depend on the other images of a batch.
        again = [not all(done[i - i % batch_size :][:batch_size]) for i in range(len(files))]
        pending = [file for file, selected in zip(files, again) if selected]
        results = predictor.stream(pending, heads=wanted, batch_size=batch_size, on_error=on_error)
        for i, (file, name, image_id) in enumerate(zip(files, names, ids)):
            result = next(results) if again[i] else None
            if result is None:
                writer.keep(name)
            elif result.error is not None:
                print(f"skipped: {result.error}", file=sys.stderr)
                writer.skip(image_id=image_id, name=name, reason=str(result.error), path=str(file))
            else:
                writer.add(result.predictions, image_id=image_id, name=name, image=result.image, path=str(file))
            step()
    _summarize(writer, len(files))


def _summarize(writer: PredictionWriter, total: int) -> None:
    """One line on what was written.

    Raises:
        DataError: all images were skipped.
    """
    skipped = len(writer.skipped)
    if skipped == total:
        raise DataError(f"none of the {total} images could be read: {writer.skipped[0]['reason']}")
    notes = [f"{skipped} skipped, see skipped.json"] if skipped else []
    notes += [f"{writer.problems} not drawn"] if writer.problems else []
    written = ", ".join(f"{what} ({count})" for what, count in writer.counts.items())
    left_out = f" ({', '.join(notes)})" if notes else ""
    typer.echo(f"{total - skipped} images{left_out} -> {printable(str(writer.out))}: {written or 'nothing to write'}")


def look_closer(
    predictor: Predictor, heads: Sequence[str] | None, scales: str | None, flip: bool, tiles: int | None
) -> None:
    """Have the heads that are asked look at several sizes, mirror images and parts of an image.

    Raises:
        UserError: scales that are no positive numbers, or a head that does not score the classes of every pixel.
    """
    from visionkit.config import RefineConfig
    from visionkit.model.refine import check_refinable

    changes: dict[str, Any] = {"flip": True} if flip else {}
    if tiles:
        changes["window"] = tiles
    if scales:
        try:
            changes["scales"] = tuple(float(part) for part in scales.split(","))
        except ValueError:
            changes["scales"] = (0.0,)
        if not all(scale > 0 for scale in changes["scales"]):
            raise UserError(f"--scales {scales}: expected positive numbers, such as 0.75,1,1.25")
    for name in heads or predictor.heads:
        if name in predictor.heads:
            check_refinable(predictor.model, name)
            predictor.refine[name] = replace(predictor.refine.get(name, RefineConfig()), **changes)


def find_images(given: Sequence[str], out: Path | None = None) -> list[Path]:
    """The image files that are meant, each once, in the order given and sorted within a folder or pattern.

    What earlier calls wrote is not taken from a folder or pattern: the files that a journal lists which is in ``out``
    or in one of these folders. A file that is given by its name is always taken.

    Raises:
        UserError: a name that is no file, folder or pattern with a match, or a folder without images.
    """
    import glob

    found: dict[str, Path] = {}
    for name in given:
        path = Path(name)
        if _is_dir(path):
            candidates = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            written = written_files([out, *(journal.parent for journal in path.rglob(JOURNAL))])
        elif os.path.lexists(path):
            candidates, written = [path], set()
        else:
            candidates = [Path(p) for p in sorted(glob.glob(name, recursive=True)) if Path(p).is_file()]
            written = written_files([out])
            if not candidates:
                raise UserError(f"{name}: no such image, folder or pattern")
        images = [p for p in candidates if os.path.abspath(p) not in written]
        if not images:
            earlier = f"; {len(candidates)} that earlier calls wrote are left out" if candidates else ""
            kinds = f"no images in this folder ({', '.join(sorted(SUFFIXES))})" if path.is_dir() else "no image"
            raise UserError(f"{name}: {kinds}{earlier}")
        for image in images:
            found.setdefault(os.path.abspath(image), image)
    return list(found.values())


def written_files(folders: Sequence[Path | None]) -> set[str]:
    """The absolute paths of the files that journals in these folders list."""
    return {
        os.path.abspath(folder / file)
        for folder in dict.fromkeys(folders)
        if folder is not None
        for file in output_files(folder)
    }


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or a folder above may not be searched
        return False


def places_below(files: Sequence[Path]) -> list[Path]:
    """Where each file lies below the folder that holds them all."""
    absolute = [Path(os.path.abspath(file)) for file in files]
    root = os.path.commonpath([file.parent for file in absolute])
    return [file.relative_to(root) for file in absolute]


def read_ids(annotations: Path, files: Sequence[Path]) -> list[int | str]:
    """The id of each file in a COCO annotation file: of the longest ``file_name`` that the file's path ends in.

    Raises:
        DataError: it is no such annotation file, a file is not in it, or two files have one id.
    """
    from visionkit.coco.annotations import read_images
    from visionkit.coco.report import Report
    from visionkit.coco.values import entries, load_json

    path = str(annotations)
    images = read_images(entries(load_json(path), "images", path), Report(path))
    known = {Path(name).parts: image_id for name, image_id in zip(images.file_names, images.ids) if name}
    ids: list[int | str] = []
    taken: dict[int | str, Path] = {}
    for file in files:
        parts = file.absolute().parts
        tails = (parts[start:] for start in range(len(parts)))
        image_id = next((known[tail] for tail in tails if tail in known), None)
        if image_id is None:
            raise DataError(f"{file}: no image of this name in {annotations}")
        if image_id in taken:
            raise DataError(f"{file} and {taken[image_id]} are both image {image_id} of {annotations}")
        taken[image_id] = file
        ids.append(image_id)
    return ids


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Any]:
    """Something to call after each image: moves a bar on a terminal, else prints a line now and then."""
    from rich.console import Console

    console = Console(stderr=True)
    total, done = len(files), 0
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("predict", total=total)
            yield lambda: bar.advance(task)
        return

    def step() -> None:
        nonlocal done
        done += 1
        if done % max(1, total // 10) == 0 or done == total:
            print(f"predict {done}/{total}", file=sys.stderr)

    yield step
