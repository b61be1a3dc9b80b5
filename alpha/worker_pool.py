"""A few threads that share out the parts of one operation.

Numpy and BLAS release the interpreter lock inside their loops, so parts run side by side. What the parts are is decided
by the shapes alone and never by the number of threads, so results have the same bits on one thread and on many.
"""

import contextvars
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alpha.errors import AlphaError

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


def available_cpus() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
