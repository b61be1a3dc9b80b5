"""Stopping on Ctrl-C without losing anything: the first request is noted, a second one ends the work at once."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Inside `with StopRequest() as stop:`, `stop.requested` becomes true at the first SIGINT or SIGTERM.

    A second signal raises KeyboardInterrupt wherever the program is. Only for the main thread.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
