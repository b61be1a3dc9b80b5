"""Finding the fastest number of threads by measuring the work itself.

The first repetitions of the work run on different numbers of threads, in turn so that a change of the machine's speed
meets all alike; the rest run on the fastest. Results do not depend on the number, so nothing is lost.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator

from alpha.backend import Backend

ROUNDS = 3


class ThreadChoice:
    """Wrap each repetition of the work in `with choice.measured():`; `requested` 0 means to choose."""

    def __init__(self, backend: Backend, requested: int = 0) -> None:
        self._backend = backend
        self._seconds: dict[int, list[float]] = {count: [] for count in backend.thread_choices()}
        # The first repetition of all is not counted: it also pays for memory and caches.
        self._plan = [] if requested else [*list(self._seconds)[:1], *(ROUNDS * list(self._seconds))]
        if requested:
            backend.threads = requested
        elif len(self._seconds) == 1:
            self._plan = []

    @property
    def is_open(self) -> bool:
        """Whether there are still numbers to try."""
        return bool(self._plan)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """One repetition of the work."""
        if not self._plan:
            yield
            return
        is_warmup = len(self._plan) > ROUNDS * len(self._seconds)
        self._backend.threads = self._plan.pop(0)
        start = time.perf_counter()
        yield
        if not is_warmup:
            self._seconds[self._backend.threads].append(time.perf_counter() - start)
        if not self._plan:
            self._backend.threads = min(self._seconds, key=lambda count: statistics.median(self._seconds[count]))

    def report(self) -> str | None:
        """What was measured, once a choice has just been made; None before that, and when there was none to make."""
        if self._plan or not any(self._seconds.values()):
            return None
        figures = ", ".join(
            f"{count}: {1e3 * statistics.median(seconds):.1f} ms" for count, seconds in self._seconds.items()
        )
        self._seconds = {}
        return f"Fastest number of threads here: {self._backend.threads} ({figures})."
