"""What a person and a program see of a run while it goes on."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table
from torch import Tensor

from visionkit.model.graph import Losses
from visionkit.model.run import check_regular
from visionkit.results.files import json_text, write_atomically, write_errors
from visionkit.types.device import on_host


class Averages:
    """Means of losses since the last report; losses of heads that saw no label do not count."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self.images = 0
        self.since = time.perf_counter()

    def add(self, losses: Losses, labelled: dict[str, int], images: int) -> None:
        """Take in one batch; ``labelled`` says how many of its images each head learnt from."""
        for head, named in losses.items():
            if not labelled[head]:
                continue
            for name, value in named.items():
                key = f"{head}/{name}"
                self._sums[key] = self._sums.get(key, torch.zeros((), device=value.device)) + value.detach()
                self._counts[key] += 1
        self.images += images

    def read(self) -> tuple[dict[str, float], float]:
        """Means by ``head/name``, and images a second; then starts anew."""
        sums = zip(self._sums, on_host(list(self._sums.values())))
        means = {key: float(value) / self._counts[key] for key, value in sums}
        rate = self.images / max(time.perf_counter() - self.since, 1e-9)
        self._clear()
        return means, rate


class MetricsFile:
    """``metrics.jsonl``: one JSON object a line, appended as the run goes on.

    On resume, lines after the checkpoint's step are dropped, so that no step stands there twice; with
    ``evaluated_again``, the metrics of that step too.
    """

    def __init__(self, path: Path, resumed_at: int | None, *, evaluated_again: bool = False) -> None:
        if resumed_at is None:
            write_atomically(path, "")
        elif path.exists():
            check_regular(path)
            with write_errors(path):  # it is rewritten
                text = path.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if _step(line) <= resumed_at]
            if evaluated_again:
                lines = [line for line in lines if _step(line) < resumed_at or "metrics" not in json.loads(line)]
            write_atomically(path, "".join(line + "\n" for line in lines))
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a", buffering=1)  # noqa: SIM115 - open for as long as the run

    def write(self, **values: Any) -> None:
        """Append a line."""
        with write_errors(self._file.name):
            self._file.write(json_text(values) + "\n")

    def close(self) -> None:
        with write_errors(self._file.name):
            self._file.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return float("inf")  # such as a line cut short by a killed process


class Progress:
    """A live table on a terminal, plain lines elsewhere.

    Args:
        steps: of the whole run.
        quiet: show nothing (other processes of a distributed run).
    """

    def __init__(self, steps: int, console: Console | None = None, quiet: bool = False) -> None:
        self.steps, self.quiet = steps, quiet
        self.console = console or Console(stderr=False)
        self.started: tuple[float, int] | None = None
        live = self.console.is_terminal and not quiet and os.environ.get("TERM") != "dumb"
        self._live = Live(console=self.console, refresh_per_second=4, transient=True) if live else None
        if self._live:
            self._live.start()

    def report(self, step: int, losses: dict[str, float], rate: float, lr: float) -> None:
        """Show where the run stands after ``step`` steps."""
        if self.quiet:
            return
        now = time.perf_counter()
        self.started = self.started or (now, step)
        elapsed, done = now - self.started[0], step - self.started[1]
        left = f"{elapsed / done * (self.steps - step):.0f} s left" if done else ""
        line = f"step {step}/{self.steps}  {rate:.1f} images/s  lr {lr:.2g}  {left}"
        if self._live:
            self._live.update(_table(line, losses))
        else:
            heads = "  ".join(f"{head} {value:.3f}" for head, value in by_head(losses).items())
            self.console.print(f"{line}  {heads}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()


def by_head(losses: dict[str, float]) -> dict[str, float]:
    """The sum of losses of each head."""
    sums: dict[str, float] = defaultdict(float)
    for key, value in losses.items():
        sums[key.split("/")[0]] += value
    return dict(sums)


def _table(title: str, losses: dict[str, float]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("head", style="bold")
    table.add_column("loss", justify="right")
    table.add_column("made of", style="dim")
    for head, value in by_head(losses).items():
        parts = "  ".join(f"{k.split('/', 1)[1]} {v:.3f}" for k, v in losses.items() if k.split("/")[0] == head)
        table.add_row(head, f"{value:.3f}", parts)
    return table
