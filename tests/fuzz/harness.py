"""Making an input, reading it in a process of its own, and deciding whether the outcome is a bug."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from visionkit.errors import PipelineError, UserError

SURFACES = tuple(sorted(path.stem for path in (Path(__file__).parent / "surfaces").glob("[a-z]*.py")))
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20.0
START_UP = 40.0  # seconds that a command may take in addition, to import torch on a busy machine
EVERY_SEED = 9  # every ninth input is a seed as it is, which must be accepted
MEMORY = 2 << 30  # bytes, in addition to what the process holds before it reads the input
ADDRESS_LIMIT = 3 * MEMORY  # where the operating system stops an allocation, to protect the machine


NOTES = ("warning:", "skipped:", "predict ", "libpng ")  # lines on stderr beside the error


class WrongResult(Exception):
    """An input was accepted, and what was read or computed is wrong."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: ``accepted``, ``refused``, or the bug: ``stack trace``, ``crash``, ``hang``, ``memory``, ``message`` (not
            one line), ``wrong result``, ``status`` (a command that ends with neither 0 nor 2), ``refused seed``.
        detail: the message, the stack trace, or the end of what the command printed.
        seconds: wall-clock time.
    """

    kind: str
    detail: str
    seconds: float = 0.0

    @property
    def is_bug(self) -> bool:
        return self.kind not in ("accepted", "refused")


def load(surface: str) -> ModuleType:
    """The module of a surface, with all that it imports."""
    return importlib.import_module(f"tests.fuzz.surfaces.{surface}")


def make_input(surface: ModuleType, corpus: list[Path], seed: int, index: int, folder: Path) -> None:
    """Write input ``index`` into ``folder``."""
    rng = random.Random(f"{surface.__name__}/{seed}/{index}")
    shutil.copytree(rng.choice(corpus), folder)
    if index % EVERY_SEED:
        surface.mutate(rng, folder)


def read(surface: ModuleType, folder: Path) -> Outcome:
    """Read an input through Python, in a forked process."""

    def work() -> tuple[str, str]:
        try:
            surface.run(folder)
        except UserError as error:
            return ("memory", _trace()) if _out_of_memory(error) else _message(str(error))
        except WrongResult as error:
            return "wrong result", str(error)
        except MemoryError:
            return "memory", _trace()
        except BaseException:  # SystemExit too: reading a file must not end the process
            return "stack trace", _trace()
        return "accepted", ""

    return in_fork(work)


def in_fork(
    work: Callable[[], tuple[str, str]], *, seconds: float = SECONDS, memory: int = MEMORY, silent: bool = True
) -> Outcome:
    """The outcome of ``work``, which returns kind and detail, in a forked process that may crash, hang or grow."""
    with tempfile.TemporaryFile() as result:
        started = time.monotonic()
        child = os.fork()
        if not child:
            _in_child(work, result.fileno(), silent)
        status, peak = _wait(child, seconds)
        elapsed = time.monotonic() - started
        result.seek(0)
        kind, detail = json.loads(result.read() or b"[null, null]")
    if status is None:
        return Outcome("hang", f"more than {seconds:.0f} s", elapsed)
    if kind is None:
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        return Outcome("crash", f"the process ended with {name}", elapsed)
    if (growth := peak - _resident()) > memory and kind in ("accepted", "refused"):
        return Outcome("memory", f"{growth / 2**30:.1f} GB; {kind} {detail}", elapsed)
    return Outcome(kind, detail, elapsed)


def rehearse(work: Callable[[], object]) -> None:
    """Do something valid in a forked process, and import here what it has imported, so that no input waits for that.

    Raises:
        WrongResult: it fails.
    """

    def imports() -> tuple[str, str]:
        work()
        return "accepted", json.dumps([name for name in sys.modules if not name.startswith(("visionkit_file_", "__"))])

    outcome = in_fork(imports, seconds=10 * SECONDS)
    if outcome.kind != "accepted":
        raise WrongResult(f"what must work fails: {outcome.kind} {outcome.detail}")
    for name in json.loads(outcome.detail):
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def run_command(arguments: list[str], scratch: Path) -> Outcome:
    """The outcome of the real command, which may end with 0, or with 2 and one line on stderr.

    ``check`` ends with 1 where a check failed. ``validate`` tells what is wrong in lines that begin with ``FAIL``, on
    stdout. Warnings, and what libpng itself prints about compressed pixels, may come before.
    """
    out, err = scratch / "stdout.txt", scratch / "stderr.txt"
    started = time.monotonic()
    child = os.fork()
    if not child:
        _exec_in_child([sys.executable, "-m", "visionkit", *arguments], out, err)
    status, peak = _wait(child, SECONDS + START_UP)
    elapsed = time.monotonic() - started
    printed, errors = (file.read_text(errors="replace") for file in (out, err))
    tail = f"visionkit {' '.join(arguments)}\n{printed[-2000:]}\n{errors[-4000:]}"
    if status is None:
        return Outcome("hang", tail, elapsed)
    if "Traceback (most recent call last)" in printed + errors:
        return Outcome("stack trace", tail, elapsed)
    if status not in ((0, 1, 2) if arguments[0] == "check" else (0, 2)):
        return Outcome("crash" if status < 0 else "status", f"status {status}\n{tail}", elapsed)
    if peak > MEMORY + (1 << 30):  # the interpreter and torch hold less than one GB
        return Outcome("memory", f"{peak / 2**30:.1f} GB\n{tail}", elapsed)
    if status in (0, 1):
        return Outcome("accepted", "", elapsed)
    lines = [line for line in errors.splitlines() if not line.startswith(NOTES)]
    failed = [line for line in printed.splitlines() if line.startswith("FAIL")]
    if len(lines) == 1 and lines[0].startswith("error: "):
        return Outcome("refused", lines[0], elapsed)
    if not lines and failed:
        return Outcome("refused", failed[0], elapsed)
    return Outcome("message", tail, elapsed)


def _in_child(work: Callable[[], tuple[str, str]], result: int, silent: bool) -> None:
    """Run ``work`` and leave its outcome in the file ``result``; does not return."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_DATA, (_data_size() + ADDRESS_LIMIT,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if silent:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
        os.write(result, json.dumps(work()).encode())
    finally:
        os._exit(0)  # no clean-up of what belongs to the parent


def _exec_in_child(arguments: list[str], out: Path, err: Path) -> None:
    """Become the command; does not return."""
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (ADDRESS_LIMIT + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execve(arguments[0], arguments, {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"})
    finally:
        os._exit(127)


def _wait(child: int, seconds: float) -> tuple[int | None, int]:
    """Exit status of a child (negative: a signal; ``None``: killed because it hangs) and its peak memory in bytes.

    It hangs after so many seconds of computation, or ten times as long in all: other processes may slow it down.
    """
    pause, deadline = 0.001, time.monotonic() + 10 * seconds
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if time.monotonic() > deadline or _computed(child) > seconds:
            os.kill(child, signal.SIGKILL)
            usage = os.wait4(child, 0)[2]
            return None, usage.ru_maxrss * 1024
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _message(text: str) -> tuple[str, str]:
    """Whether the message of a ``UserError`` is one line that says something."""
    if not text.strip() or "\n" in text or "\r" in text or len(text) > 2000:
        return "message", f"not one line of at most 2,000 characters: {text[:3000]!r}"
    return "refused", text


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether an allocation failed while data were read, whatever the error became on its way.

    How much memory a model needs is up to its pipeline.
    """
    while error is not None and not isinstance(error, PipelineError):
        if isinstance(error, MemoryError) or "Insufficient memory" in str(error) or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _trace() -> str:
    return "".join(traceback.format_exc(limit=-12))[-6000:]


def _computed(process: int) -> float:
    """Seconds of computation of a process."""
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def _resident() -> int:
    """Bytes of memory that a fork of this process holds from the start: all but pages of files, which it loads anew."""
    resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def _data_size() -> int:
    """Bytes that count for RLIMIT_DATA in this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def scratch_folder(inside: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed afterwards; if it is not inside another one, in memory where the machine allows it."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=inside or memory)
