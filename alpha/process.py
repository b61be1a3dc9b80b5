"""The `alpha` process: its command line, and Ctrl-C where nothing else listens for it yet, or any more.

The installed `alpha` and `python alpha.py` begin here.
"""

import os
import sys


def start() -> int:
    """Run the command line of this process; returns the exit code. Ctrl-C in it is one line, never a traceback."""
    # Alpha shares out the work itself. And where OpenBLAS cannot start a thread, it sends its own process a SIGINT,
    # which nobody can tell from Ctrl-C.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from signal import SIG_UNBLOCK, SIGINT, pthread_sigmask

        pthread_sigmask(SIG_UNBLOCK, [SIGINT])  # the executable starts with it blocked
        from alpha.cli import main

        return main()
    except KeyboardInterrupt:
        print("alpha: interrupted", file=sys.stderr)
        return 130
    finally:
        # What is left is Python's own, and to be stopped in it is no news.
        import signal

        signal.signal(signal.SIGINT, signal.SIG_DFL)
