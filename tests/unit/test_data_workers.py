"""Worker processes: results as without them, and one line where a process is lost."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from visionkit.data.workers import in_workers
from visionkit.errors import DataError, UserError


def name(item: Any) -> str:
    return f"item {item}"


def results(task: Callable[[Any], Any], items: Any = range(6), workers: int = 2) -> list[Any]:
    return list(in_workers(task, items, workers, name))


def tensors(n: int) -> dict[str, Any]:
    shared = torch.arange(n + 3)
    return {
        "image": torch.full((2, 5, 7, 3), n, dtype=torch.uint8).permute(0, 3, 1, 2),
        "pair": [shared, shared],
        "kinds": [torch.tensor(n * 0.5, dtype=torch.bfloat16), torch.zeros(0, 4), torch.tensor([True, False])],
        "view": torch.arange(40.0).reshape(5, 8)[1:4, ::2],
        "text": f"{n}",
    }


@pytest.mark.parametrize("memory", [True, False])
def test_tensors_come_back_as_they_are(memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    if not memory:
        monkeypatch.setattr(os, "memfd_create", none_left, raising=False)
    items = [5, 1, 4]
    for n, result in zip(items, results(tensors, items), strict=True):
        expected = tensors(n)
        assert result["text"] == expected["text"]
        assert torch.equal(result["image"], expected["image"])
        assert result["image"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(result["view"], expected["view"])
        assert result["pair"][0].data_ptr() == result["pair"][1].data_ptr()
        for mine, theirs in zip(result["kinds"], expected["kinds"], strict=True):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs)
        result["image"] += 1  # it belongs to the receiver


@pytest.mark.parametrize("workers", [1, 3])
def test_order_is_kept_and_items_are_read_as_they_are_needed(workers: int) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    stream = in_workers(lambda n: n * n, endless(), workers, name)
    assert [next(stream) for _ in range(10)] == [n * n for n in range(10)]
    assert len(taken) <= 10 + 2 * workers
    stream.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert results(str, [], workers) == []


def die(number: int) -> Callable[[int], int]:
    def task(n: int) -> int:
        if n == 3:
            faulthandler.disable()  # pytest's trace is of no interest
            os.kill(os.getpid(), number)
            signal.pause()
        return n

    return task


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (
            signal.SIGKILL,
            "the system does this where memory runs out: a smaller train.workers or train.batch_size",
        ),
        (
            signal.SIGBUS,
            "shared memory or a disk is full: in a container give more with --shm-size, or lower",
        ),
        (signal.SIGTERM, "train.workers: 0 loads in the main process"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_one_line(number: int, hint: str, workers: int) -> None:
    seen = []
    with pytest.raises(UserError) as caught:
        seen.extend(in_workers(die(number), range(9), workers, name))
    message = str(caught.value)
    assert message.startswith(f"loader worker {3 % workers} (PID ")
    assert f"was killed by {signal.Signals(number).name} while it worked on item 3; {hint}" in message
    assert "\n" not in message
    assert not multiprocessing.active_children()


def test_a_crashed_worker_is_one_line() -> None:
    def crash(_: Any) -> None:
        faulthandler.disable()
        ctypes.string_at(0)

    with pytest.raises(UserError, match=r"was killed by SIGSEGV while it worked on item 0; train.workers: 0 loads"):
        results(crash)


def test_an_ended_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"ended with status 3 while it worked on item 0; train.workers: 0 loads in"):
        results(lambda _: os._exit(3))
    with pytest.raises(UserError, match=r"ended with status 4 while it worked on item 0"):
        results(lambda _: sys.exit(4))


class Odd(DataError):
    """Cannot be pickled: its arguments are not those of its base."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line}: odd")


def test_errors_of_the_task_come_back() -> None:
    def wrong(error: Exception) -> None:
        raise error

    with pytest.raises(DataError, match=r"^a.png: truncated$"):
        results(wrong, [DataError("a.png: truncated")])
    with pytest.raises(UserError, match=r"^x:3: odd$"):
        results(lambda _: wrong(Odd("x", 3)))
    with pytest.raises(UserError, match=r"^loader worker 0, at item b: .*test_data_workers.py:\d+: KeyError: 'b'$"):
        results(lambda item: {}[item], "b")
    with pytest.raises(UserError, match=r"^loader worker 0, at item 0: .*cannot pickle"):
        results(lambda _: iter([os.scandir(".")]), [0])
    with pytest.raises(UserError, match="MemoryError"):
        results(lambda _: wrong(MemoryError()), [0])


def test_a_worker_that_cannot_be_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, count = os.fork, iter(range(9))

    def no_third() -> int:
        if next(count) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", no_third)
    with pytest.raises(UserError, match="loader worker 2 cannot be started: Resource temporarily unavailable; a sma"):
        results(str, workers=4)
    assert not multiprocessing.active_children()


def test_too_many_open_files_are_one_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = []
    stream = in_workers(tensors, range(200), 1, name)
    kept.append(next(stream))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(os.dup(0) + 8, 16), hard))
    try:
        with pytest.raises(UserError, match=r"too many open files to take in a batch: raise the limit \(ulimit -n\)"):
            kept.extend(stream)  # every batch that is kept holds a descriptor
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    gc.collect()


def test_workers_end_with_their_main_process() -> None:
    code = """
import os, signal
from visionkit.data.workers import in_workers
stream = in_workers(lambda _: os.getpid(), range(100), 2, str)
print(next(stream), next(stream), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers have inherited both pipes, which end when the last process does.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(set(done.stdout.split())) == 2
    assert done.stderr == ""
