"""Worker processes, and how what they make comes back.

Nothing is shared that a worker could leave in disorder when it is killed: every worker has a socket of its own, and no
lock is held between processes. Tensors come back in an anonymous file in memory whose descriptor is sent along, so the
size of ``/dev/shm`` (64 MB in Docker) does not matter; where the system has no such files, everything goes through the
socket.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import multiprocessing
import os
import pickle
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import cv2
import torch
from torch import Tensor

from visionkit.errors import UserError
from visionkit.plugins import explain

_AHEAD = 2  # items that each worker is given before the first result is taken
_ALIGNMENT = 64
_HEADER = struct.Struct("<?QQ")  # in a file in memory (or in the socket), where the pickled part starts, bytes in all
_POLL_S = 2.0  # how often either side looks whether the other is alive; what arrives is not delayed by it


def in_workers(
    task: Callable[[Any], Any], items: Iterable[Any], workers: int, describe: Callable[[Any], str]
) -> Iterator[Any]:
    """``map(task, items)``, computed by so many processes, in order.

    An exception of ``task`` that is a ``UserError`` is raised here as it is, any other as a ``UserError`` in one line.

    Args:
        task: called in the workers.
        items: read as results are taken, a few ahead.
        workers: processes.
        describe: an item in words, for errors.

    Raises:
        UserError: a process cannot be started, or one ends before its time: the message says of what, at which item,
            and what can be done.
    """
    source = iter(items)
    pool: list[_Worker] = []
    try:
        for number in range(workers):
            pool.append(_Worker(task, number, describe))  # noqa: PERF401 - those started are ended if one cannot be
        turns: deque[_Worker] = deque()  # whose result is next
        for worker, item in zip(pool * _AHEAD, source):
            worker.send(item)
            turns.append(worker)
        while turns:
            worker = turns.popleft()
            result = worker.receive()
            for item in source:
                worker.send(item)
                turns.append(worker)
                break
            yield result
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.stop()


class _Worker:
    """One process, seen from the main process."""

    def __init__(self, task: Callable[[Any], Any], number: int, describe: Callable[[Any], str]) -> None:
        self.number, self.describe = number, describe
        self.items: deque[Any] = deque()  # whose results are not here yet
        context = multiprocessing.get_context()
        try:
            self.channel, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(task, other), daemon=True)
            self.process.start()
        except OSError as error:
            raise UserError(f"loader worker {number} cannot be started: {error.strerror or error}; a smaller "
                            "train.workers needs fewer processes and open files, 0 needs none") from None  # fmt: skip
        # The only copy is the worker's now: the channel ends when the worker does.
        other.close()

    def send(self, item: Any) -> None:
        self.items.append(item)
        try:
            self.channel.send(item)
        except OSError:
            raise self.lost() from None

    def receive(self) -> Any:
        try:
            while not self.channel.poll(_POLL_S):
                if not self.process.is_alive() and not self.channel.poll(0):
                    raise self.lost()
            result = _receive(self.channel)
        except (EOFError, ConnectionError):
            raise self.lost() from None
        item = self.items.popleft()
        if isinstance(result, _Failure):
            raise UserError(f"loader worker {self.number}, at {self.describe(item)}: {result.text}")
        if isinstance(result, UserError):
            raise result
        return result

    def lost(self) -> UserError:
        """The error to raise where this worker is no more."""
        self.process.join(_POLL_S)
        code = self.process.exitcode
        at = f" while it worked on {self.describe(self.items[0])}" if self.items else ""
        who = f"loader worker {self.number} (PID {self.process.pid})"
        if code is None or code >= 0:
            return UserError(f"{who} ended with status {code}{at}; {_HINT}")
        name = _signal_name(-code)
        return UserError(f"{who} was killed by {name}{at}; {_HINTS.get(name, _HINT)}")

    def stop(self) -> None:
        self.process.join(_POLL_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(_POLL_S)
        self.channel.close()


_HINT = "train.workers: 0 loads in the main process"
_HINTS = {
    "SIGKILL": "the system does this where memory runs out: a smaller train.workers or train.batch_size needs less",
    "SIGBUS": "shared memory or a disk is full: in a container give more with --shm-size, or lower train.workers",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Failure:
    """An exception of the task that is no ``UserError``: its type, place and message in one line."""

    def __init__(self, text: str) -> None:
        self.text = text


def _serve(task: Callable[[Any], Any], channel: Connection) -> None:
    """A worker's life: items in, results out, until the main process ends it or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is interrupted too, and ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    parent = os.getppid()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            while not channel.poll(_POLL_S):
                if os.getppid() != parent:
                    return
            item = channel.recv()
            try:
                _send(channel, _result(task, item))
            except ConnectionError:
                return
            except Exception as error:  # it cannot be pickled, or there is no memory for it
                _send(channel, _Failure(explain(error)))


def _result(task: Callable[[Any], Any], item: Any) -> Any:
    try:
        return task(item)
    except UserError as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error class of a plugin with arguments of its own
            return UserError(str(error))
        return error
    except Exception as error:
        return _Failure(explain(error))


def _send(channel: Connection, value: Any) -> None:
    pickler = _Pickler(out := io.BytesIO(), pickle.HIGHEST_PROTOCOL)
    pickler.dump(value)
    start = pickler.end
    parts = [*pickler.parts, (start, out.getbuffer())]
    size = start + len(parts[-1][1])
    try:
        file = _in_memory(parts, size)
    except (AttributeError, OSError):  # no such call, or no memory or descriptor for it: then the long way
        data = bytearray(size)
        for offset, part in parts:
            data[offset : offset + len(part)] = part
        channel.send_bytes(_HEADER.pack(False, start, size))
        channel.send_bytes(data)
        return
    try:
        channel.send_bytes(_HEADER.pack(True, start, size))
        reduction.send_handle(channel, file, None)  # type: ignore[arg-type]
    finally:
        os.close(file)


def _in_memory(parts: list[tuple[int, memoryview]], size: int) -> int:
    """The descriptor of an anonymous file that holds the parts, each at its offset."""
    file = os.memfd_create("visionkit")
    try:
        # Written and not mapped: where memory runs out, this is an error and no signal.
        for offset, part in parts:
            while part:
                count = os.pwrite(file, part, offset)
                part, offset = part[count:], offset + count
        os.ftruncate(file, size)
    except OSError:
        os.close(file)
        raise
    return file


def _receive(channel: Connection) -> Any:
    in_memory, start, size = _HEADER.unpack(channel.recv_bytes())
    if in_memory:
        try:
            file = reduction.recv_handle(channel)
        except RuntimeError:  # this is how Python tells that the system had no descriptor left
            raise UserError("too many open files to take in a batch: raise the limit (ulimit -n), or lower "
                            "train.workers") from None  # fmt: skip
        try:
            data: Any = mmap.mmap(file, size, flags=mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0))
        except OSError as error:
            raise UserError(f"no memory for a batch of {size:,} bytes ({error.strerror}): lower train.batch_size or "
                            "train.workers") from None  # fmt: skip
        finally:
            os.close(file)
    else:
        data = bytearray(size)
        channel.recv_bytes_into(data)
    buffer = torch.frombuffer(data, dtype=torch.uint8)
    return _Unpickler(buffer[start:].numpy().tobytes(), buffer).load()


_Ticket = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


class _Pickler(pickle.Pickler):
    """Pickles everything but tensors, which are listed beside: there may be hundreds of them, and large ones."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tickets: dict[int, _Ticket] = {}
        self.kept: list[Tensor] = []
        self.parts: list[tuple[int, memoryview]] = []
        self.end = 0

    def persistent_id(self, value: Any) -> _Ticket | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self.tickets:  # two targets may share a tensor
            strides = torch.empty_like(value, device="meta").stride()  # those of the value, but for gaps
            dense = value.detach()
            if value.stride() != strides:
                dense = torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(dense)
            line = torch.as_strided(dense, (value.numel(),), (1,), dense.storage_offset())
            self.kept.append(value)  # so that no other tensor gets its id
            self.tickets[id(value)] = self.end, tuple(value.shape), strides, value.dtype
            self.parts.append((self.end, line.view(torch.uint8).numpy().data))
            self.end += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        return self.tickets[id(value)]


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, buffer: Tensor) -> None:
        super().__init__(io.BytesIO(data))
        self.buffer = buffer

    def persistent_load(self, ticket: _Ticket) -> Tensor:
        start, shape, strides, dtype = ticket
        size = int(torch.Size(shape).numel()) * dtype.itemsize
        return self.buffer[start : start + size].view(dtype).as_strided(shape, strides)
