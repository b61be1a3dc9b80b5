"""What every test may rely on, however the suite was started."""

import signal

# A background job of a script starts with SIGINT ignored, one of nohup with SIGHUP; programs that tests start would
# inherit that, and what tests send would never come.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
