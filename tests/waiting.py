"""Waiting for what others do: threads, processes, servers."""

import time
from collections.abc import Callable

SECONDS = 20.0


def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless the condition comes true soon."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
