"""Requests to end: SIGTERM and SIGHUP, which schedulers, containers and closed terminals send, taken like Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: The requests that there are on this system, Ctrl-C first.
REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Ended(KeyboardInterrupt):
    """A request to end, as an exception. What handles Ctrl-C handles it too.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)
        self.signum = signum


def status(error: BaseException) -> int:
    """The exit code of a command that was asked to end: 128 and the signal's number, as shells count."""
    return 128 + getattr(error, "signum", signal.SIGINT)


def heeded() -> list[int]:
    """The requests that this process should react to: in the main thread those that nobody told it to ignore.

    ``nohup`` has SIGHUP ignored. SIGINT is heeded always: shells have what runs in the background ignore it, where a
    comparison still sends it to its cells.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    return [s for s in REQUESTS if s == signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]


@contextmanager
def ending_politely() -> Iterator[None]:
    """Raise `Ended` where the process is asked to end."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Ended(signum)

    before = {signum: signal.signal(signum, end) for signum in heeded() if signum != signal.SIGINT}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
