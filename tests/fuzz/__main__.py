"""The command line of the fuzzer; ``tests/fuzz/__init__.py`` documents it."""

from __future__ import annotations

import argparse
import gc
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.fuzz import harness
from tests.fuzz.harness import Outcome


def main() -> int:
    options = _options()
    warnings.simplefilter("ignore")  # of the libraries that the mutations use
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch folders are removed
    bugs = 0
    for name in options.surface or harness.SURFACES:
        with harness.scratch_folder() as scratch:
            bugs += _fuzz(name, options, Path(scratch))
    return min(bugs, 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz everything that reads a file.")
    parser.add_argument("--surface", action="append", choices=harness.SURFACES, help="default: all; may be repeated")
    parser.add_argument("--inputs", type=int, default=1000, help="inputs per surface (default: 1000)")
    parser.add_argument("--commands", type=int, default=50, help="of them, through the real command (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs")
    parser.add_argument("--processes", type=int, default=1, help="processes that read inputs at the same time")
    parser.add_argument("--index", type=int, help="replay this input only")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="replay the input in this folder")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where inputs with bugs are kept")
    return parser.parse_args()


def _fuzz(name: str, options: argparse.Namespace, scratch: Path) -> int:
    """Fuzz one surface, print its figures, and return the number of bugs."""
    surface = harness.load(name)
    (scratch / "seeds").mkdir()
    work = partial(_one, name, surface.seeds(scratch / "seeds"), scratch, options)
    if options.replay or options.index is not None:
        outcome, by_command = work(options.index or 0)[1:]
        print(f"{name}: {outcome.kind} {outcome.detail}\nby command: {by_command.kind} {by_command.detail}")
        return outcome.is_bug + by_command.is_bug
    started, counts, bugs = time.monotonic(), Counter(), 0
    done = 0
    try:
        # What was imported before is not visited by the garbage collector, and so not copied, in forked processes.
        with ProcessPoolExecutor(options.processes, get_context("fork"), initializer=gc.freeze) as pool:
            for index, *outcomes in pool.map(work, range(options.inputs)):
                done += 1
                counts[outcomes[0].kind] += 1
                counts["by command"] += len(outcomes) - 1
                for outcome in outcomes:
                    if outcome.is_bug:
                        bugs += 1
                        lines = [line for line in outcome.detail.splitlines() if line.strip()]
                        shown = lines[-1][:300] if lines else ""
                        print(f"{name} {options.seed}-{index}: {outcome.kind}: {shown}", flush=True)
    except BrokenProcessPool:
        bugs += 1
        print(f"{name} {options.seed}-{done}, or one soon after it: the process that makes the inputs died", flush=True)
    finally:  # the figures so far, where it is stopped
        figures = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        print(f"{name}: {done} inputs in {time.monotonic() - started:.0f} s: {figures}; {bugs} bugs", flush=True)
    return bugs


def _one(
    name: str, corpus: list[Path], place: Path, options: argparse.Namespace, index: int
) -> tuple[int, Outcome, ...]:
    """The outcomes of one input: through Python, and for some through the real command."""
    surface = harness.load(name)
    every = max(1, options.inputs // options.commands) if options.commands else 0
    with harness.scratch_folder(place) as created:
        scratch = Path(created)
        folder = scratch / "input"
        if options.replay:
            shutil.copytree(options.replay, folder, symlinks=True)
        else:
            harness.make_input(surface, corpus, options.seed, index, folder)
        kept = shutil.copytree(folder, scratch / "kept", symlinks=True)  # reading may write into the folder
        outcomes = [harness.read(surface, folder)]
        replayed = options.replay is not None or options.index is not None
        if replayed or (every and index % every == every - 1):
            outcomes.append(harness.run_command(surface.command(folder), scratch))
        if not replayed and index % harness.EVERY_SEED == 0:
            must_accept = len(outcomes) if name != "pipelines" else 1  # of most pipelines, the data is not there
            outcomes[:must_accept] = [
                replace(o, kind="refused seed") if o.kind == "refused" else o for o in outcomes[:must_accept]
            ]
        if any(outcome.is_bug for outcome in outcomes) and not replayed:
            _keep(kept, options.out / name / f"{options.seed}-{index}", name, options.seed, index, outcomes)
    return index, *outcomes


def _keep(folder: Path, out: Path, name: str, seed: int, index: int, outcomes: list[Outcome]) -> None:
    """Keep the input of a bug, with a report that says how to replay it."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out / "input", symlinks=True)
    lines = [f"python -m tests.fuzz --surface {name} --seed {seed} --index {index}",
             f"python -m tests.fuzz --surface {name} --replay {out}/input"]  # fmt: skip
    lines += [f"\n{outcome.kind} after {outcome.seconds:.1f} s\n{outcome.detail}" for outcome in outcomes]
    (out / "report.txt").write_text("\n".join(lines) + "\n", errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
