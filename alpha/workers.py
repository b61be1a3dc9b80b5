"""Threads and processes that share out a piece of work.

The pool's threads share out the parts of one operation: numpy and BLAS release the interpreter lock inside their loops,
so parts run side by side. What the parts are is decided by the shapes alone and never by the number of threads, so
results have the same bits on one thread and on many.

Processes do parts of a training step: threads of one interpreter wait for each other between any two numpy calls, which
in small models takes longer than the calls, and processes do not. They are forked when they are first needed, so they
know everything that existed then; after that, only memory from `shared_zeros` is common. They end when the work is
forgotten or the calling process ends.
"""

import contextlib
import contextvars
import math
import mmap
import os
import queue
import signal
import socket
import struct
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from alpha.errors import AlphaError
from alpha.interrupt import SIGNALS

# --- threads ----------------------------------------------------------------------------------------------------------


Part = Any


class WorkerPool:
    """Runs a function over parts on the calling thread and `threads - 1` others. One operation runs at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._jobs: queue.SimpleQueue[tuple[_Job, contextvars.Context]] = queue.SimpleQueue()
        self._started = 0

    def run(self, function: Callable[[Part], None], parts: Sequence[Part]) -> None:
        """Call `function` with each part; returns when all are done. An exception in any part is raised here."""
        helpers = min(self.threads, len(parts)) - 1
        if helpers <= 0:
            for part in parts:
                function(part)
            return
        while self._started < helpers:
            try:
                threading.Thread(target=self._work, daemon=True, name=f"alpha-worker-{self._started}").start()
            except RuntimeError as error:
                raise AlphaError(f"Another thread cannot start ({error}); use --threads=1.") from error
            self._started += 1
        job = _Job(function, parts)
        for _ in range(helpers):
            # A copy for each, since two threads cannot be in one context; it holds numpy's error state.
            self._jobs.put((job, contextvars.copy_context()))
        job.wait(job.take_parts())

    def _work(self) -> None:
        while True:
            job, context = self._jobs.get()
            done = context.run(job.take_parts)
            if done:
                job.finished.put(done)
            del job, context  # it holds arrays; waiting for the next job must not keep them


class _Job:
    def __init__(self, function: Callable[[Part], None], parts: Sequence[Part]) -> None:
        self.function = function
        self.remaining: Iterator[Part] = iter(parts)
        self.total = len(parts)
        self.finished: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.error: BaseException | None = None

    def take_parts(self) -> int:
        """Work until no part is left; returns how many this thread took. After an error the rest is skipped."""
        done = 0
        # next() on a sequence's iterator is atomic under the interpreter lock: each part is taken once.
        for part in self.remaining:
            done += 1
            if self.error is None:
                try:
                    self.function(part)
                except BaseException as error:  # handed to the calling thread, which raises it
                    self.error = error
        return done

    def wait(self, done: int) -> None:
        while done < self.total:
            done += self.finished.get()
        if self.error is not None:
            raise self.error


def task_threads(name: str) -> Executor:
    """An executor with as many threads as there are CPUs, or as many as the system lets start.

    Where it lets none start, what is submitted is done at once, by the calling thread.
    """
    threads = startable_threads(available_cpus())
    return ThreadPoolExecutor(threads, name) if threads else _CallingThread()


def startable_threads(most: int) -> int:
    """How many threads the system lets this process start beside those that it has, up to `most`: found by trying."""
    probes: list[threading.Thread] = []
    over = threading.Event()
    try:
        for _ in range(most):
            probe = threading.Thread(target=over.wait)
            probe.start()
            probes.append(probe)
    except RuntimeError:  # the limit is reached
        pass
    over.set()
    for probe in probes:
        probe.join()
    return len(probes)


class _CallingThread(Executor):
    def submit(self, task: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(task(*arguments, **named))
        except Exception as error:  # whoever asks for the result gets it
            future.set_exception(error)
        return future


def available_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


# --- processes --------------------------------------------------------------------------------------------------------


_COMMAND = struct.Struct("<4i")
_DONE, _FAILED, _NO_MEMORY = b"D", b"F", b"M"
_LONGEST_REPORT = 1 << 16


def shared_zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A new array in memory that processes forked later share with this one. Raises MemoryError."""
    count = math.prod(shape)
    size = max(1, count * np.dtype(dtype).itemsize)
    try:
        memory = mmap.mmap(-1, size)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no {size} bytes of memory for processes to share") from error
    return np.frombuffer(memory, dtype, count).reshape(shape)


class WorkerProcesses:
    """Runs `work(part, threads)` for each part; `threads` is how many threads the part may use in its process."""

    def __init__(self, work: Callable[[int, int], None], parts: int) -> None:
        self._work = work
        self._parts = parts
        self._helpers: list[_Helper] = []
        weakref.finalize(self, _end_all, self._helpers)

    def run(self, threads: int) -> None:
        """Do every part, on as many processes as there are threads to use; returns when all are done.

        An exception in the calling process is raised as it is; one in another process as a RuntimeError with its
        traceback, or as a MemoryError. Raises AlphaError when another process cannot start, or is gone.
        """
        count = max(1, min(threads, self._parts))
        while len(self._helpers) < count - 1:
            self._helpers.append(_Helper(self._work))
        try:
            for index, helper in enumerate(self._helpers[: count - 1], 1):
                helper.start(index, self._parts, count, threads // count)
            for part in range(0, self._parts, count):
                self._work(part, threads // count)
            for helper in self._helpers[: count - 1]:
                helper.wait()
        except BaseException:
            # Their replies, which may still come, belong to a run that is over.
            _end_all(self._helpers)
            raise


class _Helper:
    """A forked process that waits for commands."""

    def __init__(self, work: Callable[[int, int], None]) -> None:
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        with warnings.catch_warnings():
            # Of a fork beside other threads, which may hold locks: all that the new process does is compute.
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._process = os.fork()
            except OSError as error:
                self._socket.close()
                theirs.close()
                raise AlphaError(
                    f"Another process for the training step cannot start ({error}); use --threads=1."
                ) from error
        if self._process == 0:
            _serve(work, theirs)
        theirs.close()

    def start(self, first: int, end: int, step: int, threads: int) -> None:
        """Let it do the parts range(first, end, step)."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `wait` notices
            self._socket.sendall(_COMMAND.pack(first, end, step, threads))

    def wait(self) -> None:
        """Wait for its parts."""
        try:
            report = self._socket.recv(_LONGEST_REPORT)
        except ConnectionResetError:
            report = b""
        if not report:
            raise AlphaError(
                "A process that did a part of the training step was ended from outside, perhaps for lack of memory; "
                "use a smaller --batch, or --threads=1."
            )
        if report != _DONE:
            kind = MemoryError if report[:1] == _NO_MEMORY else RuntimeError
            raise kind(report[1:].decode(errors="replace"))

    def end(self) -> None:
        """End the process, whatever it is doing; only its owner can, not another process that was forked from that."""
        if os.getpid() != self._owner:
            return
        self._socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process, 0)


def _end_all(helpers: list[_Helper]) -> None:
    while helpers:
        helpers.pop().end()


def _serve(work: Callable[[int, int], None], connection: socket.socket) -> NoReturn:
    """What a forked process does: obey commands until the other side is closed."""
    try:
        # Signals are for the calling process, which ends this one.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        # Files stay locked, and the sockets of other helpers usable, as long as any process has them open.
        os.closerange(3, connection.fileno())
        os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        while command := connection.recv(_COMMAND.size):
            connection.sendall(_report(work, *_COMMAND.unpack(command)))
    finally:
        os._exit(0)


def _report(work: Callable[[int, int], None], first: int, end: int, step: int, threads: int) -> bytes:
    try:
        for part in range(first, end, step):
            work(part, threads)
    except BaseException as error:  # the calling process raises it
        kind = _NO_MEMORY if isinstance(error, MemoryError) else _FAILED
        return kind + traceback.format_exc()[-_LONGEST_REPORT // 8 :].encode()
    return _DONE
