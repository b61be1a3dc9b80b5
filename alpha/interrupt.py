"""Stopping on a signal such as Ctrl-C without losing anything, and without leaving anything half written behind."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,  # the terminal is gone
    signal.SIGXCPU,  # the processor time that was granted is nearly used up
    signal.SIGUSR1,  # what batch systems send some time before they end a job
    signal.SIGUSR2,
)
"""The signals that end a terminal or a job."""

_INSISTING = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Those that are sent by hand; the others come several times by themselves."""


def reasons_to_stop(signals: Sequence[signal.Signals] = SIGNALS) -> list[signal.Signals]:
    """The signals without that of a terminal that goes, where this is ignored: under nohup.

    Shells let what they start in the background ignore SIGINT and SIGQUIT, which says nothing about who sends one to
    this very process.
    """
    return [each for each in signals if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]


class StopRequest:
    """Inside `with StopRequest() as stop:`, `stop.requested` becomes true at the first of the signals.

    After that, one that is sent by hand raises KeyboardInterrupt wherever the program is. Only for the main thread.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        self._signals = signals
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in reasons_to_stop(self._signals):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number in _INSISTING:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the other signals do what SIGINT does, raise KeyboardInterrupt, so that temporary files are removed.

    What comes after the first is ignored, so that removing them is not cut short, and so is what was ignored before
    (nohup). Only for the main thread.
    """
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    answer = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        if not callable(answer):
            raise KeyboardInterrupt
        answer(number, frame)

    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
