"""The `alpha` process: its command line, and Ctrl-C where nothing else listens for it yet, or any more.

The installed `alpha` and `python alpha.py` begin here.
"""

import io
import os
import sys

TYPE_CHECKING = False  # that of typing, whose import is long enough to be stopped in
if TYPE_CHECKING:
    from typing import Any

RETRY_SECONDS = 0.002
"""After Ctrl-C in the middle of an import."""


def start() -> int:
    """Run the command line of this process; returns the exit code. Ctrl-C in it is one line, never a traceback."""
    # Alpha shares out the work itself. And where OpenBLAS cannot start a thread, it sends its own process a SIGINT,
    # which nobody can tell from Ctrl-C.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_streams()
    try:
        import signal

        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
            signal.signal(signal.SIGALRM, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # the executable starts with it blocked
        from alpha.cli import main

        return main()
    except KeyboardInterrupt:
        print("alpha: interrupted", file=sys.stderr)
        return 130
    finally:
        # What is left is Python's own, and to be stopped in it is no news.
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(*_: object) -> None:
    """Answer Ctrl-C as Python does, but not in the middle of an import, which numpy answers by an ImportError and
    Nuitka's loader by aborting: then a timer asks again."""
    if not sys.modules["_frozen_importlib"]._module_locks:  # one for each module that is being imported
        raise KeyboardInterrupt
    import signal

    signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)


def _open_standard_streams() -> None:
    """Where a standard stream is closed, open the null device in its place.

    The next file that is opened would have its number, and what a driver or another process prints would end up in it.
    And Python has no standard error then, and prints what was meant for it to standard output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed, so it is the lowest number that is free
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    file = io.BufferedWriter(_StandardError(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True)


class _StandardError(io.FileIO):
    """What cannot be written there is lost; the result of a command does not depend on it."""

    def write(self, content: "Any") -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)
